"""Open a Delta table to write to it, made or widened to the contract where needed, and keep it open between commits."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
from deltalake import DeltaTable, Field, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from feature_repo.errors import ContractError
from ingestion.table_log import Writers, read_writers
from ingestion.table_schema import STATS_COLUMNS, schema

CHECKPOINT_COMMITS: Final = 50
"""Commits between checkpoints: bounds the small files that opening a table reads."""


class Kept:
    """A table that a writer of many commits keeps open: what came since is read, not all of it.

    Parameters
    ----------
    name
        Table.
    folder
        Its folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._table: DeltaTable | None = None
        self._writers = Writers({}, {})
        self._seen: tuple[int, int] | None = None

    def refresh(self) -> tuple[DeltaTable, Writers]:
        """Return the table as it is now, and what its log tells of its writers.

        Raises
        ------
        ContractError
            If the stored table is of another contract.
        OSError, DeltaError
            If the folder or its log can't be read or written.
        """
        table, self._table = self._table, None  # what fails half-way is opened anew
        known = None
        if table is not None and self._seen is not None and self._seen == self._last_commit(table):
            known = table.version(), self._writers
            table.update_incremental()
        if table is None or known is None or missing_fields(self._name, self._folder, table):
            table, known = open_to_write(self._name, self._folder), None
        self._writers = read_writers(self._folder, table.version(), known)
        self._table, self._seen = table, self._last_commit(table)
        return table, self._writers

    def _last_commit(self, table: DeltaTable) -> tuple[int, int] | None:
        """Tell the file of the newest commit from that of a table made later in the same folder."""
        try:
            stat = (self._folder / "_delta_log" / f"{table.version():020d}.json").stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns


def open_table(folder: Path) -> DeltaTable | None:
    """Open a table; None where there is none."""
    if not (folder / "_delta_log").is_dir():
        return None  # asking delta-rs would make the folder
    try:
        return DeltaTable(folder)
    except TableNotFoundError:
        return None


def open_to_write(name: str, folder: Path) -> DeltaTable:
    """Open the table; make it, or add the contract's new columns to it, where needed."""
    while (table := open_table(folder)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = ",".join(c for c in STATS_COLUMNS if c in schema(name).names)
        config = {"delta.checkpointInterval": str(CHECKPOINT_COMMITS), "delta.dataSkippingStatsColumns": kept}
        try:
            DeltaTable.create(folder, Schema.from_arrow(schema(name)), configuration=config)
        except DeltaError:
            if open_table(folder) is None:  # else another writer made it first
                raise
    while new := missing_fields(name, folder, table):
        try:
            table.alter.add_columns([Field(f.name, Schema.from_arrow(pa.schema([f])).fields[0].type) for f in new])
        except CommitFailedError:
            table = DeltaTable(folder)  # another writer changed the table first: look again
    return table


def missing_fields(name: str, folder: Path, table: DeltaTable) -> list[pa.Field]:
    """Fields of the contract that the stored table is too old to have.

    Raises
    ------
    ContractError
        If a column has another type in the contract.
    """
    stored = {field.name: field.type for field in pa.schema(table.schema().to_arrow())}
    expected = schema(name)
    for field in expected:
        if stored.get(field.name, field.type) != field.type:
            raise ContractError(
                f"table {name} in {folder}: column {field.name} was {stored[field.name]}, expected "
                f"{field.type}; the table was written under another contract: move the folder away and replay the tapes"
            )
    return [field for field in expected if field.name not in stored]
