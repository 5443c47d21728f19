"""Book recovery of each product: when to ask for a new snapshot, when to give up for a while. Pure: time is passed in.

::

              a gap: ask at once                     budget used up
    SYNCED ───────────────────────► RESYNCING ─────────────────────────► STALE
      ▲                             │  ▲    │ no snapshot in time: ask again  │
      └──────── a snapshot ─────────┘  └────┘                                 │
      └──────── a snapshot ─────────────────── after slow_s one more try ◄────┘

Only a snapshot of the exchange ends RESYNCING. Products know nothing of each other, so one that resyncs never
disturbs the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from ingestion.feed.records import BookState

WAIT_S: Final = 2.0
"""How long a snapshot is awaited; doubled at each try, since asking again throws away one that is on its way."""
TRIES: Final = 3
SLOW_S: Final = 60.0
"""Pause of a stale book before one more try."""


class Book(Enum):
    """State of a product's book."""

    SYNCED = "synced"
    RESYNCING = "resyncing"
    STALE = "stale"


class Resubscribe(NamedTuple):
    """Ask for a new snapshot: unsubscribe and subscribe this product's level2, and nothing else."""

    product_id: str


class Tell(NamedTuple):
    """Write a ``book`` record to the log."""

    product_id: str
    state: BookState


Action = Resubscribe | Tell


@dataclass(slots=True)
class _Product:
    state: Book = Book.RESYNCING
    tries: int = 0
    deadline: float = 0.0


class Recovery:
    """State machine of one connection's books.

    Parameters
    ----------
    products
        Products whose level2 is subscribed.
    now
        Seconds on any steady clock: when the connection subscribed. Its own snapshots are awaited first.
    wait_s, tries, slow_s
        First deadline of a snapshot, tries before a book is stale, and pause before a stale one tries again.
    """

    def __init__(
        self,
        products: Sequence[str],
        now: float,
        *,
        wait_s: float = WAIT_S,
        tries: int = TRIES,
        slow_s: float = SLOW_S,
    ) -> None:
        self._wait_s, self._tries, self._slow_s = wait_s, tries, slow_s
        self._products = {p: _Product(deadline=now + wait_s) for p in products}
        self.resyncs = 0
        """Snapshots asked for."""

    def state(self, product_id: str) -> Book | None:
        """Return a product's state, None where it has no book."""
        product = self._products.get(product_id)
        return None if product is None else product.state

    def observe(self, product_id: str, synced: bool, now: float) -> list[Action]:
        """Take what the book is after some messages: synced by a snapshot, or not to be trusted."""
        product = self._products.get(product_id)
        if product is None:
            return []
        if synced:
            product.state, product.tries = Book.SYNCED, 0
            return []
        if product.state is not Book.SYNCED:
            return []
        product.state, product.tries = Book.RESYNCING, 0
        return [self._ask(product_id, product, now)]

    def tick(self, now: float) -> list[Action]:
        """Take the time: ask again, give up, or try a stale book once more."""
        actions: list[Action] = []
        for product_id, product in self._products.items():
            if product.state is Book.SYNCED or now < product.deadline:
                continue
            if product.state is Book.STALE:
                product.state, product.tries = Book.RESYNCING, self._tries - 1
                actions += [Tell(product_id, "resyncing"), self._ask(product_id, product, now)]
            elif product.tries < self._tries:
                actions.append(self._ask(product_id, product, now))
            else:
                product.state, product.deadline = Book.STALE, now + self._slow_s
                actions.append(Tell(product_id, "stale"))
        return actions

    def _ask(self, product_id: str, product: _Product, now: float) -> Resubscribe:
        product.deadline = now + self._wait_s * 2**product.tries
        product.tries += 1
        self.resyncs += 1
        return Resubscribe(product_id)
