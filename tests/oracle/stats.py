"""Every feature of one row, recomputed from the whole history: exact sums of rationals, no running state.

A double is an integer over a power of two, so sums of its powers are exact in Python's integers; each result
is rounded once. ``scale`` beside a value is the mean absolute size of the terms it is put together from: how far
two right implementations may differ where terms cancel.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from feature_repo.contract import BY_NAME, PLAIN_STATS, WINDOWED_STATS

S = 1_000_000_000
Cells = dict[str, float | int | None]


def exact_integers(values: Sequence[float]) -> tuple[list[int], int]:
    """Return integers and the power of two that all are to be divided by to give the values, exactly."""
    mantissas, exponents = np.frexp(np.asarray(values, dtype=np.float64))
    powers = (exponents - 53).tolist()
    least = min(0, *powers) if powers else 0
    scaled = (mantissas * 2.0**53).astype(np.int64).tolist()
    return [m << (e - least) for m, e in zip(scaled, powers, strict=True)], 1 << -least


class Moments:
    """Exact mean and central moments of doubles (or of integers below 2**53)."""

    def __init__(self, values: Sequence[float]) -> None:
        self.ints, self.unit = exact_integers(values)
        self.n = len(self.ints)
        self.constant = self.n > 0 and min(self.ints) == max(self.ints)

    def _sum(self, power: int) -> int:
        if power == 1:
            return sum(self.ints)
        if power == 2:
            return sum(i * i for i in self.ints)
        return sum(i**power for i in self.ints)

    @property
    def total(self) -> Fraction:
        """Sum."""
        return Fraction(self._sum(1), self.unit)

    @property
    def mean(self) -> Fraction:
        """Mean."""
        return self.total / self.n

    @property
    def sum_of_squares(self) -> Fraction:
        """Sum of the squares."""
        return Fraction(self._sum(2), self.unit**2)

    @property
    def m2(self) -> Fraction:
        """Population variance."""
        n, s1 = self.n, self._sum(1)
        return Fraction(n * self._sum(2) - s1 * s1, n**2 * self.unit**2)

    @property
    def m3(self) -> Fraction:
        """Third central moment."""
        n, s1, s2, s3 = self.n, self._sum(1), self._sum(2), self._sum(3)
        return Fraction(n**2 * s3 - 3 * n * s1 * s2 + 2 * s1**3, n**3 * self.unit**3)

    @property
    def m4(self) -> Fraction:
        """Fourth central moment."""
        n, s1, s2, s3, s4 = self.n, self._sum(1), self._sum(2), self._sum(3), self._sum(4)
        top = n**3 * s4 - 4 * n**2 * s1 * s3 + 6 * n * s1**2 * s2 - 3 * s1**4
        return Fraction(top, n**4 * self.unit**4)


def mean_abs(values: Sequence[float], about: float = 0.0) -> float:
    """Mean distance of the values from ``about``."""
    return float(np.abs(np.asarray(values) - about).mean()) if values else 0.0


class Sheet:
    """The cells of one row being filled in: values and scales by name."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.values, self.scales = prefix, Cells(), dict[str, float]()

    def put(self, stat: str, value: float | int | None, scale: float = 0.0) -> None:
        """Enter a value with its scale."""
        self.values[self.prefix + stat] = value
        self.scales[self.prefix + stat] = scale

    def mean(self, stat: str, values: Sequence[float]) -> None:
        """Enter the mean; null without a value."""
        self.put(stat, float(Moments(values).mean) if values else None, mean_abs(values))

    def std(self, stat: str, values: Sequence[float], *, about_zero: bool = False) -> None:
        """Enter the population standard deviation; null without a value."""
        if not values:
            return self.put(stat, None)
        m = Moments(values)
        self.put(stat, math.sqrt(m.m2), mean_abs(values, 0.0 if about_zero else float(m.mean)))


def between(times: Sequence[int], t: int, window_s: int) -> slice:
    """Where t − W < time ≤ t in a rising list."""
    return slice(bisect_right(times, t - window_s * S), bisect_right(times, t))


def changes(values: Sequence[float]) -> list[float]:
    """Simple returns."""
    return [b / a - 1 for a, b in pairwise(values)]


