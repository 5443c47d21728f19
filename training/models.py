"""The three models, each fitted to arrays and folded into what an artefact holds: bytes and an imputation.

Everything is fitted on the training block; validation stops the trees early. See :mod:`training.calibration` for what
else validation decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.errors import InsufficientDataError
from training.artefact import Imputation, Kind, Linear

Matrix = NDArray[np.float64]
Truth = NDArray[np.bool_]

ZSCORE_OF: Final = ("w60_realized_vol", "w60_mid_return_std", "w60_return_std")
"""Volatility of the last 60 s, in order of preference: the first that the service has is the baseline's one input."""
XGB: Final[dict[str, str | int | float]] = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "eval_metric": "aucpr",
    "max_bin": 64,
    "max_depth": 4,
    "eta": 0.08,
    "min_child_weight": 20.0,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "lambda": 5.0,
}
"""Shallow, shrunk trees: rows of neighbouring seconds nearly repeat each other, so there is far less data than rows."""
ROUNDS: Final = 300
PATIENCE: Final = 30
ONE_THREAD_ROWS: Final = 200_000
"""Training rows under which trees grow on one thread: with so little work per round, threads mostly wait for each other
(measured on two busy cores: 6 s of CPU with one thread, 22 s with two, for 26,000 rows)."""
LR_C: Final = 0.01
"""Inverse strength of the ridge penalty; strong, for the same reason."""


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


def logistic(x: Matrix, y: Truth, features: Sequence[str], *, seed: int) -> Fitted:
    """Fit a balanced logistic regression on standardised features, medians and missing indicators for what is missing.

    A column that is constant or always missing gets weight 0.
    """
    from sklearn.linear_model import LogisticRegression

    missing = np.isnan(x)
    known: NDArray[np.bool_] = np.asarray(~missing.all(axis=0))
    fill = np.zeros(x.shape[1])
    fill[known] = np.nanmedian(x[:, known], axis=0)
    filled = np.where(missing, fill, x)
    mean, scale = filled.mean(axis=0), filled.std(axis=0)
    usable = known & (scale > 1e-12 * np.abs(mean))
    mean, scale = np.where(usable, mean, 0.0), np.where(usable, scale, 1.0)
    indicated: NDArray[np.bool_] = np.asarray(known & missing.any(axis=0))
    design = np.hstack([((filled - mean) / scale)[:, usable], missing[:, indicated].astype(float)])
    model = LogisticRegression(C=LR_C, class_weight="balanced", max_iter=2000, random_state=seed)
    model.fit(design, y)
    weight, missing_weight = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    weight[usable] = model.coef_[0, : usable.sum()]
    missing_weight[indicated] = model.coef_[0, usable.sum() :]
    linear = Linear(
        fill.tolist(),
        mean.tolist(),
        scale.tolist(),
        weight.tolist(),
        missing_weight.tolist(),
        float(model.intercept_[0]),
    )
    names = list(features)
    imputation = Imputation(
        "median",
        {n: float(f) for n, f, k in zip(names, fill, known, strict=True) if k},
        [n for n, i in zip(names, indicated, strict=True) if i],
    )
    importance = {n: float(abs(w) + abs(m)) for n, w, m in zip(names, weight, missing_weight, strict=True)}
    params: dict[str, str | int | float] = {"C": LR_C, "class_weight": "balanced", "iterations": int(model.n_iter_[0])}
    return Fitted("lr", tuple(features), msgspec.json.encode(linear), imputation, params, importance)


def boosted(
    x: Matrix, y: Truth, x_val: Matrix, y_val: Truth, features: Sequence[str], *, seed: int, jobs: int
) -> Fitted:
    """Fit gradient-boosted trees, positives weighted by ``scale_pos_weight``, stopped early on validation PR-AUC."""
    import xgboost

    params: dict[str, str | int | float] = {**XGB, "seed": seed, "scale_pos_weight": float((~y).sum() / y.sum())}
    nthread = jobs or (1 if len(x) < ONE_THREAD_ROWS else 0)
    threads = {"nthread": nthread} if nthread else {}
    booster = xgboost.train(
        {**params, **threads},
        xgboost.DMatrix(x, y, feature_names=list(features)),
        num_boost_round=ROUNDS,
        evals=[(xgboost.DMatrix(x_val, y_val, feature_names=list(features)), "validation")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    best = int(booster.best_iteration) + 1
    booster = booster[:best]
    gain = booster.get_score(importance_type="gain")
    importance = {name: float(gain.get(name, 0.0)) for name in features}
    model = bytes(booster.save_raw("ubj"))
    return Fitted("xgb", tuple(features), model, Imputation("native"), {**params, "rounds": best}, importance)
