"""The best forecast of a generated market's spikes: a particle filter that knows the process and its parameters.

Two parts, each for one product::

    stream so far ── Filter ──► particles (regime, ou, burst)  ─┐
    the true hidden state (the oracle)  ────────────────────────┴─ Horizon ──► P(sigma_fwd >= tau)

The filter is a bootstrap filter: particles move by the process's own law, are weighed by what a second showed (slots
with an order, slots with a move, sizes of the moves, wide spreads: ``process.log_likelihood``) and drawn anew when
the weights get uneven. The likelihood is averaged over cells of h, 0.02 wide: the cut of the sizes makes it jump inside
a cell (a move of exactly the greatest size tells h to a thousandth), which particles would never hit.

The horizon's law given the state is found by simulating the next 60 seconds from a grid of states, and interpolated.
Left out: the spread of the moment, which shifts the first of 60 returns by a fraction of a move.
Source: Gordon, Salmond, Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation", 1993.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ingestion.market import process
from ingestion.market.parameters import DEFAULT, SLOTS_PER_S, Parameters
from tests.oracle.market_days import Day

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PARTICLES: Final = 2_000
"""With 4,000 the PR-AUC of a day moves by 0.001; with 1,000 it is 0.008 less."""
BURSTS: Final = 8.0
"""Times as many particles burst as the law says, with that much less weight: few would, and they are what matters."""
SIMULATIONS: Final = 2_000
"""Horizons from each state of the grid; neighbouring states share their random numbers, so errors are smooth."""
HORIZON_S: Final = 60
HIGHEST: Final = 3.0
"""h in simulated horizons: above it each is a spike, and costs the most to simulate."""
CELL: Final = 0.02
IMPOSSIBLE: Final = 1e-10
"""Chance of a size above the cut, so that the filter goes on where all its particles have too small an h."""
LOWEST: Final = -3.0
CELLS: Final = 450
"""h from −3 to 6: eight standard deviations either side."""
OU_NODES: Final = np.linspace(-1.04, 1.04, 13)
BURST_NODES: Final = np.array([0.0, 0.25, 0.55, 0.9, 1.4, 2.0, 3.0])
LEVELS: Final = 12
"""Thresholds at which the horizon's law is tabled for a day: tau is relative, moves are in ticks, prices wander."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """Law of the next minute given the hidden state.

    Attributes
    ----------
    sigma
        float64[regimes, ou nodes, burst nodes, simulations], sorted: standard deviation of 60 one-second changes of
        the mid, ticks.
    """

    sigma: F64

    def chances(self, thresholds: F64) -> F64:
        """Chance of ``sigma >= threshold`` (ticks), shape ``(thresholds, regimes, ou nodes, burst nodes)``."""
        flat = self.sigma.reshape(-1, self.sigma.shape[-1])
        below = np.stack([np.searchsorted(row, thresholds, side="left") for row in flat], axis=-1)
        return np.asarray(1.0 - below.reshape(-1, *self.sigma.shape[:3]) / self.sigma.shape[-1])


def horizon(
    product: str, *, parameters: Parameters = DEFAULT, simulations: int = SIMULATIONS, seed: int = 0
) -> Horizon:
    """Simulate the next 60 seconds from every state of the grid."""
    latent, o, scale = parameters.latent, parameters.observation, parameters.products[product]
    found = np.empty((len(latent.level), len(OU_NODES), len(BURST_NODES), simulations))
    _simulate(
        found,
        np.asarray(latent.level),
        _jump_cumulative(parameters),
        _law(parameters),
        np.array([scale.moves_per_s / SLOTS_PER_S, o.move_elasticity, process.jump_location(scale), o.jump_elasticity,
                  o.jump_log_sd, o.jump_cap_sd, np.log(o.wide_chance / (1 - o.wide_chance)), o.wide_elasticity,
                  o.wide_log_sd]),
        OU_NODES,
        BURST_NODES,
        seed,
    )  # fmt: skip
    found.sort(axis=-1)
    return Horizon(found)


def forecast(day: Day, tau: float, law: Horizon) -> tuple[F64, F64]:
    """Chance of a spike at each row of a day: by the filter, and by the oracle of the hidden state."""
    threshold = tau * day.mid * 10.0 ** DEFAULT.products[day.product].decimals
    last, shown = day.second - 1, day.shown
    p = filtered(shown.orders, shown.moves, shown.wide, shown.jumps, day.second, threshold, law, day.product)
    return p, known(day.regime[last], day.ou[last], day.burst[last], threshold, law)


def filtered(
    orders: I64,
    moves: I64,
    wide: I64,
    jumps: I64,
    at: I64,
    threshold: F64,
    law: Horizon,
    product: str,
    *,
    parameters: Parameters = DEFAULT,
    particles: int = PARTICLES,
    seed: int = 0,
) -> F64:
    """Chance of a spike at each row, given what the stream showed in the seconds before it.

    Parameters
    ----------
    orders, moves, wide, jumps
        What each second showed: see :class:`tests.oracle.market_days.Shown`.
    at
        int64[n], rising: number of seconds that lie before each row, ≥ 1.
    threshold
        float64[n], tau of the row in ticks: tau × mid / tick.
    law
        Of the product.
    product, parameters
        Of the generated market.
    particles, seed
        Of the filter.

    Returns
    -------
    float64[n] in [0, 1].
    """
    levels, chances = _tabled(threshold, law)
    sizes, index = np.unique(jumps, return_inverse=True)
    found = np.empty(len(at))
    _filter(
        orders, moves, wide, np.r_[0, np.cumsum(moves)], index.astype(np.int64),
        _slot_log_likelihood(product, parameters), _jump_log_likelihood(sizes, product, parameters),
        np.asarray(parameters.latent.level), _jump_cumulative(parameters), process.stationary(parameters.latent),
        _law(parameters), at, threshold, levels, chances, OU_NODES, BURST_NODES, particles, seed, found,
    )  # fmt: skip
    return found


def known(regime: I64, ou: F64, burst: F64, threshold: F64, law: Horizon) -> F64:
    """Chance of a spike given the true hidden state of the last second before each row; shapes ``(n,)``."""
    levels, chances = _tabled(threshold, law)
    found = np.empty(len(regime))
    for i in range(len(regime)):
        at, share = _place(levels, threshold[i])
        one = np.array([ou[i]]), np.array([burst[i]]), np.array([regime[i]])
        found[i] = _mean_chance(*one, np.ones(1), chances, at, share, OU_NODES, BURST_NODES)
    return found


def _tabled(threshold: F64, law: Horizon) -> tuple[F64, F64]:
    levels = np.geomspace(threshold.min() * (1 - 1e-9), threshold.max() * (1 + 1e-9), LEVELS)
    return levels, law.chances(levels)


def _law(parameters: Parameters) -> F64:
    p = parameters.latent
    return np.array([
        1 - np.exp(-1 / p.dwell_s), process.decay(p.ou_half_life_s), p.ou_sd, p.burst_per_s, p.burst_mean,
        process.decay(p.burst_half_life_s),
    ])  # fmt: skip


def _jump_cumulative(parameters: Parameters) -> F64:
    return np.cumsum(np.asarray(parameters.latent.jump, dtype=np.float64), axis=1)


def _centres() -> F64:
    return np.asarray(LOWEST + CELL * (np.arange(CELLS) + 0.5))


def _slot_log_likelihood(product: str, parameters: Parameters) -> F64:
    """Log chances of yes and no for an order, a move, a wide spread, shape ``(3, 2, cells)``."""
    h, scale = _centres(), parameters.products[product]
    p = np.stack([
        process.order_chance(h, scale, parameters), process.move_chance(h, scale, parameters),
        process.wide_chance(h, parameters),
    ])  # fmt: skip
    return np.stack([np.log(p), np.log1p(-p)], axis=1)


def _jump_log_likelihood(sizes: I64, product: str, parameters: Parameters) -> F64:
    """Log chance of each size averaged over each cell, shape ``(sizes, cells)``.

    Where h allows more than a size, it has the lognormal's chance; where h cuts exactly there, that of the whole tail.
    """
    from scipy.special import ndtr

    o, scale = parameters.observation, parameters.products[product]
    j = sizes.astype(np.float64)[:, None]
    m = process.jump_location(scale) + o.jump_elasticity * _centres()[None, :]
    below = np.where(j <= 1, 0.0, ndtr((np.log(np.maximum(j - 0.5, 0.5)) - m) / o.jump_log_sd))
    above = ndtr((np.log(j + 0.5) - m) / o.jump_log_sd)

    def share_under(size: F64) -> F64:
        """Share of the cell in which the cut, before rounding, lies under ``size``."""
        h = (np.log(size) - process.jump_location(scale) - o.jump_log_sd * o.jump_cap_sd) / o.jump_elasticity
        return np.clip((h - (_centres()[None, :] - CELL / 2)) / CELL, 0.0, 1.0)

    impossible = np.where(j <= 1, 0.0, share_under(np.maximum(j - 0.5, 0.5)))
    not_above = share_under(j + 0.5)
    chance = (1 - not_above) * (above - below) + (not_above - impossible) * (1 - below)
    return np.asarray(np.log(np.maximum(chance, IMPOSSIBLE)))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _place(nodes, value):  # type: ignore[no-untyped-def]
    """Index of the node below a value, and how far it lies towards the next, both inside the nodes."""
    at = 0
    while at < len(nodes) - 2 and nodes[at + 1] < value:
        at += 1
    share = (value - nodes[at]) / (nodes[at + 1] - nodes[at])
    return at, min(max(share, 0.0), 1.0)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mean_chance(ou, burst, regime, weight, chances, at, share, ou_nodes, burst_nodes):  # type: ignore[no-untyped-def]
    total = 0.0
    weights = 0.0
    per_ou = 1 / (ou_nodes[1] - ou_nodes[0])
    for i in range(len(ou)):
        v = (min(max(ou[i], ou_nodes[0]), ou_nodes[-1]) - ou_nodes[0]) * per_ou
        y = min(int(v), len(ou_nodes) - 2)
        v -= y
        b, w = _place(burst_nodes, burst[i])
        value = 0.0
        for level, part in ((at, 1 - share), (at + 1, share)):
            c = chances[level, regime[i]]
            near = (1 - w) * c[y, b] + w * c[y, b + 1]
            far = (1 - w) * c[y + 1, b] + w * c[y + 1, b + 1]
            value += part * ((1 - v) * near + v * far)
        total += weight[i] * value
        weights += weight[i]
    return total / weights


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _next_regime(regime, cumulative):  # type: ignore[no-untyped-def]
    u = np.random.random() * (1 - 1e-12)
    s = 0
    while cumulative[regime, s] <= u:
        s += 1
    return s


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _filter(  # type: ignore[no-untyped-def]
    orders, moves, wide, first_jump, jump_index, slot_log, jump_log, level, cumulative, stationary, law,
    at, threshold, levels, chances, ou_nodes, burst_nodes, n, seed, found,
):  # fmt: skip
    np.random.seed(seed)
    leave, rho, ou_sd, burst_chance, burst_mean, beta = law
    shock = ou_sd * np.sqrt(1 - rho * rho)
    usual = (1 - leave - burst_chance) / (1 - leave - BURSTS * burst_chance)
    regime, drawn_regime = np.zeros(n, np.int64), np.zeros(n, np.int64)
    ou, burst, drawn_ou, drawn_burst = np.empty(n), np.zeros(n), np.empty(n), np.empty(n)
    weight = np.ones(n)
    shares = np.cumsum(stationary)
    for i in range(n):
        u = np.random.random() * shares[-1]
        while shares[regime[i]] <= u:
            regime[i] += 1
        ou[i] = ou_sd * np.random.standard_normal()
    likelihood = np.empty(slot_log.shape[2])
    row = 0
    for k in range(len(orders)):
        if k:
            for i in range(n):
                ou[i] = rho * ou[i] + shock * np.random.standard_normal()
                burst[i] *= beta
                # One number for both: that both come in one second happens once in eight days.
                u = np.random.random()
                if u < leave:
                    regime[i] = _next_regime(regime[i], cumulative)
                elif u > 1 - BURSTS * burst_chance:
                    burst[i] += burst_mean * np.random.standard_exponential()
                    weight[i] *= 1 / BURSTS
                else:
                    weight[i] *= usual
        for c in range(len(likelihood)):
            likelihood[c] = (
                orders[k] * slot_log[0, 0, c] + (20 - orders[k]) * slot_log[0, 1, c]
                + moves[k] * slot_log[1, 0, c] + (20 - moves[k]) * slot_log[1, 1, c]
                + wide[k] * slot_log[2, 0, c] + (moves[k] - wide[k]) * slot_log[2, 1, c]
            )  # fmt: skip
        for j in range(first_jump[k], first_jump[k + 1]):
            likelihood += jump_log[jump_index[j]]
        likelihood[:] = np.exp(likelihood - likelihood.max())
        total = 0.0
        squares = 0.0
        for i in range(n):
            cell = int((level[regime[i]] + ou[i] + burst[i] - LOWEST) / CELL)
            weight[i] *= likelihood[min(max(cell, 0), CELLS - 1)]
            total += weight[i]
        weight /= total
        for i in range(n):
            squares += weight[i] * weight[i]
        while row < len(at) and at[row] == k + 1:
            place, share = _place(levels, threshold[row])
            found[row] = _mean_chance(ou, burst, regime, weight, chances, place, share, ou_nodes, burst_nodes)
            row += 1
        if squares * n > 2.0:
            # Systematic resampling: one random number, evenly spaced pointers.
            pointer, passed, source = np.random.random() / n, weight[0], 0
            for i in range(n):
                while passed < pointer and source < n - 1:
                    source += 1
                    passed += weight[source]
                drawn_regime[i], drawn_ou[i], drawn_burst[i] = regime[source], ou[source], burst[source]
                pointer += 1.0 / n
            regime, drawn_regime = drawn_regime, regime
            ou, drawn_ou = drawn_ou, ou
            burst, drawn_burst = drawn_burst, burst
            weight[:] = 1.0
        if row == len(at):
            return


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _spread(h, odds, elasticity, location, log_sd):  # type: ignore[no-untyped-def]
    z = np.random.standard_normal()
    if np.random.random() < 1 / (1 + np.exp(-(odds + elasticity * h))):
        return 1.0 + max(np.rint(np.exp(location - np.log(2.0) + log_sd * z)), 1.0)
    return 1.0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _simulate(found, level, cumulative, law, shows, ou_nodes, burst_nodes, seed):  # type: ignore[no-untyped-def]
    leave, rho, ou_sd, burst_chance, burst_mean, beta = law
    rate, move_elasticity, location, jump_elasticity, jump_sd, cut, odds, wide_elasticity, wide_sd = shows
    shock = ou_sd * np.sqrt(1 - rho * rho)
    returns = np.empty(HORIZON_S)
    for s0 in range(found.shape[0]):
        for y0 in range(found.shape[1]):
            for b0 in range(found.shape[2]):
                np.random.seed(seed)
                for i in range(found.shape[3]):
                    s, y, b = s0, ou_nodes[y0], burst_nodes[b0]
                    spread = _spread(level[s] + y + b, odds, wide_elasticity, location, wide_sd)
                    for k in range(HORIZON_S):
                        if np.random.random() < leave:
                            s = _next_regime(s, cumulative)
                        y = rho * y + shock * np.random.standard_normal()
                        b *= beta
                        if np.random.random() < burst_chance:
                            b += burst_mean * np.random.standard_exponential()
                        h = min(level[s] + y + b, HIGHEST)
                        # Slots with a move: the gaps between them are geometric, drawn as floored exponentials.
                        per_slot = rate * np.exp(move_elasticity * h)
                        slot = np.floor(np.random.standard_exponential() / per_slot)
                        change = 0.0
                        while slot < 20:
                            z = min(np.random.standard_normal(), cut)
                            jump = max(np.rint(np.exp(location + jump_elasticity * h + jump_sd * z)), 1.0)
                            new = _spread(h, odds, wide_elasticity, location, wide_sd)
                            change += (jump if np.random.random() < 0.5 else -jump) + (new - spread) / 2
                            spread = new
                            slot += 1 + np.floor(np.random.standard_exponential() / per_slot)
                        returns[k] = change
                    found[s0, y0, b0, i] = returns.std()