def price_stats(sheet: Sheet, prices: Sequence[float]) -> None:
    """Fill in the group over the tickers' prices."""
    n = len(prices)
    sheet.mean("price_mean", prices)
    sheet.std("price_std", prices)
    sheet.put("price_min", min(prices) if n else None)
    sheet.put("price_max", max(prices) if n else None)
    sheet.put("price_range", max(prices) - min(prices) if n else None)
    ratio = prices[-1] / prices[0] if n else 1.0
    sheet.put("price_momentum", ratio - 1 if n else None, (ratio + 1) / 2)
    if n < 2:
        return sheet.put("price_trend", None)
    ints, unit = exact_integers(prices)
    si, sii = n * (n - 1) // 2, (n - 1) * n * (2 * n - 1) // 6
    slope = Fraction(n * sum(i * p for i, p in enumerate(ints)) - si * sum(ints), (n * sii - si * si) * unit)
    mean = Moments(prices).mean
    middle, spread = (n - 1) / 2, float(Fraction(n * sii - si * si, n))
    terms = [abs(i - middle) * p / spread / float(mean) for i, p in enumerate(prices)]
    sheet.put("price_trend", float(slope / mean), math.fsum(terms) / n)


def return_stats(sheet: Sheet, returns: Sequence[float]) -> None:
    """Fill in the group over the simple returns."""
    sheet.mean("return_mean", returns)
    sheet.std("return_std", returns)
    m = Moments(returns)
    if m.n < 3 or m.constant:
        sheet.put("return_skew", None)
        return sheet.put("return_kurt", None)
    mean, std = float(m.mean), math.sqrt(m.m2)
    skew = float(m.m3) / std**3
    sheet.put("return_skew", skew, math.fsum(abs((r - mean) / std) ** 3 for r in returns) / m.n)
    kurt = m.m4 / m.m2**2
    sheet.put("return_kurt", float(kurt - 3), float(kurt + 3) / 2)


def mid_stats(sheet: Sheet, mids: Sequence[float], spreads: Sequence[float]) -> None:
    """Fill in the groups over the quotes in which a best price changed."""
    returns = [math.log(b / a) for a, b in pairwise(mids)]
    sheet.mean("mid_return_mean", returns)
    sheet.std("mid_return_std", returns)
    squares = Moments(returns).sum_of_squares if returns else None
    sheet.put("realized_vol", None if squares is None else math.sqrt(squares))
    products = [abs(a) * abs(b) for a, b in pairwise(returns)]
    sheet.put("bipower_vol", math.sqrt(math.pi / 2 * math.fsum(products)) if products else None)
    sheet.mean("spread_mean", spreads)
    sheet.std("spread_std", spreads)


def trade_stats(sheet: Sheet, window_s: int, trades: Sequence[tuple[float, str | None]]) -> None:
    """Fill in the group over the trades: (size, taker side)."""
    n, sizes = len(trades), [size for size, _ in trades]
    volume = Moments(sizes).total if sizes else Fraction(0)
    sheet.put("trade_count", n)
    sheet.put("trade_volume", float(volume), mean_abs(sizes))
    sheet.put("avg_trade_size", float(volume / n) if n else None, mean_abs(sizes))
    signed = [size if taker == "buy" else -size for size, taker in trades if taker is not None]
    balance = Moments(signed).total if signed else Fraction(0)
    sheet.put("trade_imbalance", float(balance / volume) if volume else None, 1 / n if n else 0.0)
    sheet.put("trade_intensity", n / window_s)


def timing_stats(sheet: Sheet, window_s: int, times: Sequence[int]) -> None:
    """Fill in the group over the tickers' effective times."""
    gaps: list[float] = [b - a for a, b in pairwise(times)]
    m = Moments(gaps)
    mean = float(m.mean / S) if gaps else None
    sheet.put("avg_tick_interval", mean, mean or 0.0)
    sheet.put("tick_interval_std", math.sqrt(m.m2) / S if gaps else None, mean or 0.0)
    sheet.put("tick_rate", len(times) / window_s)
    sheet.put("n_observations", len(times))


def _imbalance(bids: Sequence[float], asks: Sequence[float]) -> float | None:
    if not bids:
        return None
    bid, ask = Moments(bids).mean, Moments(asks).mean
    return float((bid - ask) / (bid + ask)) if bid + ask else None


def order_flow(before: dict[str, float], now: dict[str, float]) -> float:
    """e of Cont, Kukanov and Stoikov (2014) between two samples of the top of the book."""
    e = 0.0
    if now["bid"] >= before["bid"]:
        e += now["bid_size"]
    if now["bid"] <= before["bid"]:
        e -= before["bid_size"]
    if now["ask"] <= before["ask"]:
        e -= now["ask_size"]
    if now["ask"] >= before["ask"]:
        e += before["ask_size"]
    return e


