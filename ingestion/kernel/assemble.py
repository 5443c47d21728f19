"""Gathers the events of a chunk, type by type, and lays them out per product in log order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.chunk import Chunk
from ingestion.kernel.events import (
    EVENT,
    LEVEL,
    NO_ID,
    NO_TIME,
    SESSION,
    STATUS,
    SUBSCRIBED,
)

_OWN = np.ones(16, bool)
"""Which kinds are a message of the product's own: not those that only name it."""
_OWN[[SUBSCRIBED, SESSION, STATUS]] = False
EVERY_PRODUCT = ""
"""Stands for a product where an event concerns all that its session has seen."""


def floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return float64[n], NaN where a value is missing."""
    return np.array(values, dtype=np.float64)


class Assembler:
    """Events of one chunk on their way into per-product arrays."""

    def __init__(self) -> None:
        self._events: list[NDArray[np.void]] = []
        self._order: list[NDArray[np.int64]] = []
        self._codes: list[NDArray[np.int64]] = []
        self._code_of: dict[str, int] = {}
        self._levels: list[NDArray[np.void]] = []
        self._n_levels = 0
        self.places: NDArray[np.int64] | None = None
        """int64[m]: place of each message in the log, where others stand between; None where they are consecutive."""

    def events(self, chunk: Chunk, at: NDArray[np.int64], kind: int) -> NDArray[np.void]:
        """Return EVENT[len(at)] of a kind, with what the log says of messages ``at`` filled in."""
        events = np.zeros(len(at), EVENT)
        events["kind"] = kind
        events["n"] = chunk.n[at]
        events["session"] = chunk.session[at]
        events["recv_ns"] = chunk.recv_ns[at]
        events["t_ns"] = NO_TIME
        events["trade_id"] = NO_ID
        for name in ("price", "size", "bid", "ask", "bid_size", "ask_size"):
            events[name] = np.nan
        return events

    def add(
        self,
        events: NDArray[np.void],
        at: NDArray[np.int64],
        products: list[str],
        good: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take events of messages ``at``; ``good`` says which."""
        if good is not None and not good.all():
            kept = np.flatnonzero(good)
            events, at, products = events[kept], at[kept], [products[i] for i in kept]
        self._events.append(events)
        self._order.append(at if self.places is None else self.places[at])
        code_of = self._code_of
        self._codes.append(np.array([code_of.setdefault(p, len(code_of)) for p in products], np.int64))

    def add_placed(
        self,
        events: NDArray[np.void],
        places: NDArray[np.int64],
        products: list[str],
        codes: NDArray[np.int64],
        levels: NDArray[np.void] | None = None,
    ) -> None:
        """Take events of whole messages of which nothing else is known here but their place in the log.

        Parameters
        ----------
        events
            EVENT[m].
        places
            int64[m].
        products, codes
            Products that they speak of, and which of these each.
        levels
            What the events' ``lo`` and ``hi`` point into; taken only before any others.
        """
        self._events.append(events)
        self._order.append(places)
        code_of = self._code_of
        self._codes.append(np.array([code_of.setdefault(p, len(code_of)) for p in products], np.int64)[codes])
        if levels is not None:
            self._levels.append(levels)
            self._n_levels += len(levels)

    def levels(self, sides: NDArray[np.int64], price: NDArray[np.float64], size: NDArray[np.float64]) -> int:
        """Take book levels and return the index of the first."""
        base = self._n_levels
        rows = np.zeros(len(sides), LEVEL)
        rows["side"], rows["price"], rows["size"] = sides, price, size
        self._levels.append(rows)
        self._n_levels += len(rows)
        return base

    def all_levels(self) -> NDArray[np.void]:
        """Return LEVEL[m] of the chunk."""
        if len(self._levels) == 1:
            return self._levels[0]
        return np.concatenate(self._levels) if self._levels else np.zeros(0, LEVEL)

    def subscribe(self, chunk: Chunk, i: int, flags: Mapping[str, int]) -> None:
        """Take a subscriptions message: each product's flags, none for those it no longer names."""
        at = np.full(len(flags) + 1, i)
        events = self.events(chunk, at, SUBSCRIBED)
        events["flags"] = [0, *flags.values()]
        self.add(events, at, [EVERY_PRODUCT, *flags])

    def by_product(self, seen: dict[int, set[str]]) -> dict[str, NDArray[np.void]]:
        """Return the events per product in log order; those for every product go to each that its session has seen.

        Parameters
        ----------
        seen
            Products with a message of their own, per session; extended here.
        """
        if not self._events:
            return {}
        events = self._events[0] if len(self._events) == 1 else np.concatenate(self._events)
        order = np.concatenate(self._order)
        code = np.concatenate(self._codes)
        present = set(np.flatnonzero(np.bincount(code)).tolist())
        codes = {product: i for product, i in self._code_of.items() if i in present}
        if len(codes) == 1 and EVERY_PRODUCT not in codes and (np.diff(order) >= 0).all():
            return self._only(next(iter(codes)), events, seen)
        general = codes.get(EVERY_PRODUCT)
        by_code = {p: np.flatnonzero(code == c) for p, c in codes.items() if p != EVERY_PRODUCT}
        shared = np.flatnonzero(code == general) if general is not None else np.zeros(0, np.int64)
        out = {}
        own_kinds = _OWN[events["kind"]]
        for product in {*by_code, *(p for products in seen.values() for p in products)} if len(shared) else by_code:
            own = by_code.get(product, np.zeros(0, np.int64))
            mine = own
            if len(shared):
                joined = [
                    s for s in shared if self._concerns(events, order, int(s), product, own[own_kinds[own]], seen)
                ]
                # What concerns every product goes before what the same message says of this one.
                mine = np.concatenate((np.array(joined, np.int64), own))
            if len(mine):
                places = order[mine]
                if (places[1:] < places[:-1]).any():
                    mine = mine[np.argsort(places, kind="stable")]
                out[product] = events if len(mine) == len(events) and (np.diff(mine) == 1).all() else events[mine]
        for product, own in by_code.items():
            for session in set(events["session"][own[own_kinds[own]]].tolist()):
                seen[session].add(product)
        return out

    @staticmethod
    def _only(product: str, events: NDArray[np.void], seen: dict[int, set[str]]) -> dict[str, NDArray[np.void]]:
        """Return the events as they are where all are one product's and in order: most chunks."""
        for session in set(events["session"][_OWN[events["kind"]]].tolist()):
            seen[session].add(product)
        return {product: events}

    @staticmethod
    def _concerns(
        events: NDArray[np.void],
        order: NDArray[np.int64],
        shared: int,
        product: str,
        own: NDArray[np.int64],
        seen: dict[int, set[str]],
    ) -> bool:
        """Tell whether an event for every product finds this one already seen in its session."""
        session = events["session"][shared]
        if product in seen[int(session)]:
            return True
        before = own[(order[own] < order[shared]) & (events["session"][own] == session)]
        return len(before) > 0
