"""The hidden volatility of a generated product, and what of it shows: a state-space model with explicit densities.

Each product has its own, independent of the others. Time runs in steps of 1 s, k = 0, 1, …; a step has 20 slots of
50 ms.

**State** ``(s_k, y_k, b_k)``, log volatility ``h_k = level[s_k] + y_k + b_k``::

    regime    s_k+1 = s_k with chance exp(−1/dwell), else drawn from jump[s_k]           s_0 ~ stationary
    OU        y_k+1 = ρ y_k + sd sqrt(1 − ρ²) ε,  ε ~ N(0, 1),  ρ = 2^(−1/half-life)     y_0 ~ N(0, sd²)
    burst     b_k+1 = β b_k + B e,  B ~ Bernoulli(burst_per_s),  e ~ Exp(burst_mean),  β = 2^(−1/half-life)   b_0 = 0

**Observation**, given the state and independent over slots; a rate λ makes ``p = 1 − exp(−λ · 0.05)``::

    order in a slot    λ = orders_per_s · exp(order_elasticity · h); fills 1 + Geometric(more_fills)
    quote move         λ = moves_per_s · exp(move_elasticity · h)
    depth noise        λ = noise_per_s, says nothing about h
    size of a move     J = clip(round(exp(m + jump_elasticity · h + jump_log_sd · z)), 1, cap) ticks, z ~ N(0, 1)
                       m = ln(jump_median · price / tick), cap = the same at z = jump_cap_sd
    sign of a move     ±1 evenly; the side of the order where one shares the slot
    new best bid       old + sign · J
    new spread         1 tick with chance 1 − w, else 1 + max(1, round(exp(m − ln 2 + wide_log_sd · z))) ticks;
                       logit(w) = logit(wide_chance) + wide_elasticity · h

Sizes, sides, times inside a slot, depth and latency carry no information on h. So all that a filter can use is, a step:
the number of slots with an order, the number with a move, each J, each spread: :func:`log_likelihood` is exactly that.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingestion.market.parameters import DEFAULT, SLOTS_PER_S, Latent, Parameters, Product

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Path:
    """A hidden path on the grid of 1 s; arrays of shape ``(seconds,)``.

    Attributes
    ----------
    regime
        int64, index into ``Latent.regimes``.
    ou, burst
        float64, in units of log volatility.
    h
        float64, log volatility relative to the normal regime's level.
    """

    regime: I64
    ou: F64
    burst: F64
    h: F64


def rng(seed: int, product: str, purpose: str) -> np.random.Generator:
    """Random numbers of one purpose of one product, so that neither another product nor a longer tape changes them."""
    key = (zlib.crc32(product.encode()), zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def regime_matrix(parameters: Latent) -> F64:
    """Transition matrix of the regime over one step of 1 s, shape ``(regimes, regimes)``, rows from, columns to."""
    stay = float(np.exp(-1.0 / parameters.dwell_s))
    jump = np.asarray(parameters.jump, dtype=np.float64)
    return np.asarray(stay * np.eye(len(jump)) + (1.0 - stay) * jump, dtype=np.float64)


def stationary(parameters: Latent) -> F64:
    """Long-run share of each regime, shape ``(regimes,)``."""
    n = len(parameters.level)
    # π (P − I) = 0 with Σ π = 1; the jump matrix has the same solution since all dwell times are equal.
    a = np.vstack([(np.asarray(parameters.jump, dtype=np.float64) - np.eye(n)).T, np.ones(n)])
    return np.asarray(np.linalg.lstsq(a, np.r_[np.zeros(n), 1.0], rcond=None)[0], dtype=np.float64)


def decay(half_life_s: float) -> float:
    """Factor by which something with this half-life shrinks in one step of 1 s."""
    return float(0.5 ** (1.0 / half_life_s))


def simulate(seed: int, product: str, seconds: int, parameters: Latent = DEFAULT.latent) -> Path:
    """Draw the hidden path of one product; the path of a longer run begins with that of a shorter one.

    Parameters
    ----------
    seed
        Seed of the tape.
    product
        Product id; a part of the seed.
    seconds
        Number of steps of 1 s.
    parameters
        Of the hidden process.
    """
    uniform = rng(seed, product, "regime").random((seconds + 1, 2))
    leave = 1.0 - np.exp(-1.0 / parameters.dwell_s)
    cumulative = np.cumsum(np.asarray(parameters.jump, dtype=np.float64), axis=1)
    state = int(np.searchsorted(np.cumsum(stationary(parameters)), uniform[0, 0] * (1 - 1e-12)))
    regime = np.empty(seconds, dtype=np.int64)
    begin = 0
    for k in np.flatnonzero(uniform[1:, 0] < leave).tolist():
        regime[begin : k + 1] = state
        begin = min(k + 1, seconds)
        state = int(np.searchsorted(cumulative[state], uniform[k + 1, 1] * (1 - 1e-12), side="right"))
    regime[begin:] = state

    rho = decay(parameters.ou_half_life_s)
    shocks = rng(seed, product, "ou").standard_normal(seconds) * parameters.ou_sd
    shocks[1:] *= np.sqrt(1.0 - rho * rho)
    draws = rng(seed, product, "burst")
    starts = draws.random((seconds, 2))
    heights = np.where(starts[:, 0] < parameters.burst_per_s, -np.log1p(-starts[:, 1]) * parameters.burst_mean, 0.0)
    heights[:1] = 0.0
    ou, burst = _recursion(shocks, rho), _recursion(heights, decay(parameters.burst_half_life_s))
    return Path(regime, ou, burst, np.asarray(parameters.level, dtype=np.float64)[regime] + ou + burst)


def _recursion(shocks: F64, factor: float) -> F64:
    out, value = [], 0.0
    for shock in shocks.tolist():
        value = factor * value + shock
        out.append(value)
    return np.asarray(out, dtype=np.float64)


def order_chance(h: F64, product: Product, parameters: Parameters = DEFAULT) -> F64:
    """Chance that a slot of 50 ms holds a taker order, given h."""
    return _chance(product.orders_per_s, parameters.observation.order_elasticity, h)


def move_chance(h: F64, product: Product, parameters: Parameters = DEFAULT) -> F64:
    """Chance that a slot of 50 ms holds a quote move, given h."""
    return _chance(product.moves_per_s, parameters.observation.move_elasticity, h)


def _chance(rate: float, elasticity: float, h: F64) -> F64:
    return np.asarray(-np.expm1(-rate * np.exp(elasticity * h) / SLOTS_PER_S), dtype=np.float64)


def wide_chance(h: F64, parameters: Parameters = DEFAULT) -> F64:
    """Chance that a new quote's spread is more than one tick, given h."""
    o = parameters.observation
    odds = o.wide_chance / (1.0 - o.wide_chance) * np.exp(o.wide_elasticity * h)
    return np.asarray(odds / (1.0 + odds), dtype=np.float64)


