"""Points of the curves that a report draws, thinned to what a screen can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.metrics import BLOCK_S, Forecast, Probability, Truth

POINTS: Final = 400
"""Points kept of a curve: more than its drawing has pixels to tell apart."""
RATIOS: Final = tuple(float(r) for r in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100))
"""What a missed spike costs, in false alarms."""
SHIFTS_S: Final = (-3600, -1800, -900, -600, -300, -120, -60, -30, -10, 0, 10, 30, 60, 120, 300, 600, 900, 1800, 3600)
NULLS: Final = 200
_NS: Final = 1_000_000_000
Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability curve: mean probability, share of spikes with its 95 % interval, rows."""

    forecast: float
    share: float
    low: float
    high: float
    rows: int


def precision_recall(p: Probability, y: Truth) -> Points:
    """(recall, precision) from the highest cut to the lowest; no points without a spike."""
    _, alarms, hits = _ranked(p, y)
    return [] if not y.any() else _thin(hits / max(int(y.sum()), 1), hits / alarms)


def roc(p: Probability, y: Truth) -> Points:
    """(false-positive rate, recall) from the highest cut to the lowest; no points where y has one kind only."""
    if not 0 < y.sum() < len(y):
        return []
    _, alarms, hits = _ranked(p, y)
    quiet = len(y) - int(y.sum())
    return _thin(np.r_[0.0, (alarms - hits) / quiet], np.r_[0.0, hits / int(y.sum())])


def reliability(p: Probability, y: Truth, t_ns: NDArray[np.int64], bins: int = 10) -> list[Bin]:
    """Share of spikes by forecast, in bins of equal mass; to the intervals a quarter of an hour is one observation."""
    order = np.argsort(p, kind="stable")
    out = []
    for rows in np.array_split(order, min(bins, max(len(np.unique(p)), 1))):
        if not len(rows):
            continue
        share = float(y[rows].mean())
        _, block, counts = np.unique(t_ns[rows] // (BLOCK_S * _NS), return_inverse=True, return_counts=True)
        groups = len(counts)
        residual = np.bincount(block, y[rows] - share)
        spread = np.sqrt((residual**2).sum() * groups / max(groups - 1, 1)) / len(rows)
        low, high = max(share - 1.96 * spread, 0.0), min(share + 1.96 * spread, 1.0)
        out.append(Bin(float(p[rows].mean()), share, low, high, len(rows)))
    return out


def costs(p: Probability, y: Truth) -> Points:
    """Cost of acting where acting pays, by what a miss costs in false alarms, against the cheaper of always and never.

    The cut is what the probabilities themselves say, p ≥ 1 / (1 + ratio), not one found afterwards: so this falls below
    1 only where they mean what they say. Source: Drummond and Holte, "Cost curves", 2006; here normalised by the best
    trivial decision.
    """
    n, spikes = len(y), int(y.sum())
    out: Points = []
    for ratio in RATIOS:
        alarm = p >= 1 / (1 + ratio)
        cost = int((alarm & ~y).sum()) + ratio * int((~alarm & y).sum())
        trivial = min(n - spikes, ratio * spikes)
        if trivial:
            out.append((ratio, cost / trivial))
    return out


def shifted(p: Probability, y: Truth, t_ns: NDArray[np.int64], product: NDArray[np.str_]) -> Points:
    """PR-AUC of each row's truth under the forecast that was made so many seconds before (or, negative, after) it.

    An honest forecast is best at 0 or a little after, since the truth looks 60 s ahead, and its skill falls off; one
    that copies its label has a needle at 0.
    """
    out: Points = []
    where = {name: np.flatnonzero(product == name) for name in np.unique(product)}
    for shift in SHIFTS_S:
        forecasts, truths = [], []
        for rows in where.values():
            wanted = t_ns[rows] - shift * _NS
            at = np.searchsorted(t_ns[rows], wanted)
            at[at == len(rows)] = 0
            there = t_ns[rows][at] == wanted
            forecasts.append(p[rows][at[there]])
            truths.append(y[rows][there])
        pair = np.concatenate(forecasts), np.concatenate(truths)
        figure = Forecast(*pair).measure(fit=False)[0, 0] if len(pair[0]) else np.nan
        if np.isfinite(figure):
            out.append((float(shift), float(figure)))
    return out


def by_luck(p: Probability, y: Truth, t_ns: NDArray[np.int64], *, n: int = NULLS, seed: int = 0) -> list[float]:
    """PR-AUC of forecasts whose quarters of an hour were dealt out anew: their score without knowing when.

    Whole quarters change places, so the runs of forecasts and of spikes stay as long as they are.
    """
    block = t_ns // (BLOCK_S * _NS)
    starts = np.flatnonzero(np.r_[True, np.diff(block) != 0]) if len(block) else np.empty(0, np.int64)
    if len(starts) < 20 or not 0 < y.sum() < len(y):
        return []
    pieces = np.split(np.arange(len(p)), starts[1:])
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        dealt = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
        out.append(float(Forecast(p[dealt], y).measure(fit=False)[0, 0]))
    return out


def _ranked(p: Probability, y: Truth) -> tuple[Probability, NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    return ranked[last], last.astype(np.int64) + 1, np.cumsum(y[order], dtype=np.int64)[last]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    """Keep :data:`POINTS` points, spread evenly along x."""
    if len(x) > POINTS:
        at = np.searchsorted(x, np.linspace(x[0], x[-1], POINTS))
        keep = np.unique(np.r_[0, np.clip(at, 0, len(x) - 1), len(x) - 1])
        x, y = x[keep], y[keep]
    return list(zip(x.tolist(), y.tolist(), strict=True))
