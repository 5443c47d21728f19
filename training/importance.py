"""What a model looks at: gain, and the exact share of every feature in every forecast.

Contributions are in log-odds before calibration and sum to the margin, so they can be checked: TreeSHAP as XGBoost
computes it for trees (Lundberg and others, "Consistent individualized feature attribution", 2018), and for a linear
model, where they are simply weight × (value − mean), to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from training.artefact import Artefact, Linear, signed_log

ROWS: Final = 2_000
"""Rows that contributions are averaged over, spread evenly: the means are stable long before."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Importance of each feature.

    Attributes
    ----------
    features
        Names, in the order of the manifest.
    gain
        float64[f]: mean gain of a tree's splits; of a linear model, |weight| on the standardised scale.
    contribution
        float64[f]: mean |contribution| to the margin.
    direction
        float64[f] in [−1, 1]: rank correlation of a feature with its contribution; NaN where either is constant.
    worst_sum
        Greatest difference between a row's margin and the sum of its contributions.
    rows
        Rows looked at.
    """

    features: tuple[str, ...]
    gain: NDArray[np.float64]
    contribution: NDArray[np.float64]
    direction: NDArray[np.float64]
    worst_sum: float
    rows: int

    def ranked(self, top: int | None = None) -> list[tuple[str, float, float, float | None]]:
        """Name, contribution, gain and direction, the greatest contribution first."""
        order = sorted(range(len(self.features)), key=lambda i: (-self.contribution[i], self.features[i]))[:top]
        return [
            (
                self.features[i],
                float(self.contribution[i]),
                float(self.gain[i]),
                float(self.direction[i]) if np.isfinite(self.direction[i]) else None,
            )
            for i in order
        ]


def importance(artefact: Artefact, x: NDArray[np.float64]) -> Importance:
    """Explain the forecasts of some rows.

    Parameters
    ----------
    artefact
        Any kind.
    x
        float64[n, f], columns in the order of the manifest's features; at most :data:`ROWS` of them are used.
    """
    x = x[:: max(1, len(x) // ROWS)][:ROWS]
    features = tuple(artefact.manifest.features)
    if artefact.manifest.kind == "xgb":
        gain, parts, base = _trees(artefact, x)
    else:
        gain, parts, base = _linear(artefact, x)
    worst = float(np.abs(parts.sum(axis=1) + base - artefact.margin(x)).max()) if len(x) else 0.0
    direction = np.array([_rank_correlation(x[:, i], parts[:, i]) for i in range(len(features))])
    mean = np.abs(parts).mean(axis=0) if len(x) else np.zeros(len(features))
    return Importance(features, gain, mean, direction, worst, len(x))


def _trees(artefact: Artefact, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(artefact.model))
    names = list(artefact.manifest.features)
    booster.feature_names = names
    score = booster.get_score(importance_type="gain")
    gain = np.array([float(score.get(name, 0.0)) for name in names])
    if not len(x):
        return gain, np.empty((0, len(names))), 0.0
    found = booster.predict(xgboost.DMatrix(x, feature_names=names), pred_contribs=True).astype(np.float64)
    return gain, found[:, :-1], float(found[0, -1])


def _linear(artefact: Artefact, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    m = msgspec.json.decode(artefact.model, type=Linear)
    weight, missing_weight = np.array(m.weight), np.array(m.missing_weight)
    missing = np.isnan(x)
    filled = np.where(missing, m.fill, x)
    unit = np.array(m.log or [0.0] * len(weight))
    logged = unit > 0
    filled[:, logged] = signed_log(filled[:, logged], unit[logged])
    z = (filled - m.mean) / np.array(m.scale)
    parts = z * weight + missing * missing_weight
    centre = parts.mean(axis=0) if len(x) else np.zeros(len(weight))
    return np.abs(weight) + np.abs(missing_weight), parts - centre, float(centre.sum() + m.intercept)


def _rank_correlation(value: NDArray[np.float64], part: NDArray[np.float64]) -> float:
    known = np.isfinite(value)
    if known.sum() < 3:
        return float("nan")
    a, b = (_ranks(v[known]) for v in (value, part))
    spread = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread > 0 else float("nan")


def _ranks(v: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)
