"""The contract: every feature with its unit, formula and version, every table's columns, every service.

A name stands here and nowhere else. The Feast objects, the kernel's output columns, the parquet schema and
``docs/feature_spec.md`` are generated from :data:`FEATURES`.

Notation: a window of W seconds at t holds what has t − W < effective time ≤ t and stands before the row in the log. A
return or an interval belongs to it iff both its ends do. Moments are population moments (ddof 0).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

WINDOWS: Final = (30, 60, 300, 900)
"""Window lengths in seconds."""
GRACE_NS: Final = 250_000_000
"""How far behind the watermark a message may be and still count as merely reordered."""
FUTURE_NS: Final = 2_000_000_000
"""How far ahead of its receive time a message may be."""
SILENCE_NS: Final = 60_000_000_000
"""Silence that is a gap where no heartbeats are subscribed."""
SILENCE_HEARTBEAT_NS: Final = 5_000_000_000
"""Silence that is a gap where heartbeats are subscribed."""
COVERAGE_MAX_S: Final = 900.0
"""Cap of ``coverage_s``: the longest window."""
HORIZON_S: Final = 60
"""Seconds ahead that a forecast speaks of."""
PURGE_S: Final = HORIZON_S + max(WINDOWS)
"""Least distance on the clock between a training row and a test row: label plus window."""
LABEL_VERSION: Final = 1
ENTITY: Final = "product_id"
VIEW: Final = "spike_features"
PUSH_SOURCE: Final = "spike_push"

Dtype = Literal["float64", "int64"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: ``stat`` over ``window`` seconds (or no window), read from one ``source`` series.

    Attributes
    ----------
    stat
        Name without the window prefix.
    window
        Seconds, or None.
    source
        Series it is computed from: price, return, mid, spread, trade, timing, book, state or calendar.
    unit
        Unit in words; ``1`` for a plain ratio.
    formula
        How it is computed, and when it is null.
    """

    stat: str
    window: int | None
    source: str
    unit: str
    formula: str
    dtype: Dtype = "float64"
    version: int = 1

    @property
    def name(self) -> str:
        """Column name: ``w{window}_{stat}``, or the stat itself."""
        return self.stat if self.window is None else f"w{self.window}_{self.stat}"


# stat, source, unit, dtype, formula
_WINDOWED: tuple[tuple[str, str, str, Dtype, str], ...] = (
    ("price_mean", "price", "quote currency", "float64", "mean of the tickers' prices; null without a ticker"),
    ("price_std", "price", "quote currency", "float64", "population standard deviation of price; exactly 0 if constant"),
    ("price_min", "price", "quote currency", "float64", "least price"),
    ("price_max", "price", "quote currency", "float64", "greatest price"),
    ("price_range", "price", "quote currency", "float64", "price_max − price_min"),
    ("price_momentum", "price", "1", "float64", "last price / first price − 1"),
    (
        "price_trend", "price", "1 per tick", "float64",
        "ordinary-least-squares slope of price over its index 0…n−1, divided by price_mean; null under 2 prices",
    ),
    ("return_mean", "return", "1", "float64", "mean of simple returns p_i/p_(i−1) − 1 of successive tickers; null without"),
    ("return_std", "return", "1", "float64", "population standard deviation of the returns; exactly 0 if constant"),
    (
        "return_skew", "return", "1", "float64",
        "biased skewness m3/m2^1.5 of the returns; null under 3 returns or where all are equal",
    ),
    (
        "return_kurt", "return", "1", "float64",
        "biased excess kurtosis m4/m2² − 3 of the returns; null under 3 returns or where all are equal",
    ),
    (
        "volatility_lag1", "return", "1", "float64",
        "return_std of the same window as it stood at the ticker before (ticker row) or at the last ticker (grid row); "
        "null where that ticker lies outside the window",
    ),
    ("mid_return_mean", "mid", "1", "float64", "mean of log returns ln(mid_i/mid_(i−1)) of successive changes of a best price"),
    ("mid_return_std", "mid", "1", "float64", "population standard deviation of the mid log returns; exactly 0 if constant"),
    ("realized_vol", "mid", "1", "float64", "sqrt(Σ r²) of the mid log returns; null without one"),
    (
        "bipower_vol", "mid", "1", "float64",
        "sqrt(π/2 · Σ|r_i||r_(i−1)|) of successive mid log returns; null under 2 returns",
    ),
    ("spread_mean", "spread", "1", "float64", "mean of (ask − bid)/mid over the quotes in which a best price changed"),
    ("spread_std", "spread", "1", "float64", "population standard deviation of (ask − bid)/mid; exactly 0 if constant"),
    ("trade_count", "trade", "trades", "int64", "number of trades; 0 without one"),
    ("trade_volume", "trade", "base currency", "float64", "Σ size; 0 without a trade"),
    ("avg_trade_size", "trade", "base currency", "float64", "trade_volume / trade_count; null without a trade"),
    (
        "trade_imbalance", "trade", "1", "float64",
        "(taker buys − taker sells) / trade_volume by size; null without a trade",
    ),
    ("trade_intensity", "trade", "1/s", "float64", "trade_count / W; 0 without a trade"),
    ("avg_tick_interval", "timing", "s", "float64", "mean interval between successive tickers; null under 2 tickers"),
    ("tick_interval_std", "timing", "s", "float64", "population standard deviation of the intervals; exactly 0 if constant"),
    ("tick_rate", "timing", "1/s", "float64", "n_observations / W"),
    ("n_observations", "timing", "tickers", "int64", "number of tickers in the window"),
    ("ob_bid_depth_L1_mean", "book", "base currency", "float64", "mean size at the best bid over the book samples"),
    ("ob_ask_depth_L1_mean", "book", "base currency", "float64", "mean size at the best ask over the book samples"),
    (
        "ob_depth_imbalance_L1", "book", "1", "float64",
        "(mean bid depth − mean ask depth) / (their sum) at the best level",
    ),
    (
        "ob_depth_imbalance_L10", "book", "1", "float64",
        "the same over the summed sizes of the ten best levels; null where the samples are tickers",
    ),
    (
        "ob_microprice_mean", "book", "quote currency", "float64",
        "mean of (ask·bid_size + bid·ask_size)/(bid_size + ask_size) over the book samples",
    ),
    ("ob_microprice_std", "book", "quote currency", "float64", "population standard deviation of the microprice; exactly 0 if constant"),
    (
        "ob_ofi", "book", "base currency", "float64",
        "order-flow imbalance Σ e over successive samples, e = [b≥b′]q_b − [b≤b′]q_b′ − [a≤a′]q_a + [a≥a′]q_a′ "
        "(Cont, Kukanov, Stoikov 2014); null under 2 samples",
    ),
)