def jump_location(product: Product) -> float:
    """m: log of the median size of a move at h = 0, in ticks."""
    return float(np.log(product.jump_median * product.price * 10.0**product.decimals))


def jump_ticks(z: F64, h: F64, product: Product, parameters: Parameters = DEFAULT) -> I64:
    """Size of a move in ticks from a standard normal z, given h; shapes broadcast."""
    o = parameters.observation
    x = jump_location(product) + o.jump_elasticity * h + o.jump_log_sd * np.minimum(z, o.jump_cap_sd)
    return np.asarray(np.maximum(np.rint(np.exp(x)), 1.0), dtype=np.int64)


def jump_log_pmf(ticks: I64, h: F64, product: Product, parameters: Parameters = DEFAULT) -> F64:
    """Log chance of a move of this many ticks, given h; the law of :func:`jump_ticks`. Shapes broadcast."""
    from scipy.special import ndtr

    o = parameters.observation
    m = jump_location(product) + o.jump_elasticity * np.asarray(h)
    cap = np.maximum(np.rint(np.exp(m + o.jump_log_sd * o.jump_cap_sd)), 1.0)
    j = np.asarray(ticks, dtype=np.float64)
    above = np.where(j >= cap, 1.0, ndtr((np.log(j + 0.5) - m) / o.jump_log_sd))
    below = np.where(j <= 1.0, 0.0, ndtr((np.log(np.maximum(j - 0.5, 0.5)) - m) / o.jump_log_sd))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.where(j > cap, 0.0, above - below)), dtype=np.float64)


def log_likelihood(
    h: F64,
    order_slots: int,
    move_slots: int,
    jumps: I64,
    wide: int,
    product: Product,
    parameters: Parameters = DEFAULT,
    slots: int = SLOTS_PER_S,
) -> F64:
    """Log likelihood of what one step showed, at each h, up to a constant.

    Parameters
    ----------
    h
        Log volatilities to weigh (particles), shape ``(n,)``.
    order_slots, move_slots
        Slots of the step with a taker order, with a quote move.
    jumps
        Sizes of the moves in ticks: absolute changes of the best bid, shape ``(move_slots,)``.
    wide
        Moves after which the spread was more than one tick. How wide says nothing about h.
    product, parameters
        Of the generated market.
    slots
        Slots in the step.

    Returns
    -------
    ndarray
        Shape ``(n,)``.
    """
    total = np.zeros(len(h), dtype=np.float64)
    for count, of, p in (
        (order_slots, slots, order_chance(h, product, parameters)),
        (move_slots, slots, move_chance(h, product, parameters)),
        (wide, move_slots, wide_chance(h, parameters)),
    ):
        total += count * np.log(p) + (of - count) * np.log1p(-p)
    if len(jumps):
        total += jump_log_pmf(np.asarray(jumps)[None, :], h[:, None], product, parameters).sum(axis=1)
    return total
