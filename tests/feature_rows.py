"""Rows of ``spike_features`` for tests: any values, but each kind of value in every place that may hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from feature_repo.source import row_schema

START_US = 1_700_000_000_000_000


def feature_rows(
    product: str,
    row_us: Sequence[int],
    *,
    created_us: Sequence[int] | None = None,
    session: str = "00f1a2b3c4d5e6f7",
    first_n: int = 1,
    seed: int = 0,
) -> pa.Table:
    """Rows of one product at the given times (µs after :data:`START_US`); a tenth of the float values is null."""
    rng = np.random.default_rng([seed, len(product)])
    count = len(row_us)
    times = np.asarray(row_us, np.int64) + START_US
    created = times if created_us is None else np.asarray(created_us, np.int64) + START_US
    stamp = pa.timestamp("us", "UTC")
    columns = {
        "product_id": pa.array([product] * count, pa.string()),
        "session": pa.array([session] * count, pa.string()),
        "n": pa.array(np.arange(first_n, first_n + count)),
        "k": pa.array(np.zeros(count, np.int32)),
        "trigger": pa.array(["ticker"] * count, pa.string()),
        "row_time": pa.array(times, stamp),
        "event_time_ns": pa.array(times * 1000),
        "created_timestamp": pa.array(created, stamp),
    }
    schema = row_schema()
    for field in schema:
        if field.name in columns:
            continue
        if pa.types.is_integer(field.type):
            columns[field.name] = pa.array(rng.integers(-(2**60), 2**60, count))
        else:
            columns[field.name] = pa.array(rng.normal(size=count) * 1e5, mask=rng.random(count) < 0.1)
    return pa.table(columns, schema=schema)


def write_table(tables: Path, *parts: pa.Table) -> None:
    """Append parts to the table ``spike_features`` under ``tables``, a commit each."""
    for part in parts:
        write_deltalake(str(tables / "spike_features"), part, mode="append")
