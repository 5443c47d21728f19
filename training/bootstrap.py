"""How sure a figure is: resampling whole blocks of time, since neighbouring seconds say nearly the same thing.

A block is a quarter of an hour of the clock, of all products at once, so that what moves them together stays together.
Under twenty blocks there is no interval: an honest "unknown" instead of a number.

Source: Künsch, "The jackknife and the bootstrap for general stationary observations", 1989; blocks here don't overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.metrics import BLOCK_S, STATS, Forecast, Probability, Truth, Weights

MIN_BLOCKS: Final = 20
"""Fewer blocks give no interval that means anything (DESIGN §7)."""
RESAMPLES: Final = 1000
_NS: Final = 1_000_000_000
_RANKED: Final = ("pr_auc", "roc_auc", "precision_at_recall50", "ece_equal_mass")
_FITTED: Final = ("calibration_slope", "calibration_intercept")
_LEAST_DEFINED: Final = 0.9  # of the resamples: where more have no spike, an interval of the rest would flatter


@dataclass(frozen=True, slots=True)
class Paired:
    """Difference of one figure between two forecasts of the same rows.

    Attributes
    ----------
    difference
        First minus second.
    low, high
        Interval of it, by the percentiles of the resamples.
    deviation
        Standard deviation of the resampled differences.
    draws
        The resampled differences, float64[m].
    blocks, spike_blocks
        Blocks with a row, and with a spike.
    """

    difference: float
    low: float
    high: float
    deviation: float
    draws: NDArray[np.float64]
    blocks: int
    spike_blocks: int

    def lower_bound(self, alpha: float) -> float:
        """Bound that the true difference lies under with probability at most ``alpha``, however small.

        The lesser of the resamples' percentile and Student's bound with as many degrees of freedom as blocks hold a
        spike, less one: the percentile alone is too bold with few blocks, and blind to an alpha under 1 / resamples.
        """
        from scipy.stats import t

        freedom = max(self.spike_blocks - 1, 1)
        student = self.difference - float(t.ppf(1 - alpha, freedom)) * self.deviation
        return min(student, float(np.quantile(self.draws, alpha)))


def interval(
    stat: str,
    p: Probability,
    y: Truth,
    t_ns: NDArray[np.int64],
    block_s: int = BLOCK_S,
    n: int = RESAMPLES,
    seed: int = 0,
    *,
    level: float = 0.95,
    threshold: float = 0.5,
    weights: Weights | None = None,
) -> tuple[float, float] | None:
    """Find the interval of a figure.

    Parameters
    ----------
    stat
        One of :data:`training.metrics.STATS`.
    p, y, t_ns
        float64[n] probabilities, bool[n] spikes, int64[n] times (ns UTC), in any order.
    block_s
        Length of a block, seconds.
    n, seed
        Number of resamples, and what they are drawn from.
    level
        Share of the resamples inside.
    threshold, weights
        As in :func:`training.metrics.figures`.

    Returns
    -------
    (float, float) or None
        None under :data:`MIN_BLOCKS` blocks, or where the figure is undefined in many resamples (spikes in few blocks).
    """
    found = intervals((stat,), p, y, t_ns, block_s, n, seed, level=level, threshold=threshold, weights=weights)
    return found[stat]


def intervals(
    stats: tuple[str, ...],
    p: Probability,
    y: Truth,
    t_ns: NDArray[np.int64],
    block_s: int = BLOCK_S,
    n: int = RESAMPLES,
    seed: int = 0,
    *,
    level: float = 0.95,
    threshold: float = 0.5,
    weights: Weights | None = None,
) -> dict[str, tuple[float, float] | None]:
    """Find the intervals of several figures from the same resamples; parameters as :func:`interval`."""
    codes, blocks = block_codes(t_ns, block_s)
    if blocks < MIN_BLOCKS:
        return dict.fromkeys(stats)
    forecast = Forecast(p, y, threshold, codes=codes, weights=weights)
    drawn = _measured(forecast, multipliers(blocks, n, seed), stats)
    return {stat: _quantiles(drawn[:, STATS.index(stat)], level) for stat in stats}


def paired(
    stat: str,
    p: Probability,
    other: Probability,
    y: Truth,
    t_ns: NDArray[np.int64],
    block_s: int = BLOCK_S,
    n: int = RESAMPLES,
    seed: int = 0,
    *,
    level: float = 0.95,
    thresholds: tuple[float, float] = (0.5, 0.5),
    weights: Weights | None = None,
) -> Paired | None:
    """Compare two forecasts of the same rows under the same resamples; parameters and None as :func:`interval`."""
    codes, blocks = block_codes(t_ns, block_s)
    if blocks < MIN_BLOCKS:
        return None
    draws = multipliers(blocks, n, seed)
    column = STATS.index(stat)
    values, wholes = [], []
    for forecast, threshold in zip((p, other), thresholds, strict=True):
        ready = Forecast(forecast, y, threshold, codes=codes, weights=weights)
        values.append(_measured(ready, draws, (stat,))[:, column])
        wholes.append(float(_measured(ready, np.ones((1, blocks)), (stat,))[0, column]))
    difference = values[0] - values[1]
    ends = _quantiles(difference, level)
    if ends is None:
        return None
    known = difference[np.isfinite(difference)]
    spike_blocks = len(np.unique(codes[np.asarray(y, np.bool_)]))
    return Paired(wholes[0] - wholes[1], *ends, float(known.std(ddof=1)), known, blocks, spike_blocks)


def block_codes(t_ns: NDArray[np.int64], block_s: int = BLOCK_S) -> tuple[NDArray[np.int32], int]:
    """Number the blocks of the clock that hold a row: int32[n], and how many there are."""
    _, codes = np.unique(np.asarray(t_ns, np.int64) // (block_s * _NS), return_inverse=True)
    return codes.astype(np.int32), int(codes.max()) + 1 if len(codes) else 0


def multipliers(blocks: int, n: int, seed: int) -> NDArray[np.float64]:
    """How often each block is drawn in each resample, float64[n, blocks]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=n).astype(np.float64)


def _measured(forecast: Forecast, draws: NDArray[np.float64], stats: tuple[str, ...]) -> NDArray[np.float64]:
    unknown = [s for s in stats if s not in STATS]
    if unknown:
        raise ValueError(f"stat must be one of {list(STATS)}, was {unknown}")
    return forecast.measure(draws, fit=any(s in _FITTED for s in stats), ranking=any(s in _RANKED for s in stats))


def _quantiles(values: NDArray[np.float64], level: float) -> tuple[float, float] | None:
    known = values[np.isfinite(values)]
    if len(known) < _LEAST_DEFINED * len(values) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