_PLAIN: tuple[tuple[str, str, str, Dtype, str], ...] = (
    ("mid", "state", "quote currency", "float64", "(best bid + best ask)/2 of the last quote; null without one"),
    ("spread", "state", "1", "float64", "(ask − bid)/mid of the last quote; null without one"),
    ("book_state", "state", "code", "int64", "0 none, 1 SYNCED, 2 RESYNCING, 3 STALE"),
    ("coverage_s", "state", "s", "float64", "seconds since the session's start or the last gap's end, at most 900; 0 inside a gap"),
    (
        "feed_gap_s", "state", "s", "float64",
        "length of the last recorded gap if it ended within the last 900 s (of the open gap so far, inside one), else 0",
    ),
    ("hour_of_day", "calendar", "h", "int64", "UTC hour of t, 0…23"),
    ("minute_of_hour", "calendar", "min", "int64", "UTC minute of t, 0…59"),
    ("hour_sin", "calendar", "1", "float64", "sin(2π · seconds since UTC midnight / 86400)"),
    ("hour_cos", "calendar", "1", "float64", "cos(2π · seconds since UTC midnight / 86400)"),
    ("day_of_week", "calendar", "day", "int64", "UTC day of the week of t, Monday 0"),
)


def _features() -> tuple[Feature, ...]:
    windowed = (
        Feature(stat, window, source, unit, formula, dtype)
        for window in WINDOWS
        for stat, source, unit, dtype, formula in _WINDOWED
    )
    plain = (Feature(stat, None, source, unit, formula, dtype) for stat, source, unit, dtype, formula in _PLAIN)
    return (*windowed, *plain)


FEATURES: Final = _features()
"""All 146 features in the order of the tables: the windowed ones by window, then those without a window."""
FEATURE_NAMES: Final = tuple(f.name for f in FEATURES)
WINDOWED_STATS: Final = tuple(row[0] for row in _WINDOWED)
PLAIN_STATS: Final = tuple(row[0] for row in _PLAIN)
BY_NAME: Final = {f.name: f for f in FEATURES}

CALENDAR: Final = tuple(f.name for f in FEATURES if f.source == "calendar")
"""Columns of the calendar: not for models whose training spans less than :data:`CALENDAR_MIN_DAYS`."""
CALENDAR_MIN_DAYS: Final = 7
_PRICE_LEVELS = frozenset({"price_mean", "price_min", "price_max", "ob_microprice_mean", "mid"})

