"""The label: how much the mid will move in the next 60 seconds, and the threshold that makes it a spike.

Training and live outcomes both call :func:`sigma_fwd` on the quote series: one definition of the truth::

    t           t+1s        t+2s                     t+60s
    |-----------|-----------|---- … -----------------|
    m_0         m_1         m_2                      m_60    m_k = mid of the last quote at or before t + k s
          r_1         r_2            …         r_60          r_k = ln(m_k / m_{k-1})
    sigma_fwd(t) = population standard deviation of r_1 … r_60
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InsufficientDataError

NS: Final = 1_000_000_000
OPEN: Final = int(np.iinfo(np.int64).max)
"""``gap_end_ns`` of a gap that has not ended."""
TIE_SLACK: Final = 0.25
"""How much larger than promised the share of spikes may be because of ties at tau: a quarter of it. A
quiet market gives the same sigma to a minute of successive seconds, so a few ties are ordinary; a mass of
them means that tau separates nothing."""
_NEAR: Final = 1e-9  # sigmas closer than this are one value: only the order of rounding tells them apart

Returns = Literal["1s", "tick"]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba carries no types
def _last_at(times: NDArray[np.int64], low: int, t: int) -> int:
    """Index of the last element ≤ t, all before ``low`` being ≤ t; galloping, so near answers are cheap."""
    n = times.shape[0]
    step = 1
    high = low
    while high < n and times[high] <= t:
        low = high + 1
        high += step
        step *= 2
    high = min(high, n)
    while low < high:
        middle = (low + high) // 2
        if times[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _std(values: NDArray[np.float64], n: int) -> float:
    """Population standard deviation of the first n values in two passes; exactly 0 where all are equal."""
    if n == 0:
        return 0.0
    total = 0.0
    equal = True
    for i in range(n):
        total += values[i]
        equal = equal and values[i] == values[0]
    if equal:
        return 0.0
    mean = total / n
    squares = 0.0
    for i in range(n):
        squares += (values[i] - mean) ** 2
    return float(np.sqrt(squares / n))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _per_second(
    t_ns: NDArray[np.int64],
    quote_t: NDArray[np.int64],
    mid: NDArray[np.float64],
    null: NDArray[np.bool_],
    horizon_s: int,
    out: NDArray[np.float64],
) -> None:
    returns = np.empty(horizon_s)
    hint = 0
    for i in range(t_ns.shape[0]):
        if null[i]:
            continue
        t = t_ns[i]
        if hint > 0 and quote_t[hint - 1] > t:
            hint = 0  # rows need not be in order; where they are, this never happens
        j = _last_at(quote_t, hint, t)
        hint = j + 1
        if j < 0:
            continue
        for k in range(1, horizon_s + 1):
            after = _last_at(quote_t, j + 1, t + k * 1_000_000_000)
            # log1p of the exact difference keeps the digits that ln(a/b) of two near prices loses
            returns[k - 1] = 0.0 if after == j else np.log1p((mid[after] - mid[j]) / mid[j])
            j = after
        out[i] = _std(returns, horizon_s)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _per_quote(
    t_ns: NDArray[np.int64],
    quote_t: NDArray[np.int64],
    mid: NDArray[np.float64],
    null: NDArray[np.bool_],
    horizon_s: int,
    out: NDArray[np.float64],
) -> None:
    m = quote_t.shape[0]
    returns = np.zeros(m)  # returns[j] leads from quote j - 1 to quote j
    for j in range(1, m):
        returns[j] = np.log1p((mid[j] - mid[j - 1]) / mid[j - 1])
    hint = 0
    for i in range(t_ns.shape[0]):
        if null[i]:
            continue
        t = t_ns[i]
        if hint > 0 and quote_t[hint - 1] > t:
            hint = 0
        first = _last_at(quote_t, hint, t) + 1
        hint = first
        if first == 0:
            continue
        end = _last_at(quote_t, first, t + horizon_s * 1_000_000_000) + 1
        out[i] = _std(returns[first:end], end - first)


def gap_meets(
    t_ns: NDArray[np.int64],
    gap_start_ns: NDArray[np.int64],
    gap_end_ns: NDArray[np.int64],
    horizon_s: int = HORIZON_S,
) -> NDArray[np.bool_]:
    """Tell which horizons (t, t + horizon] a gap meets: gap (a, b) does iff a < t + horizon and b > t.

    Parameters
    ----------
    t_ns
        int64[n], ns UTC, any order.
    gap_start_ns, gap_end_ns
        int64[g], ns UTC, any order, may overlap; the end of an open gap is the greatest int64.
    horizon_s
        Length of the horizon in seconds.

    Returns
    -------
    bool[n]
    """
    if len(gap_start_ns) == 0:
        return np.zeros(len(t_ns), np.bool_)
    order = np.argsort(gap_start_ns, kind="stable")
    latest_end = np.maximum.accumulate(gap_end_ns[order])
    begun = np.searchsorted(gap_start_ns[order], t_ns + horizon_s * NS, side="left")
    return np.asarray((begun > 0) & (latest_end[np.maximum(begun - 1, 0)] > t_ns))


def sigma_fwd(
    t_ns: NDArray[np.int64],
    quote_t_ns: NDArray[np.int64],
    bid: NDArray[np.float64],
    ask: NDArray[np.float64],
    gap_start_ns: NDArray[np.int64],
    gap_end_ns: NDArray[np.int64],
    watermark_ns: int,
    *,
    horizon_s: int = HORIZON_S,
    returns: Returns = "1s",
) -> NDArray[np.float64]:
    """Volatility of the mid over the horizon that begins at each t, for one product in one session.

    Parameters
    ----------
    t_ns
        int64[n], anchors, ns UTC, any order.
    quote_t_ns
        int64[m], effective times of the quotes in log order, hence non-decreasing, ns UTC. Of quotes that
        share a time the last one counts.
    bid, ask
        float64[m], best prices, > 0, quote currency.
    gap_start_ns, gap_end_ns
        int64[g], ns UTC; the end of an open gap is the greatest int64.
    watermark_ns
        Effective time up to which the log has been seen, ns UTC.
    horizon_s
        Length of the horizon, whole seconds ≥ 1.
    returns
        ``1s``: the returns r_1 … r_horizon between the mids at t, t + 1 s, …. ``tick``: the log returns
        from quote to quote, starting from the one at t (m_0), one for each quote in (t, t + horizon]; changes of
        size alone count, with return 0; under two returns the deviation is 0.

    Returns
    -------
    float64[n]
        Population standard deviation (ddof 0) of the log returns, a plain ratio per return. NaN (null)
        exactly where there is no quote at or before t, where a gap meets (t, t + horizon], or where the
        watermark is below t + horizon. A horizon in which nothing moved has 0, not null.

    Raises
    ------
    ValueError
        If the quotes are out of order or ``horizon_s`` or ``returns`` is not one of the allowed values.

    Notes
    -----
    Source: DESIGN §6; two-pass deviation.
    """
    if horizon_s < 1:
        raise ValueError(f"horizon_s must be a whole number of seconds >= 1, was {horizon_s}")
    if returns not in ("1s", "tick"):
        raise ValueError(f"returns must be '1s' or 'tick', was {returns!r}")
    times = np.ascontiguousarray(quote_t_ns, np.int64)
    if len(times) > 1 and bool((np.diff(times) < 0).any()):
        raise ValueError("quote_t_ns must be non-decreasing: pass the quotes of one session in log order")
    t = np.ascontiguousarray(t_ns, np.int64)
    mid = (np.asarray(bid, np.float64) + np.asarray(ask, np.float64)) / 2
    null = gap_meets(t, gap_start_ns, gap_end_ns, horizon_s) | (t + horizon_s * NS > watermark_ns)
    out = np.full(len(t), np.nan)
    (_per_second if returns == "1s" else _per_quote)(t, times, mid, null, horizon_s, out)
    return out


def percentile_tau(sigma: NDArray[np.float64], percentile: float, *, product: str = "?") -> float:
    """Spike threshold of one product: a percentile of ``sigma_fwd`` in its training block.

    Parameters
    ----------
    sigma
        float64[n] of the training block only; NaN is left out.
    percentile
        In (0, 100); linear interpolation between order statistics.
    product
        Named in the error.

    Returns
    -------
    float
        tau > 0, in the unit of sigma.

    Raises
    ------
    InsufficientDataError
        If there is no label, if tau is 0, or if so many labels tie at tau that the share of spikes exceeds
        what the percentile allows by more than :data:`TIE_SLACK`.
    """
    known = sigma[~np.isnan(sigma)]
    if known.size == 0:
        raise InsufficientDataError(
            f"{product}: no label in the training block, at least 1 was needed for tau; give a longer tape"
        )
    tau = float(np.percentile(known, percentile))
    if not tau > 0:
        zero = float(np.mean(known == 0))
        raise InsufficientDataError(
            f"{product}: tau is {tau:g} at percentile {percentile:g}, must be > 0 ({zero:.0%} of "
            f"{known.size} horizons did not move); raise --threshold-percentile, give --tau, or leave the "
            "product out with --exclude-products"
        )
    share = float(np.mean(known >= tau * (1 - _NEAR)))
    allowed = (1 - percentile / 100) * (1 + TIE_SLACK) + 1 / known.size
    if share > allowed:
        raise InsufficientDataError(
            f"{product}: tau {tau:.3g} is tied: {share:.1%} of {known.size} horizons reach it where "
            f"percentile {percentile:g} allows {allowed:.1%}; change --threshold-percentile, give --tau, or "
            "leave the product out with --exclude-products"
        )
    return tau
