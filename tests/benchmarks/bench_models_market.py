"""How much of what can be foreseen the models foresee, on generated days whose best forecast is known.

Ten days of the generated market are trained on (eight train, two validation: calibration, choice of the model and of
the best baseline), with the project's own thresholds, folds, fits and calibration; rows come from the kernel without
tables or Feast between. Then five sealed days, of seeds that nothing was developed on, are scored once. Best is a
particle filter that knows the process and its parameters and sees the same stream; the oracle knows the hidden state.

Caveats: a row every 20 s to train, every 10 s to test. The filter's PR-AUC is 0.001 to 0.002 short of that of one with
many more particles. What holds on a generated market is no evidence about a real one. Days are kept in the system's
temporary folder, 40 MB each, and made again where market or kernel changed; that takes five minutes on two cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ingestion.market import PRODUCTS
from tests.oracle.market_days import DAY_S, FEATURES, Day, S, days
from tests.oracle.market_filter import forecast, horizon

SEALED = (101, 102, 103, 104, 105)
TRAIN = tuple(range(11, 19))
VALIDATION = (19, 20)
TRAIN_STEP, TEST_STEP = 4, 2
"""Rows of a day that are taken: each so-manyth."""
QUICK = {
    "sealed": (1,), "train": (11, 12), "validation": (13,), "seconds": 4 * 3600, "products": ("BTC-USD",),
    "targets": False,
}  # fmt: skip
Figures = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was trained, and the labelled rows of the sealed days.

    Attributes
    ----------
    kind, score
        Model that validation prefers, and what gives its probabilities.
    validation
        PR-AUC on validation of each model.
    rivals
        Baselines, the best of them chosen on validation.
    sealed
        Rows with event_time_ns, session, tau and spike; ``row`` numbers them in the stacked days.
    tau
        By product.
    """

    kind: str
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    validation: dict[str, float]
    rivals: Any
    sealed: pl.DataFrame
    tau: dict[str, float]


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Probabilities by name, truth, time and seed of each row of the sealed days, in the order of time."""

    p: dict[str, NDArray[np.float64]]
    y: NDArray[np.bool_]
    t_ns: NDArray[np.int64]
    seed: NDArray[np.int64]


def run(
    sealed: Sequence[int] = SEALED,
    train: Sequence[int] = TRAIN,
    validation: Sequence[int] = VALIDATION,
    products: Sequence[str] = PRODUCTS,
    seconds: int = DAY_S,
    targets: bool = True,
) -> Figures:
    """Train, score the sealed days, and compare with the filter; without ``targets`` figures are not judged."""
    every = days([*train, *validation, *sealed], products=products, seconds=seconds)
    n_learn = (len(train) + len(validation)) * len(products)
    learnt = learn(every, len(train) * len(products), n_learn)
    found = forecasts(every[n_learn:], learnt, sealed, np.concatenate([d.x for d in every])[learnt.sealed["row"]])
    results = [*shares(found, learnt), *calibration(found)]
    return results if targets else [{k: v for k, v in r.items() if k not in ("target", "op")} for r in results]


def learn(every: Sequence[Day], n_train: int, n_learn: int) -> Learnt:
    """Train on the first days as ``volspike train`` does on sessions, from rows instead of tables.

    Parameters
    ----------
    every
        Days of train, then of validation, then sealed.
    n_train, n_learn
        How many are for training; for training and validation together.
    """
    from training.artefact import Artefact
    from training.datasets import Dataset
    from training.fitting import Material, make
    from training.folds import usable
    from training.options import TrainOptions
    from training.scoring import VOLATILITIES, rivals
    from training.spikes import spikes

    blocks = every[:n_train], every[n_train:n_learn], every[n_learn:]
    named = [tuple(dict.fromkeys(session(day) for day in block)) for block in blocks]
    options = TrainOptions(
        train_sessions=named[0], val_sessions=named[1], test_sessions=named[2], tau=None, percentile=95.0, jobs=1,
        experiment="bench",
    )  # fmt: skip
    found = spikes(labels(every, n_learn), options)
    frame = found.frame.filter(pl.col("block") != "test")
    x = np.concatenate([day.x for day in every])
    train = frame.filter(pl.col("block") == "train")
    folds, notes = usable(train["event_time_ns"].to_numpy(), train["spike"].to_numpy(), purge_s=options.purge_s)
    counts = found.counts()
    part = Material(Dataset(x[frame["row"]], FEATURES, frame), found, options, {}, counts, folds, notes)
    made = {kind: make(kind, part) for kind in ("lr", "xgb")}
    validation = {kind: one.manifest.metrics["validation"]["pr_auc"] or 0.0 for kind, one in made.items()}
    best = max(validation, key=lambda kind: validation[kind])
    scorer = Artefact(made[best].manifest, "", made[best].fitted.model)
    volatilities = part.data.x[:, [FEATURES.index(name) for name in VOLATILITIES]]
    test = found.frame.filter(pl.col("block") == "test")
    return Learnt(best, scorer.predict_proba, validation, rivals(frame, volatilities), test, found.tau)


def labels(every: Sequence[Day], n_learn: int) -> pl.DataFrame:
    """Labelled rows of all days, thinned, in the order of time; ``row`` is the number in the stacked days."""
    parts, first = [], 0
    for i, day in enumerate(every):
        rows = np.arange(len(day.t_ns))[:: TRAIN_STEP if i < n_learn else TEST_STEP]
        parts.append(
            pl.DataFrame(
                {
                    "product_id": [day.product] * len(rows),
                    "session": [session(day)] * len(rows),
                    "event_time_ns": day.t_ns[rows],
                    "coverage_s": np.full(len(rows), 900.0),
                    "sigma_fwd": day.sigma_fwd[rows],
                    "row": first + rows,
                }
            )
        )
        first += len(day.t_ns)
    return pl.concat(parts).sort("event_time_ns", "product_id")


def session(day: Day) -> str:
    """Session id of a day's tape; its products share it."""
    return f"5eed{day.start_ns // S:012x}"


