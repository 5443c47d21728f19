"""Where the kernel writes rows: large arrays, taken again once nobody holds rows of them.

Fresh memory costs as much as what is written into it: the system clears each page first, and none lies in a cache.
Rows become Arrow tables without a copy, so an array may be written again only when the tables made of it are gone.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import FEATURE_NAMES
from ingestion.kernel.step import QUOTE_MARGIN, ROW_MARGIN, TILE

_SPARES = 4
"""Arrays of one kind that are kept for later."""


class Room:
    """Arrays for rows and quotes, kept for the next push."""

    def __init__(self) -> None:
        self._kept: dict[str, list[NDArray[Any]]] = {}

    def take(self, kind: str, rows: int, columns: int, dtype: type) -> NDArray[Any]:
        """Return an array [rows, columns] that nobody else holds; its content is arbitrary."""
        kept = self._kept.setdefault(kind, [])
        size = rows * columns
        for i in range(len(kept)):
            # Every view, and every Arrow buffer over one, holds its base. Two references are this list and the call.
            if sys.getrefcount(kept[i]) == 2:
                if kept[i].size < size:
                    kept[i] = np.empty(size, dtype)
                return kept[i][:size].reshape(rows, columns)
        array: NDArray[Any] = np.empty(size, dtype)
        if len(kept) < _SPARES:
            kept.append(array)
        return array.reshape(rows, columns)


class Output:
    """Room for the rows and quotes of some events; one array for all features, so that it gets huge pages.

    Parameters
    ----------
    room
        Where the arrays come from.
    events
        How many events at least; a full output is no error, see :func:`ingestion.kernel.step.run`.
    """

    def __init__(self, room: Room, events: int) -> None:
        # Columns start an odd number of cache lines apart, so that they don't share cache sets.
        capacity = 8 * ((events + events // 2 + 4 * ROW_MARGIN) // 8 | 1)
        quotes = 2 * events + 4 * QUOTE_MARGIN
        self.arrays = (
            room.take("row integers", 8, capacity, np.int64),
            room.take("row numbers", len(FEATURE_NAMES), capacity, np.float64),
            room.take("tile", len(FEATURE_NAMES), TILE, np.float64),
            room.take("quote integers", 7, quotes, np.int64),
            room.take("quote numbers", 4, quotes, np.float64),
        )
        self.rows = 0
        self.quotes = 0

    def filled(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the parts that hold something."""
        r_int, r_num, _, q_int, q_num = self.arrays
        return r_int[:, : self.rows], r_num[:, : self.rows], q_int[:, : self.quotes], q_num[:, : self.quotes]
