"""How long a tune takes: two models, 24 candidates each, five purged folds, 200,000 rows of 146 features, two cores.

What is measured is :func:`training.tuning.search`, the whole grid search with its processes, journal and progress; in
and around it lie no labels, feature join or MLflow, which cost what one training run does. The rows are drawn: two
products, a volatility that comes and goes, features that half know it and many that do not, a tenth of the values
missing. How many trees early stopping lets grow depends on the data, and so does the time. In a fold, trees grow on
at most 40,000 of its train rows, drawn from all (``training.crossval.TREE_ROWS``); every test row is scored.

Run: ``python -m tests.benchmarks.bench_models_tune [ROWS]``, or ``volspike bench models-tune``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ROWS, FEATURES, FOLDS, CORES = 200_000, 146, 5, 2
TARGET_S = 240.0
QUICK = {"n": 20_000, "quick": True}
"""Arguments of a run that only shows that it works."""


def rows(n: int, seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.str_]]:
    """Draw float32[n, 146] features, ln(sigma_fwd / tau), times in ns and products; both products have every second."""
    rng = np.random.default_rng(seed)
    seconds = n // 2
    x = np.empty((n, FEATURES), np.float32)
    excess = np.empty(n)
    for i in range(2):
        regime = np.repeat(rng.normal(size=seconds // 600 + 1), 600)[:seconds]
        noise = np.convolve(rng.normal(size=seconds + 59), np.full(60, 60**-0.5), "valid")
        level = 0.4 * regime + 0.15 * noise
        for j in range(FEATURES):
            known = j % 4 == 0
            own = np.convolve(rng.normal(size=seconds + 29), np.full(30, 30**-0.5), "valid")
            x[i::2, j] = np.exp(known * level + 0.3 * own) if j % 2 else known * level + 0.5 * own
        excess[i::2] = level + 0.2 * rng.normal(size=seconds)
    x[rng.random(x.shape) < 0.1] = np.nan
    excess -= np.quantile(excess, 0.95)
    t = np.repeat(np.arange(seconds, dtype=np.int64) * 1_000_000_000, 2)
    return x, excess, t, np.tile(np.array(["BTC-USD", "ETH-USD"]), seconds)


def run(n: int = ROWS, quick: bool = False) -> list[dict[str, Any]]:
    """Measure one search, the start of its processes included.

    Parameters
    ----------
    n
        Rows.
    quick
        Four candidates a model.

    Returns
    -------
    list of dict
        ``metric value unit target op``.
    """
    from training.crossval import STEP
    from training.folds import usable
    from training.tuning import Problem, candidates, search

    x, excess, t, products = rows(n)
    y = excess >= 0
    folds, _ = usable(t, y, n_splits=FOLDS)
    grid = {kind: candidates(kind, quick=quick) for kind in ("lr", "xgb")}
    with tempfile.TemporaryDirectory() as name:
        journal = Path(name)
        np.save(journal / "x.npy", x)
        problem = Problem(journal / "x.npy", y, excess, t, products, "f1", 7, "cpu", journal)
        began = time.perf_counter()
        search(problem, folds, grid, jobs=CORES)
        seconds = time.perf_counter() - began
        cpu: dict[str, float] = {}
        for path in journal.glob("*-*.json"):
            kind = path.name.split("-")[0]
            cpu[kind] = cpu.get(kind, 0.0) + float(json.loads(path.read_bytes())["cpu_s"])
    tried = sum(len(c.curves) for wanted in grid.values() for c in wanted)
    trees = [len(curve) * STEP for c in grid["xgb"] for curve in c.curves.values()]
    whole = n == ROWS and not quick
    said = f"{sum(map(len, grid.values()))} candidates × {len(folds)} folds, {n:,} rows × {FEATURES} features"
    return [
        {"metric": f"tune, {said}, {CORES} processes", "value": seconds, "unit": "s",
         **({"target": TARGET_S, "op": "<="} if whole else {})},
        *({"metric": f"CPU of the fits, {kind}", "value": s, "unit": "s"} for kind, s in sorted(cpu.items())),
        {"metric": "fits", "value": tried, "unit": "fits"},
        {"metric": "trees grown per fit of xgb, mean", "value": float(np.mean(trees)), "unit": "trees"},
        {"metric": "best PR-AUC on folds, lr", "value": max(c.result[1] for c in grid["lr"]), "unit": "PR-AUC"},
        {"metric": "best PR-AUC on folds, xgb", "value": max(c.result[1] for c in grid["xgb"]), "unit": "PR-AUC"},
    ]  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(run(int(sys.argv[1]) if sys.argv[1:] else ROWS), indent=2))
