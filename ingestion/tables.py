"""The offline tables: Delta Lake tables that hold each row exactly once, whoever writes and whatever dies when.

::

    append ── read versions at table version v ── drop rows the table holds ── write a part ── commit on top of v
       ▲                                                                                          │
       └────────────── another writer committed the same (session, product) after v ◄─────────────┘

A commit carries the last message number of each (session, product) it covers as Delta's application transactions.
delta-rs refuses a commit on top of v if a later one carries an equal application id, and lets appends of other sessions
pass; so no lock is needed, here or on an object store, and a killed writer holds nothing up.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, Schema, WriterProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, CommitProperties
from numpy.typing import NDArray

from feature_repo.errors import StoreError
from infra.settings import settings
from ingestion.table_keys import NEVER, RowKeys, not_pushed
from ingestion.table_log import Key, read_writers, transactions
from ingestion.table_open import Kept, missing_fields, open_table, open_to_write
from ingestion.table_parts import Part, write_part
from ingestion.table_schema import conform, schema

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Part",
    "append",
    "collect",
    "compact",
    "keep",
    "last_n",
    "open_to_write",
    "parts",
    "require_whole",
    "scan",
    "schema",
    "vacuum",
]

MAX_CONFLICTS: Final = 100
"""Lost races for one append. Each means that somebody else's commit of the same session got through."""


def append(
    name: str,
    rows: pa.Table,
    cause_n: NDArray[np.int64],
    versions: Mapping[Key, int],
    *,
    root: Path | None = None,
    kept: Kept | None = None,
) -> int:
    """Add the rows that the table does not hold yet, in one commit.

    Parameters
    ----------
    name
        Table.
    rows
        Rows in ``schema(name)``; missing values are null.
    cause_n
        int64[rows]: number of the message whose processing produced each row.
    versions
        (session, product_id) -> last message number that ``rows`` covers, also of products without a row.
    root
        Folder of the tables; default ``settings().tables``.
    kept
        The same table, by a writer that appends often: see `keep`.

    Returns
    -------
    int
        Rows written; 0 if the table already held them all.

    Raises
    ------
    ContractError
        If the rows or the stored table don't fit the schema, or a row is not covered by ``versions``.
    StoreError
        If the disk is full, or the folder or its log can't be read or written; the table is unchanged then.
    """
    rows = conform(name, rows)
    keys = RowKeys(name, rows, np.asarray(cause_n), versions)
    if not rows.num_rows and not versions:
        return 0
    folder = folder_of(name, root)
    current = kept or Kept(name, folder)
    add: AddAction | None = None
    written: NDArray[np.bool_] | None = None
    with store_errors(name, folder, "writing"):
        for _ in range(MAX_CONFLICTS):
            table, writers = current.refresh()
            news = {key: n for key, n in versions.items() if n > writers.last.get(key, NEVER)}
            fresh = keys.newer_than(writers.last) & not_pushed(table, rows, writers.pushed)
            if add and written is not None and not np.array_equal(fresh, written):
                (folder / add.path).unlink(missing_ok=True)
                add = None
            if not news:
                return 0
            if add is None and fresh.any():
                add, written = write_part(folder, rows if fresh.all() else rows.filter(pa.array(fresh))), fresh
            if commit_part(table, name, folder, add, news):
                return int(fresh.sum())
    raise StoreError(
        f"table {name} in {folder}: {MAX_CONFLICTS} commits were overtaken by another writer of the same sessions; "
        "nothing was written; stop one of the writers and run again"
    )


def keep(name: str, *, root: Path | None = None) -> Kept:
    """Keep a table open for many appends, one at a time."""
    return Kept(name, folder_of(name, root))


def last_n(name: str, *, root: Path | None = None) -> dict[Key, int]:
    """Last message number the table covers, per (session, product_id); empty if there is no table.

    Raises
    ------
    ContractError
        If there is no table of that name in the contract.
    StoreError
        If the log can't be read.
    """
    schema(name)
    folder = folder_of(name, root)
    with store_errors(name, folder, "reading"):
        table = open_table(folder)
        return {} if table is None else read_writers(folder, table.version()).last


def scan(name: str, *, root: Path | None = None) -> pl.LazyFrame:
    """Lazy frame of the table as it stands now, in the contract's columns; rows in no particular order.

    Columns that older parts lack read as null; a table that is not there reads as no rows.

    Raises
    ------
    ContractError
        If a stored column has another type than the contract.
    StoreError
        If the log can't be read.
    """
    import polars as pl  # 30 MB, which what only writes does without

    expected = schema(name)
    folder = folder_of(name, root)
    with store_errors(name, folder, "reading", pl.exceptions.ComputeError):
        table = open_table(folder)
        empty = pl.LazyFrame(pl.from_arrow(expected.empty_table()))
        if table is None:
            return empty
        lacking = {f.name for f in missing_fields(name, folder, table)}
        types = empty.collect_schema()
        columns = [pl.lit(None, types[c]).alias(c) if c in lacking else pl.col(c) for c in expected.names]
        return pl.scan_delta(table).select(columns)


