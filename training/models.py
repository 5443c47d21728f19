"""The three models, each fitted to arrays and folded into what an artefact holds: bytes and an imputation.

Everything is fitted on the rows given, which are the training block's. How many trees there are is decided by purged
folds inside it (:mod:`training.crossval`), or by validation where there is too little data for folds. See
:mod:`training.calibration` for what validation decides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.errors import InsufficientDataError, UsageError
from training.artefact import Imputation, Kind, Linear
from training.design import Design
from training.logit import Logit

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Truth = NDArray[np.bool_]
Hyper = Mapping[str, float | int | str]
"""Hyperparameters of one model; what is not named keeps its default."""

ZSCORE_OF: Final = ("w60_realized_vol", "w60_mid_return_std", "w60_return_std")
"""Volatility of the last 60 s, in order of preference: the first that the service has is the baseline's one input."""
XGB: Final[dict[str, str | int | float]] = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "eval_metric": "aucpr",
    "max_bin": 32,
    "max_depth": 3,
    "eta": 0.15,
    "min_child_weight": 20.0,
    "subsample": 0.8,
    "colsample_bytree": 0.25,
    "lambda": 5.0,
    "base_score": 0.5,
    "soft": 0.4,
}
"""Shallow, shrunk trees: rows of neighbouring seconds nearly repeat each other, so there is far less data than rows.
``soft`` is the width of :func:`softened`; the rest is XGBoost's."""
ROUNDS: Final = 300
PATIENCE: Final = 30
ONE_THREAD_ROWS: Final = 200_000
"""Training rows under which trees grow on one thread: with so little work per round, threads mostly wait for each other
(measured on two busy cores: 6 s of CPU with one thread, 22 s with two, for 26,000 rows)."""
LR: Final[dict[str, str | int | float]] = {"C": 0.1, "weight": "balanced", "scale": "log", "soft": 0.3}
"""C is the inverse strength of the ridge penalty; weight is balanced or none; scale is log (see
:class:`training.design.Design`) or plain; soft is the width of :func:`softened`."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model before calibration: its file's bytes, the features it reads, what it was told and what mattered to it."""

    kind: Kind
    features: tuple[str, ...]
    model: bytes
    imputation: Imputation
    params: dict[str, str | int | float]
    importance: dict[str, float] = field(default_factory=dict)


def zscore(x: Matrix, features: Sequence[str]) -> Fitted:
    """Fit the baseline: how many standard deviations the volatility of the last 60 s lies above its mean.

    Raises
    ------
    InsufficientDataError
        If none of :data:`ZSCORE_OF` is among the features, or it is constant or always missing.
    """
    name = next((n for n in ZSCORE_OF if n in features), None)
    if name is None:
        raise InsufficientDataError(f"baseline needs one of {list(ZSCORE_OF)}, the service has none; choose another")
    v = x[:, list(features).index(name)]
    v = v[~np.isnan(v)]
    if v.size == 0 or v.std() == 0:
        raise InsufficientDataError(f"baseline: {name} is constant or missing in training; replay a longer tape")
    fill = float(np.median(v))
    linear = Linear([fill], [float(v.mean())], [float(v.std())], [1.0], [0.0], 0.0)
    imputation = Imputation("median", {name: fill})
    return Fitted("zscore", (name,), msgspec.json.encode(linear), imputation, {"feature": name}, {name: 1.0})


def logistic(
    x: Matrix, y: Truth, features: Sequence[str], *, hyper: Hyper | None = None, excess: Vector | None = None
) -> Fitted:
    """Fit a logistic regression on standardised features, medians and missing indicators for what is missing.

    A column that is constant or always missing gets weight 0.

    Parameters
    ----------
    x, y
        float64[n, f], NaN where missing; bool[n], both kinds present.
    features
        Names of the columns.
    hyper
        What differs from :data:`LR`.
    excess
        As in :func:`softened`; None learns from the spikes alone.
    """
    from threadpoolctl import threadpool_limits

    chosen = merged("lr", hyper)
    design = Design.fit(x, log=chosen["scale"] == "log")
    model = solver(chosen)
    with threadpool_limits(1):  # sums in another order would end elsewhere; a run must be one that can be made again
        model.fit(design.apply(x), softened(y, excess, float(chosen["soft"])))
    linear = design.linear(model.coef_, model.intercept_)
    names = list(features)
    imputation = Imputation(
        "median",
        {n: float(f) for n, f, k in zip(names, design.fill, design.known, strict=True) if k},
        [n for n, i in zip(names, design.indicated, strict=True) if i],
    )
    both = zip(names, linear.weight, linear.missing_weight, strict=True)
    importance = {n: float(abs(w) + abs(m)) for n, w, m in both}
    params = {**chosen, "iterations": model.n_iter_}
    return Fitted("lr", tuple(features), msgspec.json.encode(linear), imputation, params, importance)


def solver(chosen: Hyper, *, max_iter: int = 50, tol: float = 1e-12) -> Logit:
    """Make the estimator that hyperparameters describe; it goes on from its last fit where C changes."""
    return Logit(float(chosen["C"]), balanced=chosen["weight"] == "balanced", max_iter=max_iter, tol=tol)


