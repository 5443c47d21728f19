"""What validation decides after the fit: the curve that makes probabilities true.

Balanced weights make raw probabilities many times too large; a sigmoid or an isotonic curve brings them back. Both keep
the order of a model's forecasts, isotonic without ties (see :func:`isotonic`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.artefact import Calibration

FLAT: Final = 1e-3
"""Least slope per standard deviation of the margin. Where validation finds no skill, or the opposite of skill, the
probability becomes the prevalence; the order of a model is never turned round."""

STRETCHES: Final = 4
"""Stretches of time into which :func:`preferred` cuts."""


def sigmoid(margin: NDArray[np.float64], y: NDArray[np.bool_]) -> Calibration:
    """Fit Platt's sigmoid, with his smoothed targets, so that a separable validation block stays finite.

    Parameters
    ----------
    margin
        float64[n], log-odds as the model gives them.
    y
        bool[n], spikes; both kinds present.

    Notes
    -----
    Source: Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    from scipy.optimize import minimize

    spread = float(margin.std())
    scale, centre = (spread if spread > 0 else 1.0), float(margin.mean())
    z = (margin - centre) / scale
    n_pos, n_neg = int(y.sum()), int((~y).sum())
    target = np.where(y, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))

    def loss(ab: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        u = ab[0] * z + ab[1]
        p = 1 / (1 + np.exp(-np.clip(u, -700, 700)))
        value = np.mean(np.logaddexp(0, u) - target * u)
        return float(value), np.array([np.mean((p - target) * z), np.mean(p - target)])

    start = np.array([1.0, np.log(target.mean() / (1 - target.mean()))])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(FLAT, None), (None, None)])
    slope, intercept = float(best.x[0]), float(best.x[1])
    return Calibration("sigmoid", slope / scale, intercept - slope * centre / scale)


def isotonic(margin: NDArray[np.float64], y: NDArray[np.bool_]) -> Calibration:
    """Fit centred isotonic regression: straight lines, in log-odds, through the centres of the pooled stretches.

    Parameters
    ----------
    margin
        float64[n], log-odds as the model gives them.
    y
        bool[n], spikes; both kinds present.

    Notes
    -----
    The steps of plain isotonic regression would tie what the model tells apart. Source of the centring: Oron and
    Flournoy, "Centered isotonic regression", 2017. A stretch without a spike, or of nothing else, stands at half a
    row's share from 0 or 1.
    """
    from scipy.optimize import isotonic_regression

    value, where, count = np.unique(margin, return_inverse=True, return_counts=True)
    hits = np.bincount(where, weights=y)
    blocks = isotonic_regression(hits / count, weights=count).blocks
    n, spikes = np.add.reduceat(count, blocks[:-1]), np.add.reduceat(hits, blocks[:-1])
    centre = np.add.reduceat(value * count, blocks[:-1]) / n
    p = np.clip(spikes / n, 0.5 / (n + 1), (n + 0.5) / (n + 1))
    log_odds = np.log(p) - np.log1p(-p)
    rising = np.r_[True, log_odds[1:] > np.maximum.accumulate(log_odds)[:-1]]
    rising &= np.r_[True, np.diff(centre) > 0]
    spread = float(margin.std())
    slope = FLAT / (spread if spread > 0 else 1.0)
    return Calibration("isotonic", slope, 0.0, centre[rising].tolist(), log_odds[rising].tolist())


def preferred(margin: NDArray[np.float64], y: NDArray[np.bool_], t_ns: NDArray[np.int64]) -> Calibration:
    """Fit the curve that these rows prefer: of the two, the one of less log loss on stretches held out.

    Parameters
    ----------
    margin, y
        As :func:`sigmoid`.
    t_ns
        int64[n], times of the rows, ns UTC.
    """
    part = np.searchsorted(np.quantile(t_ns, np.arange(1, STRETCHES) / STRETCHES), t_ns, side="right")
    losses = {sigmoid: 0.0, isotonic: 0.0}
    for held in (part == i for i in range(STRETCHES)):
        if not held.any() or not 0 < y[~held].sum() < (~held).sum():
            continue
        for fit in losses:
            z = fit(margin[~held], y[~held]).apply(margin[held])
            losses[fit] += float(np.sum(np.logaddexp(0, z) - y[held] * z))
    return isotonic(margin, y) if losses[isotonic] < losses[sigmoid] else sigmoid(margin, y)


def best_f1(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Find the cut ``p >= threshold`` of the greatest F1; see :class:`training.objectives.F1`."""
    from training.objectives import F1

    return F1().threshold(p, y, np.zeros(len(p), np.int64))
