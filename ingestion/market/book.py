"""A small order book in whole ticks, which records what changes so that it can be told as an l2update.

Made for generating: about 300 levels a side, a change a few microseconds. The book that follows a live market is
``ingestion.kernel.book``.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class Side:
    """One side, best level first.

    Parameters
    ----------
    sign
        +1 for asks, −1 for bids; a level's key is ``sign · price``, so that the least key is the best.

    Attributes
    ----------
    keys
        Sorted keys in ticks.
    sizes
        Key to size, in units of 1e-8 of the base currency; always > 0.
    changed
        Keys touched since :meth:`take_changes`, and whether each was there then.

    Examples
    --------
    >>> bids = Side(-1)
    >>> bids.set(-100, 7); bids.set(-101, 9)
    >>> bids.best, bids.best_size
    (101, 9)
    >>> bids.retreat(100)
    [-101]
    >>> bids.best, bids.take_changes()
    (100, [(100, 7)])
    >>> bids.set(-100, 0); bids.set(-99, 5)
    >>> bids.take_changes()
    [(100, 0), (99, 5)]
    """

    __slots__ = ("changed", "keys", "sign", "sizes")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[int] = []
        self.sizes: dict[int, int] = {}
        self.changed: dict[int, bool] = {}

    @property
    def best(self) -> int:
        """Best price in ticks."""
        return self.sign * self.keys[0]

    @property
    def best_size(self) -> int:
        """Size at the best price, in units of 1e-8."""
        return self.sizes[self.keys[0]]

    def set(self, key: int, size: int) -> None:
        """Set the size of a level; 0 removes it."""
        there = key in self.sizes
        if there:
            if size == 0:
                del self.sizes[key]
                del self.keys[bisect_left(self.keys, key)]
            else:
                self.sizes[key] = size
        elif size:
            self.sizes[key] = size
            insort(self.keys, key)
        else:
            return
        self.changed.setdefault(key, there)

    def retreat(self, price: int) -> list[int]:
        """Remove all levels better than a price; return their keys, best first."""
        at = bisect_left(self.keys, self.sign * price)
        gone = self.keys[:at]
        del self.keys[:at]
        for key in gone:
            del self.sizes[key]
            self.changed.setdefault(key, True)
        return gone

    def take_changes(self) -> list[tuple[int, int]]:
        """Return ``(price, size)`` of the levels touched since the last call, in the order touched; 0 = gone.

        A level that came and went in between was never told of, and isn't.
        """
        if not self.changed:
            return []
        sizes = self.sizes
        out = [(self.sign * k, sizes.get(k, 0)) for k, was in self.changed.items() if was or k in sizes]
        self.changed.clear()
        return out