def softened(y: Truth, excess: Vector | None, width: float) -> Vector:
    """Make targets that tell by how much a horizon missed or passed its threshold: 1 / (1 + exp(−excess/width)).

    A horizon's volatility is estimated from sixty returns, so one just under tau and one just above are nearly the same
    event; and how far the others lie says which way the market leans, where spikes alone are a few dozen episodes.

    Parameters
    ----------
    y
        bool[n], spikes; returned as they are where width is 0 or excess None.
    excess
        float64[n], ln(sigma_fwd / tau).
    width
        In the unit of excess, >= 0.
    """
    if excess is None or not width > 0:
        return y.astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-np.clip(excess / width, -50, 50))))


def boosted(
    x: Matrix,
    y: Truth,
    features: Sequence[str],
    *,
    seed: int,
    jobs: int,
    hyper: Hyper | None = None,
    rounds: int = 0,
    validation: tuple[Matrix, Truth] | None = None,
    excess: Vector | None = None,
    device: str = "cpu",
) -> Fitted:
    """Fit gradient-boosted trees, positives weighted by ``scale_pos_weight``.

    Parameters
    ----------
    x, y
        float64[n, f], NaN where missing; bool[n], both kinds present.
    features
        Names of the columns.
    hyper
        What differs from :data:`XGB`.
    rounds
        Number of trees; 0 to stop early on ``validation``'s PR-AUC.
    excess
        As in :func:`softened`; None learns from the spikes alone.
    device
        As XGBoost has it.

    Raises
    ------
    UsageError
        If XGBoost can't use the device, or there are neither rounds nor validation rows.
    """
    import xgboost

    if not rounds and validation is None:
        raise UsageError("boosted: rounds is 0 and validation is None, one of them must be given")
    params = merged("xgb", hyper)
    said = {"feature_names": list(features), "max_bin": int(params["max_bin"])}
    table = xgboost.QuantileDMatrix(x, y, **said)
    aim(table, y, excess, float(params["soft"]))
    evals = []
    if not rounds and validation is not None:
        held = xgboost.DMatrix(*validation, feature_names=list(features))
        evals = [(held, "validation")]
    booster = grow(
        {**params, "seed": seed, "device": device, **threads(len(x), jobs)},
        table,
        rounds=rounds or ROUNDS,
        evals=evals,
    )
    best = rounds or int(booster.best_iteration) + 1
    booster = booster[:best]
    gain = booster.get_score(importance_type="gain")
    importance = {name: float(gain.get(name, 0.0)) for name in features}
    booster.set_param({"device": "cpu"})
    model = bytes(booster.save_raw("ubj"))
    told = {**params, **threads(len(x), jobs), "seed": seed, "scale_pos_weight": _weight(y), "rounds": best}
    return Fitted("xgb", tuple(features), model, Imputation("native"), told, importance)


def aim(table: Any, y: Truth, excess: Vector | None, width: float) -> None:
    """Set a table's labels: soft targets, spikes weighing ``scale_pos_weight`` times the rest.

    XGBoost's own parameter of that name only knows labels of 1, so this is done by labels and weights; for hard labels
    it comes to the same.
    """
    target = softened(y, excess, width)
    weight = _weight(y) * target + (1 - target)
    table.set_info(label=_weight(y) * target / weight, weight=weight)


def grow(
    params: Mapping[str, Any],
    table: Any,
    *,
    rounds: int,
    evals: Sequence[Any] = (),
    patience: int = PATIENCE,
    **more: Any,
) -> Any:
    """Train a booster on a table that :func:`aim` has set; with rows to evaluate, the last of them stop it early.

    Raises
    ------
    UsageError
        If XGBoost can't use the device.
    """
    import xgboost

    return xgboost.train(
        own(params),
        table,
        num_boost_round=rounds,
        evals=list(evals),
        early_stopping_rounds=patience if evals else None,
        verbose_eval=False,
        **{"maximize": True, **more} if evals else {},
    )


def own(params: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what XGBoost itself understands.

    Raises
    ------
    UsageError
        If this XGBoost can't use the device.
    """
    import xgboost

    device = str(params.get("device", "cpu"))
    if device != "cpu" and not xgboost.build_info().get("USE_CUDA"):  # it would warn and go on without
        raise UsageError(
            f"--device is {device!r}, this XGBoost is built without CUDA; must be cpu, or install xgboost in "
            "place of xgboost-cpu"
        )
    return {name: value for name, value in params.items() if name != "soft"}


def threads(rows: int, jobs: int) -> dict[str, int]:
    """Parameter ``nthread`` for so many rows; a number always, since another one sums histograms in another order."""
    return {"nthread": jobs or (1 if rows < ONE_THREAD_ROWS else os.cpu_count() or 1)}


def merged(kind: str, hyper: Hyper | None) -> dict[str, str | int | float]:
    """Complete hyperparameters with the defaults of a kind.

    Raises
    ------
    UsageError
        If one is not known.
    """
    defaults = {"lr": LR, "xgb": XGB}.get(kind, {})
    unknown = sorted(set(hyper or {}) - set(defaults))
    if unknown:
        raise UsageError(f"hyperparameters {unknown} of {kind} are unknown, must be among {sorted(defaults)}")
    return {**defaults, **(hyper or {})}


def _weight(y: Truth) -> float:
    return float((~y).sum() / y.sum())
