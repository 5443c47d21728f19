"""The plainest book there is: prices with their sizes in a dict, and the sorted list of prices."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable


class Side:
    """One side; ``best first`` is from the top for asks, from the bottom of the negated for bids."""

    def __init__(self, sign: int) -> None:
        self.sign, self.sizes, self.order = sign, dict[float, float](), list[float]()

    def set(self, price: float, size: float) -> bool:
        """Set a level's size, 0 removing it; False where an unknown one was to be removed."""
        key, known = self.sign * price, price in self.sizes
        if size == 0:
            if known:
                del self.sizes[price]
                del self.order[bisect_left(self.order, key)]
            return known
        if not known:
            insort(self.order, key)
        self.sizes[price] = size
        return True

    def best(self, levels: int) -> list[tuple[float, float]]:
        """Best levels as (price, size)."""
        return [(self.sign * key, self.sizes[self.sign * key]) for key in self.order[:levels]]


class Book:
    """Bids and asks."""

    def __init__(self, levels: Iterable[tuple[str, float, float]] = ()) -> None:
        self.sides = {"bid": Side(-1), "ask": Side(1)}
        self.unknown_deletes = 0
        for side, price, size in levels:
            self.sides[side].set(price, size)

    def apply(self, changes: Iterable[tuple[str, float, float]]) -> None:
        """Apply changes in order."""
        for side, price, size in changes:
            if not self.sides[side].set(price, size):
                self.unknown_deletes += 1

    @property
    def crossed(self) -> bool:
        """Whether the best bid is at or above the best ask."""
        top = self.top()
        return top is not None and top["bid"] >= top["ask"]

    def top(self) -> dict[str, float] | None:
        """Best prices with their sizes and the sizes of ten levels; None where a side is empty."""
        bids, asks = self.sides["bid"].best(10), self.sides["ask"].best(10)
        if not bids or not asks:
            return None
        return {
            "bid": bids[0][0], "bid_size": bids[0][1], "bid_10": math.fsum(size for _, size in bids),
            "ask": asks[0][0], "ask_size": asks[0][1], "ask_10": math.fsum(size for _, size in asks),
        }  # fmt: skip
