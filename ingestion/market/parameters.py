"""Every number of the generated market, in one place.

They were fixed before any model was trained on a generated tape, by looking only at the figures of recorded tapes that
``python -m ingestion.market --calibrate`` prints (messages a second, share of unchanged seconds, quantiles of 60-second
volatility), never at a model's score. Changing one changes every generated tape, so it belongs in the CHANGELOG.

The market they make is for demonstration and tests. It is never evidence about a real market.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from feature_repo.errors import UsageError

SLOT_US: Final = 50_000
"""Length of a slot in µs: level2_batch sends at most one message per product per 50 ms, so nothing is finer."""
SLOTS_PER_S: Final = 20
"""Slots in one step (1 s) of the hidden process."""


@dataclass(frozen=True, slots=True)
class Latent:
    """The hidden log volatility ``h = level[regime] + ou + burst``, on a grid of 1 s; formulas in ``process``."""

    regimes: tuple[str, ...] = ("calm", "normal", "active", "stormy")
    level: tuple[float, ...] = (-0.45, 0.0, 0.45, 0.90)
    """h of each regime; a step of 0.45 is 1.6 times the volatility; neighbours overlap through the OU part."""
    dwell_s: float = 600.0
    """Mean stay in a regime: about 10 minutes."""
    jump: tuple[tuple[float, ...], ...] = (
        (0.00, 0.85, 0.12, 0.03),
        (0.50, 0.00, 0.40, 0.10),
        (0.12, 0.63, 0.00, 0.25),
        (0.05, 0.45, 0.50, 0.00),
    )
    """Where a regime goes when it ends: mostly to a neighbour, sometimes straight into a storm."""
    ou_half_life_s: float = 240.0
    """Half-life of the clustering inside a regime: about 4 minutes."""
    ou_sd: float = 0.26
    """Stationary standard deviation of the OU part."""
    burst_per_s: float = 1.0 / 1200.0
    """Chance a second that a burst starts: one in 20 minutes; nothing announces it."""
    burst_mean: float = 0.5
    """Mean height of a burst in h (exponential): news multiplies the volatility by 1.6."""
    burst_half_life_s: float = 20.0
    """Half-life of a burst: shorter than the horizon, so that many are over before they could be learnt from."""


@dataclass(frozen=True, slots=True)
class Observation:
    """How the hidden state shows: rates ``rate · exp(elasticity · h)``, sizes of moves, spreads."""

    order_elasticity: float = 0.5
    """Of taker orders: activity rises with volatility, less than in proportion."""
    move_elasticity: float = 0.8
    """Of quote moves; variance = rate × squared size, so σ ∝ exp((0.8/2 + 0.6)·h) = exp(h)."""
    jump_elasticity: float = 0.6
    """Of the size of a move; see ``move_elasticity``."""
    jump_log_sd: float = 1.15
    """Log standard deviation of a move's size: recorded moves span 1 tick to hundreds."""
    jump_cap_sd: float = 2.4
    """Moves are cut this many log standard deviations above their median, so that no single one makes the tape."""
    wide_chance: float = 0.37
    """Chance at h = 0 that a new quote's spread is wider than one tick (recorded: 37 %)."""
    wide_elasticity: float = 0.5
    """Of the odds of a wide spread."""
    wide_log_sd: float = 0.9
    """Log standard deviation of a wide spread beyond one tick; its median is half the median move."""
    more_fills: float = 0.49
    """Chance that a taker order fills against one more maker: 49 % of recorded tickers share the time before."""
    max_fills: int = 40
    """Most fills of one order."""
    noise_per_s: float = 2.0
    """Batches a second in which depth changes for no reason: cancels and refills in the top levels."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What the connection adds."""

    latency_median_ms: float = 35.0
    latency_log_sd: float = 0.3
    latency_min_ms: float = 15.0
    """Receive minus event time: lognormal, about 20 to 60 ms, never below the least; order is kept as on one socket."""
    quiet_start_slots: int = 2
    """Slots without events at the start (100 ms), so that snapshot and subscriptions come before all else."""
    ticker_first: float = 0.2
    """Chance that a ticker precedes the match of its trade: a fifth in recorded tapes."""


@dataclass(frozen=True, slots=True)
class Product:
    """Scale of one product."""

    price: float
    """First mid, quote currency."""
    decimals: int
    """Decimals of a price; the tick is 10**-decimals."""
    jump_median: float
    """Median size of a move at h = 0, as a fraction of ``price``."""
    moves_per_s: float
    """Quote moves a second at h = 0."""
    orders_per_s: float
    """Taker orders a second at h = 0; tickers are about twice as many."""
    size_median: float
    """Median size of a fill, base currency; a level of the book holds about ten times that."""
    first_trade_id: int
    levels: int = 300
    """Levels a side that the book tends to."""

    def __post_init__(self) -> None:
        if not (self.price > 0 and self.jump_median > 0 and self.moves_per_s > 0 and self.orders_per_s > 0):
            raise UsageError(
                f"price, jump_median, moves_per_s and orders_per_s must be > 0, were {self.price}, "
                f"{self.jump_median}, {self.moves_per_s}, {self.orders_per_s}: correct the product's parameters"
            )


def _products() -> dict[str, Product]:
    return {
        "BTC-USD": Product(90_000.0, 2, 1.08e-5, 0.75, 1.75, 0.0012, 900_000_000),
        "ETH-USD": Product(3_000.0, 2, 1.5e-5, 0.65, 1.30, 0.03, 700_000_000),
        # Finer than the real tick of 0.01, which would round nearly every move to one tick and hide the sizes.
        "SOL-USD": Product(140.0, 3, 2.0e-5, 0.55, 1.05, 0.6, 300_000_000),
    }


@dataclass(frozen=True, slots=True)
class Parameters:
    """All parameters of a generated market."""

    latent: Latent = field(default_factory=Latent)
    observation: Observation = field(default_factory=Observation)
    feed: Feed = field(default_factory=Feed)
    products: Mapping[str, Product] = field(default_factory=_products)


DEFAULT: Final = Parameters()
"""The market of the demonstration."""
