"""Write one parquet part of a Delta table: fast, whole or not at all, and invisible until it is committed.

A part is a file that no commit names yet, so readers never see it, and what a kill leaves behind is only an orphan for
``tables.vacuum``. Encodings were measured (``tests/benchmarks/bench_tables.py``): floats and whole numbers of a market
hardly ever repeat, so a dictionary costs most of the time and saves nothing; counters and times are packed as
differences. Most windowed features move at every row: compressing them costs half of the writing and saves a fifth of
the bytes, so they are written as they are (2.1 against 3.5 µs a row of features, 899 against 753 bytes); for the rest,
splitting the bytes of floats lets LZ4 find the still ones. ``tables.compact`` rewrites the parts with zstd later.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from feature_repo.contract import WINDOWED_STATS
from ingestion.table_schema import STATS_COLUMNS

_STILL: Final = frozenset({"price_min", "price_max", "price_range", "tick_rate", "trade_intensity"})
"""Windowed features that stay the same over many rows."""
ROW_GROUP_ROWS = 131_072
"""Rows a row group: bounds what a reader holds of one column, and the writer's memory."""
LARGE_BYTES = 32 << 20
"""Parts from here on, those of a bulk load, don't stay in the file cache: a long load would push out what others read,
and each part would be written to fresh pages. Where a host gives a virtual machine its memory page by page (15 µs each,
measured), these cost a third of a replay: 124,000 tickers a second became 193,000. Its reader reads the disk."""


class Part(NamedTuple):
    """One committed parquet file of a table."""

    path: Path
    size: int
    num_records: int

    def sha256(self) -> str:
        """Hash of the file's bytes, computed now.

        Raises
        ------
        OSError
            If the file can't be read, as after a vacuum.
        """
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class PartWriter:
    """One part on its way to the disk, row group by row group.

    Parameters
    ----------
    folder
        The table's folder; must exist.
    columns
        Schema of all rows to come.

    Raises
    ------
    OSError
        If the folder can't be written.
    """

    def __init__(self, folder: Path, columns: pa.Schema) -> None:
        self.path = folder / f"part-{uuid.uuid4()}.parquet"
        self._stats = _Stats()
        try:
            self._writer = pq.ParquetWriter(
                self.path,
                columns,
                compression={f.name: "none" if _moves(f) else "lz4" for f in columns},
                use_dictionary=[f.name for f in columns if _is_text(f.type)],
                column_encoding={f.name: e for f in columns if (e := _encoding(f))},
                write_statistics=[name for name in STATS_COLUMNS if name in columns.names],
                store_schema=False,
            )
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def write(self, rows: pa.Table) -> None:
        """Write rows as a row group, or several where they are many; OSError if the disk is full."""
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._stats.take(rows)

    def close(self) -> AddAction:
        """Bring all to the disk and describe it for the log: relative path, size, and bounds of ``STATS_COLUMNS``.

        Raises
        ------
        OSError
            If the disk is full; the half file is gone then.
        """
        try:
            self._writer.close()
            size = self.path.stat().st_size
            _flush(self.path, keep=size < LARGE_BYTES)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        return AddAction(
            path=self.path.name,
            size=size,
            partition_values={},
            modification_time=time.time_ns() // 1_000_000,
            data_change=True,
            stats=json.dumps(self._stats.as_dict()),
        )

    def abort(self) -> None:
        """Give up what was written."""
        with suppress(OSError, pa.ArrowException):  # the footer of a file that is deleted anyway
            self._writer.close()
        self.path.unlink(missing_ok=True)


def write_part(folder: Path, rows: pa.Table) -> AddAction:
    """Write rows as a new file and describe it for the log.

    Parameters
    ----------
    folder
        The table's folder; must exist.
    rows
        At least one row, in the table's schema.

    Returns
    -------
    AddAction
        Relative path, size, and bounds of the columns in ``STATS_COLUMNS``.

    Raises
    ------
    OSError
        If the disk is full or the folder can't be written; the half file is gone then.
    """
    part = PartWriter(folder, rows.schema)
    try:
        part.write(rows)
    except BaseException:
        part.abort()
        raise
    return part.close()


def _moves(field: pa.Field) -> bool:
    """Whether a column is a windowed feature that changes at nearly every row."""
    stat = field.name.partition("_")[2]
    return bool(pa.types.is_floating(field.type)) and stat in WINDOWED_STATS and stat not in _STILL


def _encoding(field: pa.Field) -> str | None:
    if pa.types.is_floating(field.type):
        return None if _moves(field) else "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type):
        return "DELTA_BINARY_PACKED"
    return None


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_dictionary(dtype))


def _flush(path: Path, *, keep: bool) -> None:
    # The commit must never reach the disk before the bytes it names.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if not keep and hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


class _Stats:
    """Rows, and bounds and nulls of some columns, over all row groups."""

    def __init__(self) -> None:
        self._rows = 0
        self._least: dict[str, Any] = {}
        self._most: dict[str, Any] = {}
        self._nulls: Counter[str] = Counter()

    def take(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        for name in STATS_COLUMNS:
            if name not in rows.column_names:
                continue
            values = rows.column(name)
            self._nulls[name] += values.null_count
            if pa.types.is_dictionary(values.type):
                values = pc.unique(values.cast(values.type.value_type))
            bounds = pc.min_max(values).as_py()
            low, high = bounds["min"], bounds["max"]
            if low is not None:
                self._least[name] = min(low, self._least.get(name, low))
                self._most[name] = max(high, self._most.get(name, high))

    def as_dict(self) -> dict[str, object]:
        return {
            "numRecords": self._rows,
            "minValues": {name: self._least.get(name) for name in self._nulls},
            "maxValues": {name: self._most.get(name) for name in self._nulls},
            "nullCount": dict(self._nulls),
        }
