"""A threshold that follows the market: the percentile of the horizons that ended in the trailing hours.

::

       t - hours                                     t
    ───┼─────────────────────────────────────────────┼──────────
       (  e1     e2      e3   …                   eN ]              ends of horizons, e = t' + horizon
                                              t'─────┼────e         this one has not ended: t must not know it

Training fills in the tau of all rows at once (:func:`rolling_tau`); a server goes on one row at a time from the state
that the artefact holds (:class:`training.rolling_state.RollingTau`). Both are one rule and give one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InsufficientDataError, UsageError
from ingestion.kernel.label import TIE_SLACK

NS: Final = 1_000_000_000
MIN_HISTORY_S: Final = 1800.0
"""Least time that ended horizons cover behind a row, seconds, or half the window where that is shorter. Neighbouring
horizons share all but a second, so half an hour is some thirty separate ones: fewer put a 95th percentile nowhere.
However long the pause between two horizons was, it counts as one."""
NEAR: Final = 1e-9
"""Sigmas closer than this, relatively, are one value, as in :func:`ingestion.kernel.label.percentile_tau`."""

KNOWN, YOUNG, ZERO, TIED = 0, 1, 2, 3
REASONS: Final = ("", "history", "zero", "tied")
"""Why a row has no tau: too little has ended; most horizons did not move; a mass of horizons equals tau."""


@dataclass(frozen=True, slots=True)
class RollingRule:
    """The rule that tau follows.

    Attributes
    ----------
    percentile
        In (0, 100); linear interpolation between order statistics.
    hours
        Length of the trailing window.
    horizon_s
        Length of the label's horizon, seconds.

    Raises
    ------
    UsageError
        If a number makes no sense.
    """

    percentile: float
    hours: float
    horizon_s: int = HORIZON_S

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise UsageError(f"--threshold-percentile is {self.percentile:g}, must be in (0, 100), such as 95")
        if not self.horizon_s / 3600 <= self.hours < 24 * 366:
            raise UsageError(
                f"--rolling-hours is {self.hours:g}, must be at least one horizon ({self.horizon_s} s) and under a year"
            )

    @property
    def window_ns(self) -> int:
        """Length of the trailing window, ns."""
        return round(self.hours * 3600 * NS)

    @property
    def history_ns(self) -> int:
        """Least time that the ended horizons must cover, ns."""
        return min(round(MIN_HISTORY_S * NS), self.window_ns // 2)

    @property
    def allowed(self) -> float:
        """Share of horizons that may reach tau, ties included, but for one row."""
        return (1 - self.percentile / 100) * (1 + TIE_SLACK)


def rolling_tau(
    t_ns: NDArray[np.int64],
    seen_t_ns: NDArray[np.int64],
    sigma: NDArray[np.float64],
    rule: RollingRule,
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Threshold at each t from the horizons that had ended by then, for one product.

    Parameters
    ----------
    t_ns
        int64[n], times to give a tau to, ns UTC, any order.
    seen_t_ns, sigma
        int64[m], float64[m]: beginnings of labelled horizons, ns UTC, any order, and their sigma_fwd, no NaN.
    rule
        Percentile, window and horizon.

    Returns
    -------
    float64[n]
        tau > 0, in the unit of sigma; NaN where there is none.
    int8[n]
        Index into :data:`REASONS`.

    Notes
    -----
    A horizon begun at t′ counts iff t − hours < t′ + horizon ≤ t. A Fenwick tree over the ranks of all sigmas holds
    which of them are in the window, so a row costs O(log m).
    """
    order = np.argsort(seen_t_ns, kind="stable")
    ends = np.asarray(seen_t_ns, np.int64)[order] + rule.horizon_s * NS
    values = np.asarray(sigma, np.float64)[order]
    if np.isnan(values).any():
        raise ValueError("sigma holds NaN; pass labelled horizons only")
    by_size = np.argsort(values, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[by_size] = np.arange(len(values))
    asked = np.argsort(t_ns, kind="stable")
    tau = np.full(len(t_ns), np.nan)
    reason = np.full(len(t_ns), YOUNG, np.int8)
    found, why = _sweep(
        np.asarray(t_ns, np.int64)[asked],
        ends,
        rank,
        values[by_size],
        rule.window_ns,
        rule.horizon_s * NS,
        rule.history_ns,
        rule.percentile / 100,
        rule.allowed,
    )
    tau[asked], reason[asked] = found, why
    return tau, reason


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba carries no types
def _add(tree: NDArray[np.int32], i: int, change: int) -> None:
    i += 1
    while i < tree.shape[0]:
        tree[i] += change
        i += i & -i


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _below(tree: NDArray[np.int32], i: int) -> int:
    """How many of the ranks < i are in the tree."""
    total = 0
    while i > 0:
        total += tree[i]
        i -= i & -i
    return total


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _select(tree: NDArray[np.int32], top: int, k: int) -> int:
    """Rank of the k-th smallest (from 0) in the tree; top is the greatest power of 2 that is within it."""
    at = 0
    step = top
    while step > 0:
        ahead = at + step
        if ahead < tree.shape[0] and tree[ahead] <= k:
            at = ahead
            k -= tree[ahead]
        step >>= 1
    return at


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def between(low: float, high: float, part: float) -> float:
    """Interpolate as numpy.percentile does, to the bit."""
    step = high - low
    return high - step * (1 - part) if part >= 0.5 else low + step * part


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _sweep(
    t: NDArray[np.int64],
    ends: NDArray[np.int64],
    rank: NDArray[np.int64],
    values: NDArray[np.float64],
    window: int,
    horizon: int,
    history: int,
    q: float,
    allowed: float,
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    m = ends.shape[0]
    tree = np.zeros(m + 1, np.int32)
    top = 1
    while top * 2 <= m:
        top *= 2
    tau = np.full(t.shape[0], np.nan)
    reason = np.full(t.shape[0], YOUNG, np.int8)
    first, last = 0, 0  # ends[first:last] are in the window
    covered = 0  # by ends[first:last], ns, a pause counting as one horizon
    for i in range(t.shape[0]):
        while last < m and ends[last] <= t[i]:
            _add(tree, rank[last], 1)
            covered += min(ends[last] - ends[last - 1], horizon) if last > first else 0
            last += 1
        while first < last and ends[first] <= t[i] - window:
            _add(tree, rank[first], -1)
            first += 1
            covered -= min(ends[first] - ends[first - 1], horizon) if first < last else 0
        count = last - first
        if count == 0 or covered < history:
            continue
        position = (count - 1) * q
        below = int(position)
        low = values[_select(tree, top, below)]
        high = low if below + 1 >= count else values[_select(tree, top, below + 1)]
        found = between(low, high, position - below)
        if not found > 0:
            reason[i] = ZERO
            continue
        edge = np.searchsorted(values, found * (1 - NEAR))
        if (count - _below(tree, edge)) / count > allowed + 1 / count:
            reason[i] = TIED
            continue
        tau[i] = found
        reason[i] = KNOWN
    return tau, reason


def last_tau(t: NDArray[np.int64], sigma: NDArray[np.float64], rule: RollingRule, now_ns: int, product: str) -> float:
    """Tau of one product at ``now_ns``.

    Raises
    ------
    InsufficientDataError
        If there is none; the message says why.
    """
    tau, reason = rolling_tau(np.array([now_ns], np.int64), t, sigma, rule)
    if reason[0] != KNOWN:
        raise InsufficientDataError(f"{product}: {explain(REASONS[reason[0]], rule)}")
    return float(tau[0])


def explain(reason: str, rule: RollingRule) -> str:
    """Say in words why there is no tau, and what to do."""
    window = f"in the trailing {rule.hours:g} h"
    said = {
        "history": f"horizons that ended {window} must cover {rule.history_ns / NS:g} s; give a longer tape",
        "zero": f"tau is 0, must be > 0: most horizons {window} did not move",
        "tied": f"tau is tied: more horizons {window} equal it than percentile {rule.percentile:g} allows",
    }[reason]
    return f"{said}; or change --threshold-percentile or --rolling-hours, or give --tau"