def collect(name: str, rows: pl.LazyFrame, *, root: Path | None = None) -> pl.DataFrame:
    """Read what was asked of a table, or say which part of it is gone or cut off.

    Parameters
    ----------
    name
        Of the table, whose parts are looked at first: polars panics where one is shorter than the log says.
    rows
        As `scan` gives them, filtered and cut as wanted.
    root
        Folder of the tables; default ``settings().tables``.

    Raises
    ------
    StoreError
        If a part that the table's log names is gone or of another length.
    """
    require_whole(name, root=root)
    return rows.collect()


def require_whole(name: str, *, root: Path | None = None) -> None:
    """Check that all parts that the table's log names are there, in their length.

    Raises
    ------
    StoreError
        If one isn't.
    """
    for part in parts(name, root=root):
        try:
            found = part.path.stat().st_size
        except OSError as error:
            raise StoreError(_damaged(name, f"{part.path} can't be read ({error.strerror})")) from error
        if found != part.size:
            raise StoreError(_damaged(name, f"{part.path} has {found} bytes of {part.size}"))


def _damaged(name: str, what: str) -> str:
    return (
        f"table {name}: part {what}, must be there and whole: the table's log names it; restore it, or move the table "
        "away and replay the tapes"
    )


def parts(name: str, *, root: Path | None = None) -> list[Part]:
    """Files that make up the table as it stands now, by path; what a data manifest lists.

    Raises
    ------
    StoreError
        If the log can't be read.
    """
    schema(name)
    folder = folder_of(name, root)
    with store_errors(name, folder, "reading"):
        table = open_table(folder)
        if table is None:
            return []
        actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "size_bytes", "num_records"])
    return sorted(Part(folder / a["path"], a["size_bytes"], a["num_records"]) for a in actions.to_pylist())


def compact(name: str, *, root: Path | None = None) -> None:
    """Merge small parts into larger ones, as a commit of its own; readers and writers go on meanwhile.

    Raises
    ------
    StoreError
        If the disk is full or the folder can't be written, or another compaction won; the table is whole all the same.
    """
    schema(name)
    folder = folder_of(name, root)
    with store_errors(name, folder, "compacting"):
        table = open_table(folder)
        if table is not None:
            table.optimize.compact(writer_properties=WriterProperties(compression="ZSTD", compression_level=3))


def vacuum(name: str, *, retention_hours: int = 1, root: Path | None = None) -> int:
    """Delete files that no commit names any more, or that a killed writer left behind.

    Parameters
    ----------
    name
        Table.
    retention_hours
        Age in hours from which a file is deleted. It must outlast every running write and read; files of an earlier
        version, which a data manifest may name, go too.
    root
        Folder of the tables; default ``settings().tables``.

    Returns
    -------
    int
        Files deleted.

    Raises
    ------
    StoreError
        If the folder can't be read or written.
    """
    schema(name)
    folder = folder_of(name, root)
    with store_errors(name, folder, "cleaning"):
        table = open_table(folder)
        if table is None:
            return 0
        return len(table.vacuum(retention_hours, dry_run=False, enforce_retention_duration=False, full=True))


def folder_of(name: str, root: Path | None) -> Path:
    """Return the folder of a table."""
    return (settings().tables if root is None else Path(root)) / name


def commit_part(table: DeltaTable, name: str, folder: Path, add: AddAction | None, news: Mapping[Key, int]) -> bool:
    """Commit on top of the version that was read; False if another writer came first."""
    txns = CommitProperties(app_transactions=transactions(news, time.time_ns() // 1_000_000))
    try:
        table.create_write_transaction(
            [add] if add else [], "append", Schema.from_arrow(schema(name)), commit_properties=txns
        )
    except (DeltaError, OSError) as error:
        # An error after the commit (in a checkpoint, say) is no failed commit: the log decides, not the exception.
        if add and _is_committed(folder, add):
            return True
        if isinstance(error, CommitFailedError):
            return False
        if add:
            (folder / add.path).unlink(missing_ok=True)
        raise
    return True


def _is_committed(folder: Path, add: AddAction) -> bool:
    return any(uri.endswith(add.path) for uri in DeltaTable(folder).file_uris())


@contextmanager
def store_errors(name: str, folder: Path, doing: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what the disk, delta-rs and the library that reads raise into a StoreError that says what to do."""
    try:
        yield
    except (OSError, DeltaError, *more) as error:
        text = str(error).partition("\n")[0]  # the rest is a stack of another language
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} or any(
            sign in text for sign in ("No space left", "File too large", "quota exceeded")
        )
        what = (
            "the disk is full; free some space and run again"
            if full
            else "expected a folder that this user can read and write, with a whole Delta log"
        )
        raise StoreError(
            f"{doing} table {name} in {folder} failed, and what was committed before is unchanged: {what} ({text})"
        ) from error
