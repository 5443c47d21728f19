"""How fast rows become a committed part of ``spike_features``, one thread, and what the other ways of writing cost.

Caveats. The rows are drawn at random (random walks, one feature in two null for runs of rows), which compresses worse
than a real market; take ratios, not absolutes. Wall time includes the flush to disk. Each figure is the best of some
repeats, since other work on the machine only ever slows one down.

Run: ``python -m tests.benchmarks.bench_tables``, or ``volspike bench``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import ColumnProperties, WriterProperties, write_deltalake

from ingestion import tables
from ingestion.table_open import CHECKPOINT_COMMITS
from ingestion.table_schema import conform

SESSION = "00f1a2b3c4d5e6f7"
QUICK = {"rows_count": 5_000, "repeats": 1}
"""Arguments of a run that only shows that it works."""


def make_rows(n: int, *, start: int = 0, seed: int = 0) -> pa.Table:
    """Rows of ``spike_features``: two products in turn, message numbers from ``start`` + 1."""
    rng = np.random.default_rng(seed)
    number = np.arange(start + 1, start + n + 1)
    time_ns = 1_760_000_000_000_000_000 + number * 70_000_003
    columns: dict[str, Any] = {
        "product_id": pa.array(np.where(number % 2, "BTC-USD", "ETH-USD")),
        "session": pa.array(np.full(n, SESSION)),
        "n": number,
        "k": np.zeros(n, np.int32),
        "trigger": pa.array(np.where(number % 5, "ticker", "grid")),
        "row_time": pa.array(time_ns // 1000, pa.timestamp("us", "UTC")),
        "event_time_ns": time_ns,
        "created_timestamp": pa.array(time_ns // 1000, pa.timestamp("us", "UTC")),
    }
    for i, field in enumerate(f for f in tables.schema("spike_features") if f.name not in columns):
        if pa.types.is_integer(field.type):
            columns[field.name] = rng.integers(0, 4000, n)
        else:
            walk = np.cumsum(rng.normal(size=n)) * 1e-3 + 100
            mask = np.repeat(rng.random(n // 500 + 1) < 0.1, 500)[:n] if i % 2 else None
            columns[field.name] = pa.array(walk, mask=mask)
    return pa.table(columns, schema=tables.schema("spike_features"))


def _best(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return min(wall), min(cpu)


def run(rows_count: int = 200_000, repeats: int = 5) -> list[dict[str, Any]]:
    """Measure; one result a row: metric, value, unit.

    Returns
    -------
    list[dict]
        ``metric``, ``value``, ``unit``.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    rows = make_rows(rows_count)
    cause = rows.column("n").to_numpy()
    versions = {(SESSION, "BTC-USD"): int(cause[-1]), (SESSION, "ETH-USD"): int(cause[-1])}
    floats = [f.name for f in rows.schema if pa.types.is_floating(f.type)]
    texts = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    split = ColumnProperties(dictionary_enabled=False, encoding="BYTE_STREAM_SPLIT")
    rust = WriterProperties(
        compression="ZSTD",
        compression_level=1,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
        column_properties=dict.fromkeys(floats, split),
    )
    results: list[dict[str, Any]] = []

    def say(metric: str, value: float, unit: str) -> None:
        results.append({"metric": metric, "value": value, "unit": unit})

    def rate(metric: str, work: Callable[[], object]) -> None:
        wall, cpu = _best(work, repeats)
        say(metric, round(rows_count / wall), "rows/s")
        say(f"{metric}, CPU time only", round(rows_count / cpu), "rows/s")

    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as scratch:
        folder = Path(scratch)

        def append() -> None:
            shutil.rmtree(folder / "spike_features", ignore_errors=True)
            assert tables.append("spike_features", rows, cause, versions, root=folder) == rows_count

        def delta() -> None:
            shutil.rmtree(folder / "rust", ignore_errors=True)
            write_deltalake(folder / "rust", rows, writer_properties=rust)

        rate("append", append)
        say("append, part size", round(sum(p.size for p in tables.parts("spike_features", root=folder)) / 1e6, 1), "MB")
        rate("append of rows already held", lambda: tables.append("spike_features", rows, cause, versions, root=folder))
        rate("write_deltalake, zstd 1, bytes split", delta)
        plain: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": texts}
        plain["use_byte_stream_split"] = floats
        rate("parquet part alone, zstd 1, bytes split", lambda: pq.write_table(rows, folder / "z.parquet", **plain))
        rate("parquet part alone, as pyarrow writes by default", lambda: pq.write_table(rows, folder / "d.parquet"))
        rate("schema and finiteness check alone", lambda: conform("spike_features", rows))

        small = rows.slice(0, 1000)
        shutil.rmtree(folder / "spike_features")
        waits = []
        for i in range(60):
            number = np.arange(i * 1000 + 1, i * 1000 + 1001)
            w = time.perf_counter()
            tables.append("spike_features", small, number, dict.fromkeys(versions, int(number[-1])), root=folder)
            waits.append(time.perf_counter() - w)
        say("append of 1,000 rows, p50", round(1e3 * float(np.median(waits)), 1), "ms")
        many = {(f"{i:016x}", "BTC-USD"): 1 for i in range(5000)}
        tables.append("spike_features", rows.slice(0, 0), cause[:0], many, root=folder)
        for i in range(60, 60 + CHECKPOINT_COMMITS):
            number = np.arange(i * 10 + 60_000, i * 10 + 60_010)
            upto = dict.fromkeys(versions, int(number[-1]))
            tables.append("spike_features", rows.slice(0, 10), number, upto, root=folder)
        wall, _ = _best(lambda: tables.last_n("spike_features", root=folder), repeats)
        say("last_n of 5,002 session-products", round(1e3 * wall, 1), "ms")
    return results


if __name__ == "__main__":
    for result in run():
        print(json.dumps(result))
