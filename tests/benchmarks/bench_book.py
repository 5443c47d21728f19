"""How fast the book takes changes: 30,000 levels a side, top and ten-level depth read after each message.

Changes fall near the touch, as they do: geometric in levels with a mean of 300, a tenth anywhere; a third remove a
level, the rest set a size, which brings removed levels back. Caveat: messages are arrays already; decoding is measured
in ``bench_replay``.
"""

from __future__ import annotations

import time
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.book import ASKS, BIDS, TOP, Book, best, depth, empty_book, reserve, set_level
from ingestion.kernel.events import LEVEL

LEVELS = 30_000
CHANGES = 2_000_000
QUICK = {"changes": 200_000}
MID = 5_000_000


@numba.njit(error_model="numpy")
def _apply(book, levels, per_message):
    rows, first, blocks = book
    check = 0.0
    for lo in range(0, len(levels), per_message):
        for j in range(lo, min(lo + per_message, len(levels))):
            set_level(rows, first, blocks, levels[j].side, levels[j].price, levels[j].size)
        bid, _ = best(rows, blocks, BIDS)
        ask, _ = best(rows, blocks, ASKS)
        check += bid + ask + depth(rows, blocks, BIDS, TOP) + depth(rows, blocks, ASKS, TOP)
    return check


def _full_book() -> Book:
    levels = np.zeros(2 * LEVELS, LEVEL)
    levels["side"] = np.repeat([BIDS, ASKS], LEVELS)
    away = np.tile(np.arange(1, LEVELS + 1), 2)
    levels["price"] = (MID + np.where(levels["side"] == ASKS, away, -away)) / 100
    levels["size"] = 1.0
    book = reserve(empty_book(), len(levels))
    _apply(book, levels, len(levels))
    return book


def _changes(rng: np.random.Generator, count: int) -> NDArray[np.void]:
    levels = np.zeros(count, LEVEL)
    levels["side"] = rng.integers(0, 2, count)
    near = np.minimum(rng.geometric(1 / 300, count), LEVELS)
    away = np.where(rng.random(count) < 0.1, rng.integers(1, LEVELS + 1, count), near)
    levels["price"] = (MID + np.where(levels["side"] == ASKS, away, -away)) / 100
    levels["size"] = np.where(rng.random(count) < 1 / 3, 0.0, rng.random(count) + 0.01)
    return levels


def run(changes: int = CHANGES) -> list[dict[str, Any]]:
    """Return changes per second at 1 and 20 changes a message."""
    rng = np.random.default_rng(5)
    results = []
    for per_message, target in ((1, 1_000_000), (20, 3_000_000)):
        book = reserve(_full_book(), changes)
        levels = _changes(rng, changes)
        _apply(book, levels[:1000], per_message)
        began = time.perf_counter()
        _apply(book, levels, per_message)
        seconds = time.perf_counter() - began
        results.append(
            {
                "metric": f"book, {per_message} changes a message",
                "value": changes / seconds,
                "unit": "changes/s",
                "target": target,
                "op": ">=",
            }
        )
    return results


if __name__ == "__main__":
    for result in run():
        print(result)
