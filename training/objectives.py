"""What a decision threshold is for: the forms of ``--objective``, each a way to cut probabilities.

::

    f1                     greatest F1
    cost:FP,FN             least cost, a false alarm costing FP and a missed spike FN
    precision@recall:R     greatest precision among the cuts that catch a share R of the spikes
    alerts-per-hour:N      lowest cut that raises at most N alerts an hour; alarms of one product no more than a
                           horizon apart are one alert
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import UsageError

Probabilities = NDArray[np.float64]
Truth = NDArray[np.bool_]
Times = NDArray[np.int64]

FORMS: Final = ("f1", "cost:FP,FN", "precision@recall:R", "alerts-per-hour:N")
_NS: Final = 1_000_000_000


class Objective(ABC):
    """A way to cut: an alarm is ``p >= threshold``."""

    @abstractmethod
    def threshold(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Find the cut that this objective prefers; of equally good ones the highest.

        Parameters
        ----------
        p
            float64[n], probabilities, n > 0.
        y
            bool[n], spikes.
        t_ns
            int64[n], times of the rows, ns UTC.
        products
            str[n], product of each row; None where all are of one.
        """

    @abstractmethod
    def value(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Tell how good these probabilities are for the objective at its own cut; more is better."""


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Cuts from the highest down, one for each distinct probability."""

    cut: Probabilities
    alarms: NDArray[np.int64]
    hits: NDArray[np.int64]
    rows: int
    spikes: int

    @staticmethod
    def of(p: Probabilities, y: Truth) -> _Ranked:
        order = np.argsort(-p, kind="stable")
        ranked = p[order]
        last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # equal probabilities are on one side of any cut
        hits = np.cumsum(y[order], dtype=np.int64)[last]
        return _Ranked(ranked[last], last + 1, hits, len(p), int(y.sum()))


@dataclass(frozen=True, slots=True)
class F1(Objective):
    """Greatest F1.

    Examples
    --------
    >>> p, y = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    >>> F1().threshold(p, y, np.zeros(4, np.int64))
    0.35
    """

    def threshold(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Find the cut; see :class:`Objective`."""
        cuts = _Ranked.of(p, y)
        return float(cuts.cut[int(np.argmax(_f1(cuts)))])

    def value(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """F1 at that cut."""
        return float(_f1(_Ranked.of(p, y)).max())


def _f1(cuts: _Ranked) -> Probabilities:
    return np.asarray(2 * cuts.hits / (cuts.alarms + cuts.spikes))


@dataclass(frozen=True, slots=True)
class Cost(Objective):
    """Least cost.

    Attributes
    ----------
    false_alarm, miss
        What one row of each costs, in any common unit, both > 0.

    Examples
    --------
    >>> p, y = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    >>> Cost(1.0, 0.5).threshold(p, y, np.zeros(4, np.int64))
    0.8
    """

    false_alarm: float
    miss: float

    def threshold(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Find the cut; 1 where no alarm at all is cheapest and no probability is 1."""
        cuts = _Ranked.of(p, y)
        cost = self._cost(cuts)
        best = int(np.argmin(cost))
        if cost[best] >= self.miss * cuts.spikes and cuts.cut[0] < 1:
            return 1.0
        return float(cuts.cut[best])

    def value(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Cost per row at that cut, negative."""
        cuts = _Ranked.of(p, y)
        return -float(min(self._cost(cuts).min(), self.miss * cuts.spikes)) / cuts.rows

    def _cost(self, cuts: _Ranked) -> Probabilities:
        return np.asarray(self.false_alarm * (cuts.alarms - cuts.hits) + self.miss * (cuts.spikes - cuts.hits))


@dataclass(frozen=True, slots=True)
class PrecisionAtRecall(Objective):
    """Greatest precision among the cuts whose recall is at least ``recall``, which is in (0, 1]."""

    recall: float

    def threshold(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Find the cut; see :class:`Objective`."""
        cuts = _Ranked.of(p, y)
        return float(cuts.cut[int(np.argmax(self._precision(cuts)))])

    def value(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Precision at that cut."""
        return float(self._precision(_Ranked.of(p, y)).max())

    def _precision(self, cuts: _Ranked) -> Probabilities:
        enough = cuts.hits >= self.recall * cuts.spikes
        return np.where(enough, cuts.hits / cuts.alarms, -1.0)


@dataclass(frozen=True, slots=True)
class AlertsPerHour(Objective):
    """Lowest cut from which on no higher one raises more than ``limit`` alerts an hour.

    Alarms of one product no more than 60 s apart are one alert; the hours are those in which rows were seen, of
    whatever product.
    """

    limit: float

    def threshold(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Find the cut; 1 where even the highest probability alone alerts too often."""
        order, alerts = _alerts(p, t_ns, products)
        hours = len(np.unique(t_ns // _NS)) / 3600
        ascending = p[order]
        first = np.r_[True, ascending[1:] != ascending[:-1]]  # a cut takes all rows of its probability
        bad = np.flatnonzero(first & (alerts > self.limit * hours))
        good = np.flatnonzero(first[int(bad[-1]) + 1 :]) + int(bad[-1]) + 1 if len(bad) else np.array([0])
        return float(ascending[good[0]]) if len(good) else 1.0

    def value(self, p: Probabilities, y: Truth, t_ns: Times, products: NDArray[np.str_] | None = None) -> float:
        """Recall at that cut, 0 where there is no spike."""
        found = int((y & (p >= self.threshold(p, y, t_ns, products))).sum())
        return found / max(int(y.sum()), 1)


def _alerts(p: Probabilities, t_ns: Times, products: NDArray[np.str_] | None) -> tuple[NDArray[np.int64], Times]:
    """Rows by ascending probability, and how many alerts there are when a row and all after it are alarms."""
    group = np.zeros(len(p), np.int64) if products is None else np.unique(products, return_inverse=True)[1]
    clock = np.lexsort((t_ns, group))
    place = np.empty(len(p), np.int64)
    place[clock] = np.arange(len(p))
    order = np.argsort(p, kind="stable")
    return order, _count(t_ns[clock], group[clock].astype(np.int64), place[order], HORIZON_S * _NS)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba carries no types
def _count(t: Times, group: NDArray[np.int64], places: NDArray[np.int64], apart: int) -> NDArray[np.int64]:
    """Take the rows away one by one from a linked list of all, counting the stretches that are left."""
    n = len(t)
    before, after = np.arange(-1, n - 1), np.arange(1, n + 1)
    stretches = 0
    for i in range(n):
        stretches += i == 0 or group[i] != group[i - 1] or t[i] - t[i - 1] > apart
    counts = np.empty(n, np.int64)
    for k in range(n):
        counts[k] = stretches
        i = places[k]
        a, b = before[i], after[i]
        left = a >= 0 and group[a] == group[i] and t[i] - t[a] <= apart
        right = b < n and group[b] == group[i] and t[b] - t[i] <= apart
        across = a >= 0 and b < n and group[a] == group[b] and t[b] - t[a] <= apart
        stretches += int(left) + int(right) - 1 - int(across)
        if a >= 0:
            after[a] = b
        if b < n:
            before[b] = a
    return counts


def parse(text: str) -> Objective:
    """Read an objective as ``--objective`` has it.

    Raises
    ------
    UsageError
        If the form is unknown or a number is out of range.

    Examples
    --------
    >>> parse("cost:1,20")
    Cost(false_alarm=1.0, miss=20.0)
    """
    name, _, rest = text.strip().partition(":")
    numbers = [_number(part) for part in rest.split(",")] if rest else []
    positive = all(0 < v < math.inf for v in numbers)
    if name == "f1" and not numbers:
        return F1()
    if name == "cost" and len(numbers) == 2 and positive:
        return Cost(*numbers)
    if name == "precision@recall" and len(numbers) == 1 and 0 < numbers[0] <= 1:
        return PrecisionAtRecall(numbers[0])
    if name == "alerts-per-hour" and len(numbers) == 1 and positive:
        return AlertsPerHour(numbers[0])
    raise UsageError(
        f"--objective is {text!r}, must be one of {', '.join(FORMS)} with costs and N > 0 and R in (0, 1], "
        "such as cost:1,20"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
