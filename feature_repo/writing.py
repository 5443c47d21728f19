"""Appending pushed rows to a view's Delta table: the offline half of ``store.push``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_source import DataSource

from feature_repo.contract import ROW_ID, VIEW
from feature_repo.errors import ContractError, StoreError
from feature_repo.names import PUSHED
from feature_repo.retrieval import between
from feature_repo.source import DeltaTableSource, arrow_schema, location, row_schema, scan

if TYPE_CHECKING:
    from deltalake.transaction import Transaction

_ATTEMPTS: Final = 20
"""Tries of one push: each that is lost means that another push of the same session got through."""


def append_rows(source: DataSource, rows: pa.Table, repo: Path | None) -> int:
    """Append rows to a Delta table in one commit, and leave out those whose row id the table holds.

    Rows may come in any order of time and from several connections, so they are told apart by row id; the version that
    a commit carries per (session, product) stays that of the log's writers, which alone know that nothing is missing
    below it. The commit notes which sessions it brought rows of, so that those writers look for them.

    Parameters
    ----------
    rows
        The table's columns, in any order. A type that converts without loss is converted; NaN becomes null.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ContractError
        If a column is missing, unknown or of another type, a value of a row column is null, or a number is infinite.
    StoreError
        If the table can't be written.
    """
    delta, path = location(source, repo)
    if not delta:
        raise ContractError(f"source {source.name}: {path} is not a Delta table; only Delta tables can be appended to")
    ours = isinstance(source, DeltaTableSource) and source.table == VIEW
    given = _fitted(rows, row_schema() if ours else arrow_schema(source, repo), source.name)
    from deltalake.exceptions import CommitFailedError, DeltaError

    attempts = _ATTEMPTS
    while True:
        rows = given
        if ours and given.num_rows:
            rows = _unknown(given, source, repo, Path(path, "_delta_log").is_dir())
        if not rows.num_rows:
            return 0
        try:
            _write(path, rows, _notes(rows) if ours else None)
        except (DeltaError, OSError) as error:
            attempts -= 1
            if attempts and isinstance(error, CommitFailedError):
                continue  # another push of the same session came first, perhaps with some of these rows
            raise StoreError(f"table {source.name}: writing {rows.num_rows} rows to {path} failed: {error}") from error
        return int(rows.num_rows)


def _write(path: str, rows: pa.Table, notes: list[Transaction] | None) -> None:
    from deltalake import CommitProperties, WriterProperties, write_deltalake
    from deltalake.writer.properties import ColumnProperties

    # Dictionaries of float64 triple the time of a write and save nothing.
    plain = WriterProperties(compression="ZSTD", default_column_properties=ColumnProperties(dictionary_enabled=False))
    # A table begun under an older contract lacks the newer features: its old rows read as null.
    write_deltalake(
        path,
        rows,
        mode="append",
        schema_mode="merge",
        writer_properties=plain,
        commit_properties=CommitProperties(app_transactions=notes),
    )


def _notes(rows: pa.Table) -> list[Transaction]:
    from deltalake.transaction import Transaction

    now_us = time.time_ns() // 1000
    pairs = pl.DataFrame(pl.from_arrow(rows.select(["session", "product_id"]))).unique().rows()
    return [Transaction(f"{PUSHED}{session}/{product}", now_us, now_us // 1000) for session, product in pairs]


def _fitted(rows: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    # store.push converts its data frame with the index, which is a column where it isn't plain 0, 1, 2, …
    given = {column for column in rows.column_names if not column.startswith("__index_level_")}
    extra, missing = given - set(schema.names), set(schema.names) - given
    if extra or missing:
        raise ContractError(f"table {name}: missing columns {sorted(missing)}, unknown columns {sorted(extra)}")
    columns = []
    for field in schema:
        column = rows.column(field.name)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
            if pc.any(pc.is_inf(column)).as_py():
                raise ContractError(f"table {name}: column {field.name} holds infinity; expected a number or null")
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise ContractError(f"table {name}: column {field.name}: expected {field.type}: {error}") from None
        if not field.nullable and column.null_count:
            raise ContractError(f"table {name}: column {field.name} was null in {column.null_count} rows")
    return pa.Table.from_arrays(columns, schema=schema)


def _unknown(rows: pa.Table, source: DataSource, repo: Path | None, exists: bool) -> pa.Table:
    """Keep the first row of each row id, of those that the table doesn't hold."""
    keys = list(ROW_ID)
    given = pl.DataFrame(pl.from_arrow(rows.select(keys))).with_row_index()
    fresh = given.unique(keys, keep="first", maintain_order=True)
    if exists:
        first, last = (int(t.cast(pa.int64()).as_py()) * 1000 for t in pc.min_max(rows.column("row_time")).values())
        there = between(scan(source, repo), "row_time", first, last).select(keys).collect()
        fresh = fresh.join(there, on=keys, how="anti", maintain_order="left")
    return rows.take(fresh.get_column("index").to_arrow())
