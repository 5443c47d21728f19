"""Appending pushed rows to a view's Delta table: the offline half of ``store.push``."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_source import DataSource

from feature_repo.contract import ROW_ID, VIEW
from feature_repo.errors import ContractError, StoreError
from feature_repo.retrieval import between
from feature_repo.source import DeltaTableSource, arrow_schema, location, row_schema, scan


def append_rows(source: DataSource, rows: pa.Table, repo: Path | None) -> int:
    """Append rows to a Delta table in one commit, and leave out those whose row id the table holds.

    Rows may come in any order of time and from several connections, so they are told apart by row id; the version that
    a commit carries per (session, product) stays that of the log's writers, which alone know that nothing is missing
    below it.

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
    rows = _fitted(rows, row_schema() if ours else arrow_schema(source, repo), source.name)
    if ours and rows.num_rows:
        rows = _unknown(rows, source, repo, Path(path, "_delta_log").is_dir())
    if not rows.num_rows:
        return 0
    from deltalake import WriterProperties, write_deltalake
    from deltalake.exceptions import DeltaError
    from deltalake.writer.properties import ColumnProperties

    # Dictionaries of float64 triple the time of a write and save nothing.
    plain = WriterProperties(compression="ZSTD", default_column_properties=ColumnProperties(dictionary_enabled=False))
    try:
        # A table begun under an older contract lacks the newer features: its old rows read as null.
        write_deltalake(path, rows, mode="append", schema_mode="merge", writer_properties=plain)
    except (DeltaError, OSError) as error:
        raise StoreError(f"table {source.name}: writing {rows.num_rows} rows to {path} failed: {error}") from error
    return int(rows.num_rows)


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
