"""How long a training set takes and how much memory, through ``store.get_historical_features``.

A Delta table of feature rows (all features, several products interleaved in time, twenty parts, one feature in ten
null) is joined to as many label rows: any product, times beside the rows' own, in order of time as a labeller hands
them on; and once more shuffled, where every pick of a value is a cache miss.

Caveats. The values are random walks, which compress worse than a market. The time is that of the call and
``.to_arrow()`` in a fresh process with a warm file cache; opening the store is not in it. The peak is of that whole
process, so Feast's own imports (about 0.4 GB) and the label frame are in it. ``.to_df()`` copies the answer once more,
by pandas. Two threads.

Run: ``python -m tests.benchmarks.bench_training_set [ROWS]``, or ``volspike bench training-set``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import ColumnProperties, WriterProperties, write_deltalake

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD", "LTC-USD")
PARTS = 20
THREADS = 2
START_US = 1_760_000_000_000_000
STEP_US = 250_000
TARGET_S = 6.0
TARGET_GB = 6.0
QUICK = {"rows": 20_000}
"""Arguments of a run that only shows that it works."""


def write_features(tables: Path, rows: int) -> None:
    """Write ``rows`` rows of ``spike_features`` in :data:`PARTS` commits."""
    from feature_repo.source import row_schema

    rng = np.random.default_rng(1)
    properties = WriterProperties(
        compression="ZSTD", default_column_properties=ColumnProperties(dictionary_enabled=False)
    )
    for part in np.array_split(np.arange(rows), PARTS):
        time = START_US + part * STEP_US
        stamp = pa.array(time, pa.timestamp("us", "UTC"))
        columns: dict[str, Any] = {
            "product_id": pa.array(np.array(PRODUCTS)[part % len(PRODUCTS)].tolist(), pa.string()),
            "session": pa.array(["00f1a2b3c4d5e6f7"] * len(part), pa.string()),
            "n": part,
            "k": np.zeros(len(part), np.int32),
            "trigger": pa.array(["grid"] * len(part), pa.string()),
            "row_time": stamp,
            "event_time_ns": time * 1000,
            "created_timestamp": stamp,
        }
        for i, field in enumerate(f for f in row_schema() if f.name not in columns):
            if pa.types.is_integer(field.type):
                columns[field.name] = rng.integers(0, 4000, len(part))
            else:
                walk = np.cumsum(rng.normal(size=len(part))) * 1e-3 + 100
                columns[field.name] = pa.array(walk, mask=rng.random(len(part)) < 0.1 if i % 10 == 0 else None)
        table = pa.table(columns, schema=row_schema())
        write_deltalake(str(tables / "spike_features"), table, mode="append", writer_properties=properties)


def measure(rows: int, road: str, order: str) -> dict[str, float]:
    """Join in this process, whose settings name the data folder.

    Parameters
    ----------
    road
        ``to_arrow`` or ``to_df``.
    order
        ``in order`` of time, or ``shuffled``.
    """
    import resource
    import time

    import pandas as pd

    from feature_repo.contract import FEATURE_NAMES
    from feature_repo.store import apply

    store = apply()
    service = store.get_feature_service("spike_full_v1")
    rng = np.random.default_rng(2)
    times = START_US + rng.integers(0, rows * STEP_US, rows)
    if order == "in order":
        times.sort()
    asked = pd.DataFrame(
        {
            "product_id": np.array(PRODUCTS)[rng.integers(0, len(PRODUCTS), rows)],
            "event_timestamp": pd.to_datetime(times, unit="us", utc=True),
            "sigma_fwd": rng.random(rows),
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    answer = getattr(store.get_historical_features(asked, service), road)()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = answer.column_names if road == "to_arrow" else list(answer.columns)
    if len(answer) != rows or not set(FEATURE_NAMES) <= set(names):
        raise AssertionError(f"{len(answer)} rows of {len(names)} columns for {rows} asked")
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kB on Linux
    return {"seconds": seconds, "peak_gb": peak / unit, "before_gb": before / unit}


def run(rows: int = 1_000_000) -> list[dict[str, Any]]:
    """Measure each road in a process of its own.

    Returns
    -------
    list of dict
        ``metric value unit target op``; a figure without target has None there.
    """
    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
        write_features(Path(folder) / "tables", rows)
        arrow = _child(folder, rows, "to_arrow", "in order")
        shuffled = _child(folder, rows, "to_arrow", "shuffled")
        frame = _child(folder, rows, "to_df", "in order")
    at = f"{rows:.0e} feature rows x {rows:.0e} label rows x all features"
    return [
        _figure(f"training set, {at}", arrow["seconds"], "s", TARGET_S),
        _figure("training set, peak memory of the process", arrow["peak_gb"], "GB", TARGET_GB),
        _figure("of which before the join (imports, label frame)", arrow["before_gb"], "GB", None),
        _figure("training set, labels shuffled", shuffled["seconds"], "s", None),
        _figure("training set as a pandas frame", frame["seconds"], "s", None),
        _figure("training set as a pandas frame, peak memory", frame["peak_gb"], "GB", None),
    ]


def _figure(metric: str, value: float, unit: str, target: float | None) -> dict[str, Any]:
    return {"metric": metric, "value": round(value, 3), "unit": unit, "target": target, "op": "<="}


def _child(folder: str, rows: int, road: str, order: str) -> dict[str, float]:
    threads = {name: str(THREADS) for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "ARROW_NUM_THREADS")}
    root = Path(__file__).resolve().parents[2]
    code = (
        "import json, sys; from tests.benchmarks.bench_training_set import measure; "
        "print(json.dumps(measure(int(sys.argv[1]), *sys.argv[2:])))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(rows), road, order],
        cwd=root,
        env={**os.environ, **threads, "VOLSPIKE_DATA": folder},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(run(*(int(argument) for argument in sys.argv[1:2])), indent=1))
