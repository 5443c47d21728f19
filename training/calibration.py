"""What validation decides after the fit: the sigmoid that makes probabilities true, and where to cut them.

Balanced weights make raw probabilities many times too large; the sigmoid brings them back and keeps the order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.artefact import Calibration

FLAT: Final = 1e-3
"""Least slope per standard deviation of the margin. Where validation finds no skill, or the opposite of skill, the
probability becomes the prevalence; the order of a model is never turned round."""


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


def best_f1(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Find the cut ``p >= threshold`` of the greatest F1; of equal ones the highest.

    Parameters
    ----------
    p
        float64[n], probabilities.
    y
        bool[n], at least one True.

    Examples
    --------
    >>> best_f1(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.35
    """
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    hits = np.cumsum(y[order])
    last = np.r_[ranked[1:] != ranked[:-1], True]  # equal probabilities are on one side of any cut
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + int(y.sum()))
    return float(ranked[int(np.argmax(np.where(last, f1, -1.0)))])