# The thirty that --use-top-features of the first seed names; the five of the second.
_TOP30 = (
    "w60_spread_std w300_spread_std w30_spread_std w60_spread_mean w30_spread_mean w60_ob_microprice_mean "
    "w900_spread_std w60_ob_depth_imbalance_L1 w300_trade_imbalance w30_ob_microprice_mean "
    "w30_ob_depth_imbalance_L1 w60_return_std w60_volatility_lag1 w300_spread_mean w900_price_momentum "
    "w60_trade_count w60_tick_rate w60_n_observations w300_price_momentum w60_trade_imbalance w30_volatility_lag1 "
    "w30_return_std w900_trade_count w900_tick_rate w900_n_observations w30_price_std w300_ob_microprice_mean "
    "w30_price_range w60_price_std w300_trade_count"
).split()
_CORE = "w60_mid_return_mean w60_mid_return_std w60_spread_mean w60_trade_intensity w60_ob_depth_imbalance_L1".split()

SERVICES: Final[dict[str, tuple[str, ...]]] = {
    "spike_full_v1": FEATURE_NAMES,
    "spike_top30_v1": tuple(_TOP30),
    "spike_core_v1": tuple(_CORE),
    "spike_model_v1": tuple(f.name for f in FEATURES if f.stat not in _PRICE_LEVELS),
}
"""Feast feature services and their features, in order."""
DEFAULT_SERVICE: Final = "spike_model_v1"
TOP_SERVICE: Final = "spike_top30_v1"


def feature_hash(names: Iterable[str]) -> str:
    """Hash what a model must agree on with a store: name, dtype, window and version of each feature, label version.

    Parameters
    ----------
    names
        Feature names; their order does not matter, since rows are mapped by name.

    Returns
    -------
    str
        First 16 hex digits of a sha256.

    Raises
    ------
    KeyError
        If a name is not a feature.
    """
    rows = sorted((BY_NAME[n].name, BY_NAME[n].dtype, BY_NAME[n].window, BY_NAME[n].version) for n in names)
    payload = json.dumps([LABEL_VERSION, rows], separators=(",", ":"))
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


@cache
def service_hash(service: str) -> str:
    """Hash of a feature service; see :func:`feature_hash`.

    Examples
    --------
    >>> service_hash("spike_core_v1") == feature_hash(SERVICES["spike_core_v1"])
    True
    """
    return feature_hash(SERVICES[service])


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table that is not a feature."""

    name: str
    dtype: Literal["string", "int64", "int32", "float64", "timestamp"]
    meaning: str
    nullable: bool = False


ROW_ID: Final = ("product_id", "session", "n", "k")
"""What identifies a row: product, connection, message in it, index inside the message."""

ROW_COLUMNS: Final = (
    Column("product_id", "string", "product, such as BTC-USD"),
    Column("session", "string", "connection the message came by: 16 hex digits"),
    Column("n", "int64", "message number in the session; of a grid row, the last message before it"),
    Column("k", "int32", "index inside the message; −1, −2, … for the grid rows after message n"),
    Column("trigger", "string", "what made the row: ticker or grid"),
    Column("row_time", "timestamp", "Feast timestamp, µs UTC, strictly rising per product"),
    Column("event_time_ns", "int64", "t: effective time of the row, ns UTC; labels anchor on it"),
    Column("created_timestamp", "timestamp", "receive time of the row's message, µs UTC; its event time where unknown"),
)
"""Columns before the features in ``spike_features``."""

QUOTE_COLUMNS: Final = (
    Column("product_id", "string", "product"),
    Column("session", "string", "connection"),
    Column("n", "int64", "message number in the session"),
    Column("k", "int32", "index inside the message"),
    Column("kind", "string", "quote, gap_start or gap_end"),
    Column("event_time_ns", "int64", "effective time, ns UTC"),
    Column("created_timestamp", "timestamp", "receive time, µs UTC; event time where unknown"),
    Column("bid", "float64", "best bid, quote currency; null in gap rows", nullable=True),
    Column("ask", "float64", "best ask, quote currency; null in gap rows", nullable=True),
    Column("bid_size", "float64", "size at the best bid, base currency", nullable=True),
    Column("ask_size", "float64", "size at the best ask, base currency", nullable=True),
)
"""Columns of ``quotes``: each change of best bid, ask or their sizes, and the edges of gaps."""

TABLES: Final = ("spike_features", "quotes", "predictions", "outcomes")
