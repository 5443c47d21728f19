"""Rows a second of ``volspike infer``: reading, scoring and writing a million rows, on all cores.

The model is one of XGBoost with the default service's features and 60 trees of depth 4; those of the demonstration
stop at 20 to 50 and are faster. Generating the rows is not measured. Not "one thread": batch scoring uses them all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

ROWS = 1_000_000
TREES = 60
QUICK = {"rows": 50_000, "trees": 50}


def run(rows: int = ROWS, trees: int = TREES) -> list[dict[str, Any]]:
    """Measure, on a file of random features."""
    for name in ("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "ARROW_IO_THREADS"):
        os.environ.pop(name, None)  # read when the libraries load, which is below
    from training.infer import infer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artefact(folder / "model", trees)
        features(folder / "rows.parquet", folder / "model", rows)
        infer(str(folder / "model"), folder / "rows.parquet", folder / "warm.parquet")
        found = infer(str(folder / "model"), folder / "rows.parquet", folder / "out.parquet")
    return [
        {"metric": f"infer of {rows:,} rows", "value": found.rows_per_s, "unit": "rows/s", "target": 3e5, "op": ">="},
        {"metric": "one forecast by itself, p99", "value": found.latency_ms["p99"], "unit": "ms"},
    ]


def artefact(folder: Path, trees: int) -> None:
    """Write a model of so many trees, grown on noise that a few features half know."""
    import numpy as np
    import xgboost

    from feature_repo import contract
    from training import artefact as art

    names = list(contract.SERVICES[contract.DEFAULT_SERVICE])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, len(names)))
    y = rng.random(len(x)) < 1 / (1 + np.exp(3 - x[:, :8].sum(axis=1)))
    params = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 4, "eta": 0.08}
    booster = xgboost.train(params, xgboost.DMatrix(x, y), trees)
    manifest = art.Manifest(
        name="bench",
        kind="xgb",
        service=art.Service(contract.DEFAULT_SERVICE, contract.service_hash(contract.DEFAULT_SERVICE)),
        features=names,
        feature_hash=contract.feature_hash(names),
        label=art.Label(art.Rule("percentile", 95.0), {"BTC-USD": 1e-5}),
        threshold=0.5,
        calibration=art.Calibration("sigmoid", 1.0, -1.0),
        imputation=art.Imputation("native"),
        training=art.Training({}, ["BTC-USD"], [], 900.0, 960),
        data={},
        metrics={},
        seeds={},
        versions={},
    )
    art.save(folder, manifest, bytes(booster.save_raw("ubj")))


def features(path: Path, model: Path, rows: int) -> None:
    """Write rows as the offline table has them: float64, no dictionaries, zstd.

    A column has 4,096 distinct values, so that it packs about as well as features of neighbouring seconds do; noise
    would measure how fast zstd passes on a gigabyte.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from training.artefact import load

    names = load(model).manifest.features
    rng = np.random.default_rng(1)
    keys = [("product_id", pa.string()), ("event_time_ns", pa.int64())]
    schema = pa.schema([*keys, *((name, pa.float64()) for name in names)])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["product_id"]) as writer:
        for start in range(0, rows, 65_536):
            n = min(65_536, rows - start)
            columns = {"product_id": ["BTC-USD"] * n, "event_time_ns": np.arange(start, start + n) * 1_000_000_000}
            values = {name: rng.normal(size=4096)[rng.integers(0, 4096, n)] for name in names}
            writer.write_table(pa.table(columns | values, schema=schema))
