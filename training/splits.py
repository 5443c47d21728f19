"""Chronological split with a purge on the clock, the same instants for all products and sessions.

::

    |------ train ------|<- >= 960 s ->|-- validation --|<- >= 960 s ->|-- test --|
                        label + window                   rows in between are lost, and counted

Rows whose windows or horizons could touch two blocks are in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError

BLOCKS: Final = ("train", "validation", "test")
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the clock, ns UTC, both ends inclusive, and how many rows lie in it."""

    name: str
    start_ns: int
    end_ns: int
    rows: int

    def holds(self, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which times lie in the block, bool[n]."""
        return np.asarray((t_ns >= self.start_ns) & (t_ns <= self.end_ns))


@dataclass(frozen=True, slots=True)
class Split:
    """Train, validation and test in the order of time; ``lost`` rows lie in the purged stretches between them."""

    blocks: tuple[Block, ...]
    lost: int
    purge_s: int

    def __getitem__(self, name: str) -> Block:
        """Block of that name."""
        return next(b for b in self.blocks if b.name == name)


def chronological(
    t_ns: NDArray[np.int64], ratios: Sequence[float] = (0.7, 0.15, 0.15), *, purge_s: int = PURGE_S
) -> Split:
    """Cut the clock into train, validation and test.

    The ratios are of the rows that are left after the purge, so that a short tape loses from all blocks alike; where
    recordings lie hours apart the purge costs nothing.

    Parameters
    ----------
    t_ns
        int64[n], times of all usable rows of all products, ns UTC, any order.
    ratios
        Shares of train, validation and test; each > 0, sum 1.
    purge_s
        Least distance on the clock between rows of two blocks, seconds.

    Returns
    -------
    Split

    Raises
    ------
    UsageError
        If the ratios are not shares of one.
    InsufficientDataError
        If a block would be empty.
    """
    if len(ratios) != len(BLOCKS) or any(not r > 0 for r in ratios) or abs(sum(ratios) - 1) > 1e-9:
        raise UsageError(f"ratios of {', '.join(BLOCKS)} must each be > 0 and sum to 1, were {list(ratios)}")
    t = np.sort(np.asarray(t_ns, np.int64))
    # The most rows whose shares fit one after the other, purges between them, found by bisection: asking for more rows
    # moves every later block further, so what fits once fits for all smaller numbers.
    low, high = 0, len(t)
    while low < high:
        middle = (low + high + 1) // 2
        if _cut(t, middle, ratios, purge_s) is None:
            high = middle - 1
        else:
            low = middle
    cut = _cut(t, low, ratios, purge_s) if low else None
    if cut is None:
        span = (t[-1] - t[0]) / _NS if len(t) else 0.0
        raise InsufficientDataError(
            f"{len(t)} usable rows over {span:.0f} s cannot be split into {', '.join(BLOCKS)} with {purge_s} s between "
            f"them, more than {2 * purge_s} s were needed; replay a longer tape"
        )
    blocks = tuple(
        Block(name, int(t[a]), int(t[b - 1]), b - a) for name, (a, b) in zip(BLOCKS, cut, strict=True)
    )
    return Split(blocks, len(t) - sum(b.rows for b in blocks), purge_s)


def _cut(
    t: NDArray[np.int64], rows: int, ratios: Sequence[float], purge_s: int
) -> list[tuple[int, int]] | None:
    """Index ranges of the blocks if each is to hold its share of ``rows``; the last one takes what follows."""
    ranges = []
    start = 0
    for i, ratio in enumerate(ratios):
        end = start + max(1, int(np.ceil(ratio * rows)))
        if end > len(t):
            return None
        last = i == len(ratios) - 1
        # rows of one instant (several products) stay together
        end = len(t) if last else int(np.searchsorted(t, t[end - 1], side="right"))
        ranges.append((start, end))
        start = int(np.searchsorted(t, t[end - 1] + purge_s * _NS, side="left"))
    return ranges
