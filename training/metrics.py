"""Figures of probabilistic forecasts: always with the prevalence beside them, None where they mean nothing.

All figures come from :func:`measure`, which takes a weight per row: so the resamples of
:mod:`training.bootstrap`, which are weights, are measured by the code that measures the rows themselves.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

Probability = NDArray[np.float64]
Truth = NDArray[np.bool_]
Weights = NDArray[np.float64]
Codes = NDArray[np.int32]

BLOCK_S: Final = 900
"""Length of the blocks of time that count as separate evidence, seconds."""
ECE_BINS: Final = 10
RECALL: Final = 0.5
CLIP: Final = 1e-15
"""Probabilities are kept this far from 0 and 1 where a logarithm is taken, as scikit-learn does."""
STATS: Final = (
    "pr_auc", "roc_auc", "precision_at_recall50", "ece_equal_mass", "prevalence", "brier", "brier_skill", "log_loss",
    "f1", "precision", "recall", "alarm_rate", "calibration_slope", "calibration_intercept",
)  # fmt: skip
"""What :func:`measure` returns, in its order."""
_RANKING, _SUMS = 4, 8  # the first four need the order of p, the next eight only sums, the last two a fit
_NS: Final = 1_000_000_000


class Forecast:
    """Probabilities and truth, sorted once, to be measured under many weights.

    Parameters
    ----------
    p, y
        float64[n] probabilities and bool[n] spikes.
    threshold
        Decision ``p >= threshold``.
    codes
        int32[n], group of each row (0 … groups − 1): weights are given per group. None: one group.
    weights
        float64[n] ≥ 0, weight of each row; None: 1.
    """

    def __init__(
        self,
        p: Probability,
        y: Truth,
        threshold: float = 0.5,
        *,
        codes: Codes | None = None,
        weights: Weights | None = None,
    ) -> None:
        p = np.asarray(p, np.float64)
        y = np.asarray(y, np.bool_)
        if p.ndim != 1 or p.shape != y.shape:
            raise ValueError(f"p and y must be vectors of one length, were {p.shape} and {y.shape}")
        if np.isnan(p).any() or (len(p) and not (p.min() >= 0 and p.max() <= 1)):
            raise ValueError("p must be probabilities in [0, 1] without NaN")
        order = np.argsort(-p, kind="stable")
        self.p = np.ascontiguousarray(p[order])
        self.y = np.ascontiguousarray(y[order])
        self.codes = np.zeros(len(p), np.int32) if codes is None else np.ascontiguousarray(codes[order], np.int32)
        self.groups = int(self.codes.max()) + 1 if len(p) else 1
        self.weights = np.ones(len(p)) if weights is None else np.ascontiguousarray(weights[order], np.float64)
        self.last = np.r_[self.p[1:] != self.p[:-1], True] if len(p) else np.empty(0, np.bool_)
        clipped = np.clip(self.p, CLIP, 1 - CLIP)
        self.logit = np.log(clipped) - np.log1p(-clipped)
        truth = self.y.astype(np.float64)
        alarm = (self.p >= threshold).astype(np.float64)
        per_row = (
            np.ones(len(p)),
            truth,
            (self.p - truth) ** 2,
            -np.where(self.y, np.log(clipped), np.log1p(-clipped)),
            alarm,
            alarm * truth,
        )
        # sums of these per group: a resample then costs a product of small matrices
        self.sums = np.stack(
            [np.bincount(self.codes, self.weights * v, minlength=self.groups) for v in per_row], axis=1
        )

    def measure(self, multipliers: Weights | None = None, *, fit: bool = True, ranking: bool = True) -> Weights:
        """Measure under several weightings of the groups.

        Parameters
        ----------
        multipliers
            float64[m, groups] ≥ 0; None: one weighting, all ones.
        fit, ranking
            Whether to fit calibration slope and intercept, and to walk the ranking (pr_auc, roc_auc, …); left out,
            those are NaN.

        Returns
        -------
        float64[m, len(STATS)], NaN where a figure is undefined.
        """
        m = np.ones((1, self.groups)) if multipliers is None else np.ascontiguousarray(multipliers, np.float64)
        out = np.full((len(m), len(STATS)), np.nan)
        if not len(self.p):
            return out
        if ranking:
            _rank(self.p, self.y, self.last, self.codes, self.weights, m, out)
        total, spikes, square, loss, alarms, hits = (m @ self.sums).T
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = spikes / total
            both = (spikes > 0) & (spikes < total)
            brier = square / total
            out[:, _RANKING : _RANKING + _SUMS] = np.stack(
                [
                    rate,
                    brier,
                    np.where(both, 1 - brier / (rate * (1 - rate)), np.nan),
                    np.where(both, loss / total, np.nan),
                    np.where(alarms + spikes > 0, 2 * hits / (alarms + spikes), np.nan),
                    np.where(alarms > 0, hits / alarms, np.nan),
                    np.where(spikes > 0, hits / spikes, np.nan),
                    alarms / total,
                ],
                axis=1,
            )
        if fit and len(self.p) and self.logit[0] > self.logit[-1]:
            _slopes(self.logit, self.y, self.codes, self.weights, m, out[:, _RANKING + _SUMS :])
        return out


def figures(
    p: Probability,
    y: Truth,
    threshold: float = 0.5,
    *,
    t_ns: NDArray[np.int64] | None = None,
    episodes: int | None = None,
    weights: Weights | None = None,
) -> dict[str, float | None]:
    """Measure probabilities against the truth.

    Parameters
    ----------
    p, y
        float64[n] probabilities and bool[n] spikes.
    threshold
        Decision ``p >= threshold``.
    t_ns
        int64[n], times of the rows, ns UTC; adds ``blocks``, the number of quarters of an hour that hold a row.
    episodes
        Separate spike episodes among the rows, told on.
    weights
        float64[n] ≥ 0; None: 1.

    Returns
    -------
    dict
        pr_auc (average precision), lift (over prevalence), roc_auc, precision_at_recall50, ece_equal_mass (ten bins of
        equal mass; equal probabilities stay in one bin), prevalence, brier, brier_skill (against the prevalence),
        log_loss (nats), f1, precision, recall, calibration_slope and _intercept (of the truth on the log-odds; 1 and 0
        are perfect), rows, spikes, threshold. None where a figure is undefined: no spike, nothing but spikes, no alarm.

    Raises
    ------
    ValueError
        If p isn't float64[n] in [0, 1], or y of another length.
    """
    values = Forecast(p, y, threshold, weights=weights).measure()[0]
    out: dict[str, float | None] = {
        name: float(value) if math.isfinite(value) else None for name, value in zip(STATS, values, strict=True)
    }
    pr_auc, prevalence = out["pr_auc"], out["prevalence"]
    out["lift"] = pr_auc / prevalence if pr_auc is not None and prevalence else None
    out["rows"], out["spikes"] = float(len(y)), float(np.sum(y))
    out["threshold"] = float(threshold)
    if episodes is not None:
        out["episodes"] = float(episodes)
    if t_ns is not None:
        out["blocks"] = float(len(np.unique(np.asarray(t_ns) // (BLOCK_S * _NS))))
    return out


@njit(cache=True, nogil=True)
def _rank(p, y, last, codes, weights, multipliers, out):  # type: ignore[no-untyped-def]  # numba carries no types
    """Fill pr_auc, roc_auc, precision_at_recall50 and ece_equal_mass of each weighting in one walk down the ranking."""
    n = len(p)
    for r in range(len(multipliers)):
        m = multipliers[r]
        total = positive = 0.0
        for i in range(n):
            w = weights[i] * m[codes[i]]
            total += w
            if y[i]:
                positive += w
        negative = total - positive
        if not total > 0:
            continue
        hits = seen = area = precision_sum = at_recall = 0.0
        found = False
        group = group_hits = group_p = 0.0
        bin_of, bin_p, bin_hits, gap = 0, 0.0, 0.0, 0.0
        for i in range(n):
            w = weights[i] * m[codes[i]]
            group += w
            group_p += w * p[i]
            if y[i]:
                group_hits += w
            if not last[i]:
                continue
            if group > 0:
                area += (group - group_hits) * (hits + group_hits / 2)
                # equal probabilities are one group: in the bin of its middle
                place = min(int(ECE_BINS * (seen + group / 2) / total), ECE_BINS - 1)
                if place != bin_of:
                    gap += abs(bin_p - bin_hits)
                    bin_of, bin_p, bin_hits = place, 0.0, 0.0
                bin_p += group_p
                bin_hits += group_hits
                hits += group_hits
                seen += group
                precision_sum += group_hits * hits / seen
                if not found and positive > 0 and hits >= RECALL * positive * (1 - 1e-12):
                    found = True
                    at_recall = hits / seen
            group = group_hits = group_p = 0.0
        gap += abs(bin_p - bin_hits)
        out[r, 3] = gap / total
        if positive > 0 and negative > 0:
            out[r, 0] = precision_sum / positive
            out[r, 1] = area / (positive * negative)
            out[r, 2] = at_recall


@njit(cache=True, nogil=True)
def _slopes(logit, y, codes, weights, multipliers, out):  # type: ignore[no-untyped-def]  # numba carries no types
    """Fit y ~ sigmoid(a·logit + b) by Newton's method with halved steps, each weighting from where the last ended."""
    n = len(logit)
    start_a, start_b = 1.0, 0.0
    for r in range(len(multipliers)):
        m = multipliers[r]
        a, b = start_a, start_b
        best = np.inf
        step_a = step_b = 0.0
        done = False
        for _ in range(60):
            loss = g_a = g_b = h_aa = h_ab = h_bb = 0.0
            for i in range(n):
                w = weights[i] * m[codes[i]]
                if w == 0.0:
                    continue
                z = a * logit[i] + b
                e = math.exp(-abs(z))
                q = 1 / (1 + e) if z >= 0 else e / (1 + e)
                loss += w * (math.log1p(e) + max(z, 0.0) - (z if y[i] else 0.0))
                d = w * (q - (1.0 if y[i] else 0.0))
                v = w * q * (1 - q)
                g_a += d * logit[i]
                g_b += d
                h_aa += v * logit[i] * logit[i]
                h_ab += v * logit[i]
                h_bb += v
            if loss > best * (1 + 1e-12):
                step_a, step_b = step_a / 2, step_b / 2
                a, b = a - step_a, b - step_b
                continue
            det = h_aa * h_bb - h_ab * h_ab
            if not det > 1e-12 * h_aa * h_bb:
                break  # one probability, or perfectly separated
            best = loss
            d_a = -(h_bb * g_a - h_ab * g_b) / det
            d_b = -(h_aa * g_b - h_ab * g_a) / det
            step_a, step_b = d_a, d_b
            a, b = a + d_a, b + d_b
            if abs(d_a) < 1e-9 and abs(d_b) < 1e-9 * (1 + abs(b)):
                done = True
                break
        if done:
            out[r, 0], out[r, 1] = a, b
            start_a, start_b = a, b