def book_stats(sheet: Sheet, samples: Sequence[dict[str, Any]]) -> None:
    """Fill in the group over the book samples."""
    bids, asks = [s["bid_size"] for s in samples], [s["ask_size"] for s in samples]
    sheet.mean("ob_bid_depth_L1_mean", bids)
    sheet.mean("ob_ask_depth_L1_mean", asks)
    sheet.put("ob_depth_imbalance_L1", _imbalance(bids, asks), 0.5)
    deep = [s for s in samples if s["bid_10"] is not None]
    deep_bids, deep_asks = [s["bid_10"] for s in deep], [s["ask_10"] for s in deep]
    sheet.put("ob_depth_imbalance_L10", _imbalance(deep_bids, deep_asks), 0.5)
    micro = [
        (s["ask"] * s["bid_size"] + s["bid"] * s["ask_size"]) / (s["bid_size"] + s["ask_size"])
        for s in samples
    ]
    sheet.mean("ob_microprice_mean", micro)
    sheet.std("ob_microprice_std", micro)
    flow = [order_flow(a, b) for a, b in pairwise(samples)]
    sheet.put("ob_ofi", float(Moments(flow).total) if flow else None, mean_abs(flow))


def row_features(p: Any, t: int, trigger: str, windows: Sequence[int]) -> tuple[Cells, dict[str, float]]:
    """Compute all features at t of a product as it stands: everything in its history came before the row.

    ``p`` holds rising times with their values: ``tick_times, prices``, ``price_quote_times, mids, spreads``,
    ``trade_times, trades``, ``sample_times, samples``; and the state: ``quote``, ``book_state``,
    ``coverage_start``, ``open_gap`` and ``last_gap``.
    """
    values, scales = Cells(), dict[str, float]()
    for w in windows:
        sheet = Sheet(f"w{w}_")
        ticks = between(p.tick_times, t, w)
        price_stats(sheet, p.prices[ticks])
        return_stats(sheet, changes(p.prices[ticks]))
        at = len(p.prices) - (2 if trigger == "ticker" else 1)
        if at >= 0 and t - w * S < p.tick_times[at] <= t:
            past = between(p.tick_times, p.tick_times[at], w)
            sheet.std("volatility_lag1", changes(p.prices[past.start : at + 1]))
        else:
            sheet.put("volatility_lag1", None)
        quotes = between(p.price_quote_times, t, w)
        mid_stats(sheet, p.mids[quotes], p.spreads[quotes])
        trade_stats(sheet, w, p.trades[between(p.trade_times, t, w)])
        timing_stats(sheet, w, p.tick_times[ticks])
        book_stats(sheet, p.samples[between(p.sample_times, t, w)])
        assert {sheet.prefix + stat for stat in WINDOWED_STATS} == set(sheet.values)
        values |= sheet.values
        scales |= sheet.scales
    plain = plain_stats(p, t)
    assert set(PLAIN_STATS) == set(plain.values) and all(n in BY_NAME for n in plain.values)
    return values | plain.values, scales | plain.scales


def plain_stats(p: Any, t: int) -> Sheet:
    """Compute the features without a window."""
    sheet = Sheet("")
    shown = None if p.open_gap is not None else p.quote
    mid = (shown["bid"] + shown["ask"]) / 2 if shown else None
    sheet.put("mid", mid)
    sheet.put("spread", (shown["ask"] - shown["bid"]) / mid if shown and mid else None)
    sheet.put("book_state", p.book_state)
    if p.open_gap is not None:
        sheet.put("coverage_s", 0.0)
        sheet.put("feed_gap_s", (t - p.open_gap) / S)
    else:
        sheet.put("coverage_s", min(900.0, (t - p.coverage_start) / S))
        recent = p.last_gap is not None and t - 900 * S < p.last_gap[1]
        sheet.put("feed_gap_s", (p.last_gap[1] - p.last_gap[0]) / S if recent else 0.0)
    of_day = (t % (86_400 * S)) / S
    sheet.put("hour_of_day", t // (3600 * S) % 24)
    sheet.put("minute_of_hour", t // (60 * S) % 60)
    sheet.put("hour_sin", math.sin(2 * math.pi * of_day / 86_400), 1.0)
    sheet.put("hour_cos", math.cos(2 * math.pi * of_day / 86_400), 1.0)
    sheet.put("day_of_week", (t // (86_400 * S) + 3) % 7)
    return sheet