def forecasts(unseen: Sequence[Day], learnt: Learnt, seeds: Sequence[int], x: NDArray[np.float64]) -> Forecasts:
    """Score the sealed rows by the model, the baseline, the filter and the oracle."""
    from training.scoring import VOLATILITIES

    rows = learnt.sealed
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        laws = dict(zip(learnt.tau, pool.map(horizon, learnt.tau), strict=True))
        tau_of, law_of = ([of[day.product] for day in unseen] for of in (learnt.tau, laws))
        best = list(pool.map(forecast, unseen, tau_of, law_of))
    keyed = pl.concat(
        pl.DataFrame({"event_time_ns": day.t_ns, "filter": p, "oracle": hidden}).with_columns(
            product_id=pl.lit(day.product)
        )
        for day, (p, hidden) in zip(unseen, best, strict=True)
    )
    joined = rows.join(keyed, on=("product_id", "event_time_ns"), how="left", maintain_order="left")
    of_session = dict(zip(dict.fromkeys(session(d) for d in unseen), seeds, strict=True))
    volatilities = x[:, [FEATURES.index(name) for name in VOLATILITIES]]
    tau = rows["tau"].to_numpy()
    rivals = learnt.rivals
    return Forecasts(
        {
            "model": learnt.score(x),
            "baseline": rivals.forecast(rivals.best, volatilities, tau),
            "filter": joined["filter"].to_numpy(),
            "oracle": joined["oracle"].to_numpy(),
        },
        rows["spike"].to_numpy(),
        rows["event_time_ns"].to_numpy(),
        rows["session"].replace_strict(of_session, return_dtype=pl.Int64).to_numpy(),
    )


