"""Append many rows to a table as they come, in few commits: row groups are written at once, only the commit waits.

Holding the rows of a commit until it is due costs fresh memory for each; written at once, they lie in the memory
of the rows before. What holds for ``tables.append`` holds here: each row once, whoever writes and whatever dies when.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from numpy.typing import NDArray

from ingestion import tables
from ingestion.table_keys import NEVER, RowKeys, not_pushed
from ingestion.table_log import Key, Writers
from ingestion.table_parts import PartWriter
from ingestion.table_schema import conform, schema

GROUP_ROWS: Final = 8192
"""Rows gathered before they are written: below, what each column costs a row group outweighs its rows."""


class Appender:
    """One writer of one table. Leaving it gives up what was not committed.

    ::

        add ── first: read versions ── drop rows the table holds ── row groups into an open part ─┐
        commit ── versions still the same? ── commit the part ◄───────────────────────────────────┘
                     └── no, another writer came: read the part back, ``tables.append`` what is left

    Parameters
    ----------
    name
        Table.
    root
        Folder of the tables; default ``settings().tables``.
    """

    def __init__(self, name: str, *, root: Path | None = None) -> None:
        self.name = name
        self._root = root
        self._folder = tables.folder_of(name, root)
        self._columns = pa.schema([field.with_nullable(True) for field in schema(name)])
        self._kept = tables.keep(name, root=root)
        self._read: tuple[DeltaTable, Writers] | None = None
        self._part: PartWriter | None = None
        self._gathered: list[pa.Table] = []
        self._causes: list[NDArray[np.int64]] = []

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def add(self, rows: pa.Table, cause_n: NDArray[np.int64], versions: Mapping[Key, int]) -> None:
        """Take rows; those that the table holds already are dropped.

        Parameters
        ----------
        rows
            Rows in ``tables.schema(name)``; missing values are null.
        cause_n
            int64[rows]: number of the message whose processing produced each row.
        versions
            (session, product_id) -> last message number that the rows cover.

        Raises
        ------
        ContractError
            If the rows or the stored table don't fit the schema, or a row is not covered by ``versions``.
        StoreError
            If the disk is full, or the folder or its log can't be read or written.
        """
        rows = conform(self.name, rows)
        keys = RowKeys(self.name, rows, cause_n, versions)
        if not rows.num_rows:
            return
        with tables.store_errors(self.name, self._folder, "writing"):
            if self._read is None:
                self._read = self._kept.refresh()
            table, writers = self._read
            keep = keys.newer_than(writers.last) & not_pushed(table, rows, writers.pushed)
            if not keep.all():
                rows, cause_n = rows.filter(pa.array(keep)), cause_n[keep]
            self._gathered.append(rows if rows.schema == self._columns else rows.cast(self._columns))
            self._causes.append(cause_n)
            if sum(table.num_rows for table in self._gathered) >= GROUP_ROWS:
                self._write_group()

    def commit(self, versions: Mapping[Key, int]) -> int:
        """Commit all rows taken since the last commit, with how far they go.

        Parameters
        ----------
        versions
            (session, product_id) -> last message number that the rows cover, also of products without a row.

        Returns
        -------
        int
            Rows written.

        Raises
        ------
        StoreError
            If the disk is full, or the folder or its log can't be read or written; the table is unchanged then.
        """
        try:
            path, causes = self._commit(versions)
            if path is None:
                return len(causes)
            # Seldom: another writer of the same sessions came in between, so that rows of the part may be there twice.
            with tables.store_errors(self.name, self._folder, "writing"):
                rows = pq.read_table(path, partitioning=None)
                path.unlink()
            return tables.append(self.name, rows, causes, versions, root=self._root, kept=self._kept)
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up what was not committed."""
        part, self._part = self._part, None
        if part is not None:
            part.abort()
        self._gathered, self._causes, self._read = [], [], None

    def _write_group(self) -> None:
        rows = pa.concat_tables(self._gathered)
        self._gathered = []
        if rows.num_rows:
            if self._part is None:
                self._part = PartWriter(self._folder, self._columns)
            self._part.write(rows)

    def _commit(self, versions: Mapping[Key, int]) -> tuple[Path | None, NDArray[np.int64]]:
        """Commit the part; where that can't be, return the part's path, else None, and the rows' message numbers."""
        causes = np.concatenate([np.zeros(0, np.int64), *self._causes])
        with tables.store_errors(self.name, self._folder, "writing"):
            if self._gathered:
                self._write_group()
            part = self._part
            if part is None:
                nothing = schema(self.name).empty_table()
                tables.append(self.name, nothing, causes, versions, root=self._root, kept=self._kept)
                return None, causes
            add = part.close()
            table, writers = self._kept.refresh()
            # From here on the part belongs to the log, or to whoever finds out that it doesn't.
            self._part = None
            before = Writers({}, {}) if self._read is None else self._read[1]
            pairs = ((writers.last, before.last), (writers.pushed, before.pushed))
            if any(now.get(key, NEVER) != then.get(key, NEVER) for key in versions for now, then in pairs):
                return part.path, causes
            news = {key: n for key, n in versions.items() if n > writers.last.get(key, NEVER)}
            done = tables.commit_part(table, self.name, self._folder, add, news)
        return None if done else part.path, causes
