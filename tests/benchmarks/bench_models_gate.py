"""How often the gate promotes a challenger that is no better: series of 200, judged by the gate's own comparison.

Half a day's stream has log-odds of a spike that wander from one quarter of an hour to the next and are known to all but
for errors that wander likewise; champion and challengers have errors of the same law, so none is better than the
champion but by luck. All 200 are compared on the same rows, which is the harder case: what was lucky once stays there
to be lucky on. ``k`` is counted on, as the registry does; a challenger that is promoted becomes champion, and from then
on counts as no better than the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SERIES = 5
CHALLENGERS = 200
QUICK = {"series": 1, "challengers": 20}
HOURS, EVERY_S = 12, 20
ERROR = 0.7
"""Standard deviation of a forecast's error in log-odds; the true log-odds have 1.2."""


def run(series: int = SERIES, challengers: int = CHALLENGERS) -> list[dict[str, Any]]:
    """Count promotions, and the power against a champion that is far worse, so that refusing everybody doesn't pass."""
    counts = [promoted(seed, challengers) for seed in range(series)]
    helped = [promoted(seed, 10, champion_error=3 * ERROR) > 0 for seed in range(10)]
    return [
        {
            "metric": f"{challengers} challengers no better than the champion: promoted, worst of {series} series",
            "value": max(counts) / challengers,
            "unit": "share",
            "target": 0.05,
            "op": "<=",
        },
        {"metric": "series with any promotion", "value": sum(c > 0 for c in counts) / series, "unit": "share"},
        {
            "metric": "clearly better challengers: series of 10 with a promotion",
            "value": sum(helped) / len(helped),
            "unit": "share",
            "target": 0.8,
            "op": ">=",
        },
    ]


def promoted(seed: int, challengers: int, *, champion_error: float = ERROR, alpha: float = 0.05) -> int:
    """Run one series; returns how many of the challengers were promoted."""
    from training.gate import STAT, compare, spend
    from training.metrics import figures

    rng = np.random.default_rng([20261121, seed])
    seconds = np.arange(0, HOURS * 3600, EVERY_S)
    truth = -3.0 + 1.2 * wander(rng, len(seconds))
    y = rng.random(len(seconds)) < logistic(truth)
    champion = logistic(truth + champion_error * wander(rng, len(seconds)))
    count = 0
    for attempt in range(1, challengers + 1):
        challenger = logistic(truth + ERROR * wander(rng, len(seconds)))
        own, other = (figures(p, y)[STAT] or 0.0 for p in (challenger, champion))
        if own <= other:
            continue  # no bound of a difference is above the difference: what compare would say takes no resamples
        found = compare(challenger, champion, y, seconds * 1_000_000_000, spend(alpha, attempt))
        if found is not None and found.lower_bound > 0:
            count += 1
            champion = challenger
    return count


def wander(rng: np.random.Generator, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw a stationary path of unit variance that forgets in ten minutes, one value per :data:`EVERY_S`."""
    from scipy.signal import lfilter

    keep = np.exp(-EVERY_S / 600)
    steps = rng.normal(size=n) * np.sqrt(1 - keep**2)
    steps[0] = rng.normal()
    return np.asarray(lfilter([1.0], [1.0, -keep], steps))


def logistic(z: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Turn log-odds into probabilities."""
    return np.asarray(1 / (1 + np.exp(-z)))
