"""The label by its definition, in plain numpy: nothing here is shared with the code that the run was labelled with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.audit.evidence import Evidence
from training.labels import gaps

NS = 1_000_000_000
_CHUNK = 20_000  # rows at once: 61 mids each


def mids(quotes: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return effective times (int64[m], ns UTC) and mids (float64[m]) of one product's quotes in log order."""
    series = quotes.filter(pl.col("kind") == "quote").sort("n", "k", maintain_order=True)
    mid = (series["bid"].to_numpy() + series["ask"].to_numpy()) / 2
    return series["event_time_ns"].to_numpy(), mid


def volatility(
    t_ns: NDArray[np.int64], times: NDArray[np.int64], mid: NDArray[np.float64], *, seconds: int, returns: str = "1s"
) -> NDArray[np.float64]:
    """Deviation of the log returns in the ``seconds`` that follow each t.

    Parameters
    ----------
    t_ns
        int64[n], begin of each stretch, ns UTC.
    times, mid
        As :func:`mids` returns them.
    seconds
        Length of the stretch.
    returns
        ``1s`` or ``tick``, as :func:`ingestion.kernel.label.sigma_fwd` explains them.

    Returns
    -------
    float64[n]
        Population standard deviation; NaN where there is no quote at t.

    Notes
    -----
    Source: DESIGN §6.
    """
    if not len(times):
        return np.full(len(t_ns), np.nan)
    logs = np.log(mid)
    if returns == "tick":
        return _per_quote(t_ns, times, logs, seconds)
    out = np.empty(len(t_ns))
    steps = np.arange(seconds + 1) * NS
    for low in range(0, len(t_ns), _CHUNK):
        t = t_ns[low : low + _CHUNK]
        at = np.searchsorted(times, t[:, None] + steps, side="right") - 1
        r = np.diff(logs[np.maximum(at, 0)], axis=1)
        out[low : low + _CHUNK] = np.where(at[:, 0] < 0, np.nan, r.std(axis=1))
    return out


def _per_quote(
    t_ns: NDArray[np.int64], times: NDArray[np.int64], logs: NDArray[np.float64], seconds: int
) -> NDArray[np.float64]:
    r = np.diff(logs, prepend=logs[0])
    first = np.searchsorted(times, t_ns, side="right")
    end = np.searchsorted(times, t_ns + seconds * NS, side="right")
    n = np.maximum(end - first, 1)
    one, two = (np.r_[0.0, np.cumsum(v)] for v in (r, r * r))
    variance = (two[end] - two[first]) / n - ((one[end] - one[first]) / n) ** 2
    return np.where(first == 0, np.nan, np.sqrt(np.maximum(variance, 0)))


def by_series(rows: pl.DataFrame, quotes: pl.DataFrame) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
    """Yield for each product and session the numbers of its rows and its quotes."""
    group = ("product_id", "session")
    there = quotes.partition_by(*group, as_dict=True)
    empty = quotes.clear()
    for key, part in rows.select(*group).with_row_index("row").partition_by(*group, as_dict=True).items():
        yield part["row"].to_numpy().astype(np.int64), there.get(key, empty)


def at_rows(e: Evidence, quotes: pl.DataFrame, *, shift_s: int = 0, seconds: int | None = None) -> NDArray[np.float64]:
    """Volatility of the stretch that begins ``shift_s`` after each row of the run, float64[n].

    A ``shift_s`` of 0 is the label; minus its horizon is what had just happened.
    """
    return of(e.rows, quotes, seconds=seconds or e.horizon_s, returns=e.returns, shift_s=shift_s)


def of(
    rows: pl.DataFrame, quotes: pl.DataFrame, *, seconds: int, returns: str, shift_s: int = 0
) -> NDArray[np.float64]:
    """Volatility of the stretch that begins ``shift_s`` after each row, float64[n]; NaN where there is no quote."""
    out = np.full(rows.height, np.nan)
    t = rows["event_time_ns"].to_numpy() + shift_s * NS
    for mine, series in by_series(rows, quotes):
        times, mid = mids(series)
        out[mine] = volatility(t[mine], times, mid, seconds=seconds, returns=returns)
    return out


def labelled(rows: pl.DataFrame, quotes: pl.DataFrame, *, horizon_s: int, returns: str) -> NDArray[np.float64]:
    """Labels of any rows: NaN too where a gap meets the horizon or the recording ends inside it."""
    sigma = of(rows, quotes, seconds=horizon_s, returns=returns)
    sigma[over_gap(rows, quotes, horizon_s)] = np.nan
    t = rows["event_time_ns"].to_numpy()
    for mine, series in by_series(rows, quotes):
        newest = max(int(t[mine].max()), int(series["event_time_ns"].to_numpy().max(initial=0)))
        sigma[mine[t[mine] + horizon_s * NS > newest]] = np.nan
    return sigma


def over_gap(rows: pl.DataFrame, quotes: pl.DataFrame, horizon_s: int) -> NDArray[np.bool_]:
    """Tell which rows' horizons (t, t + horizon] a gap meets, bool[n]."""
    met = np.zeros(rows.height, np.bool_)
    t = rows["event_time_ns"].to_numpy()
    for mine, series in by_series(rows, quotes):
        for start, end in zip(*gaps(series), strict=True):
            met[mine] |= (start < t[mine] + horizon_s * NS) & (end > t[mine])
    return met
