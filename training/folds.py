"""Expanding folds for time series, purged on the clock: a scikit-learn splitter.

::

    fold 1   |-- train --|<- purge ->|- test -|
    fold 2   |------- train ---------|<- purge ->|- test -|
    fold 3   |----------------- train -----------|<- purge ->|- test -|

Train always ends a purge before its test begins, so no window and no horizon of a train row touches a test row's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError

Rows = NDArray[np.int64]
_NS: Final = 1_000_000_000


class PurgedFolds:
    """Cross-validation that only ever tests on what came later, with a gap on the clock.

    Test folds lie end to end and hold about the same number of rows; rows of one instant (several products) stay
    together. The first train part has at least as many rows as a test fold.

    Parameters
    ----------
    n_splits
        Number of folds, at least 1.
    purge_s
        Least distance on the clock between a train row and the first row of its test fold, seconds.

    Examples
    --------
    >>> t = np.arange(10_000) * 1_000_000_000
    >>> for train, test in PurgedFolds(3).split(t, groups=t):
    ...     print(len(train), (t[test].min() - t[train].max()) // 1_000_000_000)
    2260 960
    4520 960
    6781 960
    """

    def __init__(self, n_splits: int = 5, purge_s: float = PURGE_S) -> None:
        if n_splits < 1:
            raise UsageError(f"--n-splits is {n_splits}, must be a whole number >= 1, such as 5")
        if not 0 <= purge_s < float("inf"):
            raise UsageError(f"purge_s is {purge_s}, must be >= 0 s; {PURGE_S} s are the label and the longest window")
        self.n_splits = n_splits
        self.purge_s = purge_s

    def __repr__(self) -> str:
        """Name the splitter as scikit-learn's own do."""
        return f"PurgedFolds(n_splits={self.n_splits}, purge_s={self.purge_s})"

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Rows, Rows]]:
        """Yield row numbers of train and test, fold by fold in the order of time.

        Parameters
        ----------
        X, y
            Ignored, but for X's length, which must be that of ``groups``.
        groups
            int64[n], times of the rows, ns UTC, any order.

        Yields
        ------
        int64[a], int64[b]
            Row numbers, each in the order of time.

        Raises
        ------
        UsageError
            If the times are missing or are not one per row.
        InsufficientDataError
            If the rows do not reach for this many folds with a purge before each.
        """
        if groups is None:
            raise UsageError("groups is None, PurgedFolds needs the rows' times there, int64 ns; pass groups=t_ns")
        t = np.asarray(groups)
        rows = getattr(X, "shape", (len(X) if X is not None else len(t),))[0]
        if t.ndim != 1 or t.dtype.kind != "i" or rows != len(t):
            raise UsageError(
                f"groups is {t.dtype}{list(t.shape)}, must be int64[{rows}]: the time of each row, ns; pass t_ns"
            )
        order = np.argsort(t, kind="stable")
        clock = t[order]
        purge_ns = round(self.purge_s * _NS)
        edges = self._edges(clock, purge_ns)
        for a, b in pairwise(edges):
            train_end = int(np.searchsorted(clock, clock[a] - purge_ns, side="right"))
            # with no purge, rows of the test's first instant are not train rows
            yield order[: min(train_end, a)], order[a:b]

    def _edges(self, clock: Rows, purge_ns: int) -> list[int]:
        """Row numbers, in time, at which the test folds begin, and the end."""
        low, high = 0, len(clock) // (self.n_splits + 1)
        while low < high:  # the most rows a fold can have; more rows leave less for the rest, so bisection finds it
            middle = (low + high + 1) // 2
            if len(clock) - _first_test(clock, middle, purge_ns) >= self.n_splits * middle:
                low = middle
            else:
                high = middle - 1
        edges: list[int] = []
        if low:
            start = _first_test(clock, low, purge_ns)
            cuts = np.linspace(start, len(clock), self.n_splits + 1).round().astype(int)[1:-1]
            edges = [start, *(int(np.searchsorted(clock, clock[c], side="left")) for c in cuts), len(clock)]
        if not edges or any(b <= a for a, b in pairwise(edges)):
            span = (int(clock[-1]) - int(clock[0])) / _NS if len(clock) else 0.0
            raise InsufficientDataError(
                f"{len(clock)} rows over {span:.0f} s do not make {self.n_splits} folds with {self.purge_s:g} s before "
                "each; give a longer tape or a smaller --n-splits"
            )
        return edges


def _first_test(clock: Rows, rows: int, purge_ns: int) -> int:
    """First row a purge after the first ``rows`` of train, those of its last instant included."""
    last = clock[rows - 1]
    return int(max(np.searchsorted(clock, last + purge_ns, side="left"), np.searchsorted(clock, last, side="right")))


def usable(
    t_ns: Rows, y: NDArray[np.bool_], *, n_splits: int = 5, purge_s: float = PURGE_S
) -> tuple[list[tuple[Rows, Rows]], list[str]]:
    """Make the folds that something can be learned from and measured on.

    Parameters
    ----------
    t_ns, y
        int64[n] times, ns UTC, any order; bool[n] spikes.
    n_splits, purge_s
        As in :class:`PurgedFolds`.

    Returns
    -------
    list of (int64[a], int64[b])
        Train and test rows of the folds in which both have a spike and another row; fit for ``cv`` of a grid search.
    list of str
        Why each other fold was left out.

    Raises
    ------
    InsufficientDataError
        If no fold is left, or the rows do not reach for the folds at all.
    """
    folds: list[tuple[Rows, Rows]] = []
    reasons: list[str] = []
    for i, (train, test) in enumerate(PurgedFolds(n_splits, purge_s).split(t_ns, groups=t_ns), 1):
        wrong = [
            f"its {part} has {int(y[rows].sum())} spikes in {len(rows)} rows"
            for part, rows in (("train part", train), ("test part", test))
            if not 0 < int(y[rows].sum()) < len(rows)
        ]
        if wrong:
            reasons.append(f"fold {i} of {n_splits} left out: {' and '.join(wrong)}, must have both kinds")
        else:
            folds.append((train, test))
    if not folds:
        raise InsufficientDataError(
            f"no fold is left: {'; '.join(reasons)}; give a longer tape, a smaller --n-splits or a lower "
            "--threshold-percentile"
        )
    return folds, reasons
