"""Write one parquet part of a Delta table: fast, whole or not at all, and invisible until it is committed.

A part is a file that no commit names yet, so readers never see it, and what a kill leaves behind is only an orphan for
``tables.vacuum``. Encodings were measured (``tests/benchmarks/bench_tables.py``): floats and whole numbers of a market
hardly ever repeat, so a dictionary costs most of the time and saves nothing; counters and times are packed as
differences; splitting the bytes of floats lets LZ4 find the still ones, at 1.5 to 2 times the speed of zstd 1 and 7 %
more bytes. ``tables.compact`` rewrites the parts with zstd later.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from ingestion.table_schema import STATS_COLUMNS

ROW_GROUP_ROWS = 131_072
"""Rows a row group: bounds what a reader holds of one column, and the writer's memory."""


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
    path = folder / f"part-{uuid.uuid4()}.parquet"
    try:
        pq.write_table(
            rows,
            path,
            compression="lz4",
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=[f.name for f in rows.schema if _is_text(f.type)],
            column_encoding={f.name: e for f in rows.schema if (e := _encoding(f.type))},
            write_statistics=[name for name in STATS_COLUMNS if name in rows.column_names],
            store_schema=False,
        )
        _flush(path)
        size = path.stat().st_size
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return AddAction(
        path=path.name,
        size=size,
        partition_values={},
        modification_time=time.time_ns() // 1_000_000,
        data_change=True,
        stats=json.dumps(_stats(rows)),
    )


def _encoding(dtype: pa.DataType) -> str | None:
    if pa.types.is_floating(dtype):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(dtype) or pa.types.is_timestamp(dtype):
        return "DELTA_BINARY_PACKED"
    return None


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_dictionary(dtype))


def _flush(path: Path) -> None:
    # The commit must never reach the disk before the bytes it names.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stats(rows: pa.Table) -> dict[str, object]:
    bounds = {}
    for name in STATS_COLUMNS:
        if name in rows.column_names:
            values = rows.column(name)
            if pa.types.is_dictionary(values.type):
                values = pc.unique(values.cast(values.type.value_type))
            bounds[name] = pc.min_max(values).as_py()
    return {
        "numRecords": rows.num_rows,
        "minValues": {name: b["min"] for name, b in bounds.items()},
        "maxValues": {name: b["max"] for name, b in bounds.items()},
        "nullCount": {name: rows.column(name).null_count for name in bounds},
    }