def shares(found: Forecasts, learnt: Learnt) -> Figures:
    """Share of what can be foreseen, by day and over all, and the paired difference to the baseline."""
    from training.bootstrap import paired

    by_day = [share(found, found.seed == seed) for seed in np.unique(found.seed)]
    whole = share(found, np.ones(len(found.y), np.bool_))
    gap = paired("pr_auc", found.p["model"], found.p["baseline"], found.y, found.t_ns)
    name, rival = learnt.kind, learnt.rivals.best
    out: Figures = [
        {"metric": f"{name}: share of (best − prevalence) of PR-AUC, mean of {len(by_day)} sealed days",
         "value": float(np.mean([one["share"] for one in by_day])), "unit": "share", "target": 0.85, "op": ">="},
        {"metric": f"{name}: the same, least of the days", "value": min(one["share"] for one in by_day),
         "unit": "share"},
        {"metric": f"{name} less {rival}, the best baseline: lower end of the paired 95 % interval of PR-AUC",
         "value": gap.low if gap else float("nan"), "unit": "PR-AUC", "target": 1e-6, "op": ">="},
        {"metric": f"{name} less {rival}: difference", "value": gap.difference if gap else float("nan"),
         "unit": "PR-AUC"},
        *({"metric": f"PR-AUC of {kind} on validation", "value": value, "unit": "PR-AUC"}
          for kind, value in learnt.validation.items()),
        {"metric": "prevalence, all days", "value": whole["prevalence"], "unit": "share"},
    ]  # fmt: skip
    said = {"model": name, "baseline": rival, "filter": "best: particle filter", "oracle": "oracle of the hidden state"}
    for seed, one in zip([*map(str, np.unique(found.seed)), "all"], [*by_day, whole], strict=True):
        where = "all days" if seed == "all" else f"seed {seed}"
        out += [
            {"metric": f"PR-AUC, {where}: {said[key]}", "value": one[key], "unit": "PR-AUC"} for key in said
        ]
    return out


def share(found: Forecasts, rows: NDArray[np.bool_]) -> dict[str, float]:
    """PR-AUC of each forecast on some rows, the prevalence, and the share of what lies between that and best."""
    from sklearn.metrics import average_precision_score

    y = found.y[rows]
    out = {name: float(average_precision_score(y, p[rows])) for name, p in found.p.items()}
    prevalence = float(y.mean())
    return {**out, "prevalence": prevalence, "share": (out["model"] - prevalence) / (out["filter"] - prevalence)}


def calibration(found: Forecasts) -> Figures:
    """Brier skill, slope and error of calibration over the sealed days, and the worst of them a day."""
    from training.metrics import figures

    whole = figures(found.p["model"], found.y)
    by_day = [figures(found.p["model"][d], found.y[d]) for d in (found.seed == s for s in np.unique(found.seed))]
    slopes = [float(f["calibration_slope"]) for f in by_day]
    ratios = [float(f["ece_equal_mass"]) / float(f["prevalence"]) for f in by_day]
    return [
        {"metric": "Brier skill, least of the days", "value": min(float(f["brier_skill"]) for f in by_day), "unit": "1",
         "target": 1e-6, "op": ">="},
        {"metric": "Brier skill", "value": whole["brier_skill"], "unit": "1"},
        {"metric": "calibration slope, lower bound", "value": whole["calibration_slope"], "unit": "1", "target": 0.8,
         "op": ">="},
        {"metric": "calibration slope, upper bound", "value": whole["calibration_slope"], "unit": "1", "target": 1.25,
         "op": "<="},
        {"metric": "calibration slope, least of the days", "value": min(slopes), "unit": "1"},
        {"metric": "calibration slope, greatest of the days", "value": max(slopes), "unit": "1"},
        {"metric": "equal-mass ECE / prevalence", "value": whole["ece_equal_mass"] / whole["prevalence"], "unit": "1",
         "target": 0.25, "op": "<="},
        {"metric": "equal-mass ECE / prevalence, greatest of the days", "value": max(ratios), "unit": "1"},
        {"metric": "calibration slope of the particle filter: 1 where it is right",
         "value": figures(np.clip(found.p["filter"], 0, 1), found.y)["calibration_slope"], "unit": "1"},
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run(**(QUICK if "--quick" in sys.argv else {})), indent=2))
