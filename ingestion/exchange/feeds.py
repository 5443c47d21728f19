"""What the simulated exchange serves: items in the order received, of a generated market without end or at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from feature_repo.errors import UsageError
from ingestion.market import DEFAULT, PRODUCTS, START_NS, generate

Dialect = Literal["exchange", "advanced"]
MARKET_KINDS: Final = ("ticker", "match", "l2update")
"""Kinds that faults touch unless told otherwise."""
SEGMENT_S: Final = 900
"""Seconds generated at once: drawing them holds up the stream for 10 to 40 ms."""
EXCHANGE_KINDS: Final = frozenset(("ticker", "match", "last_match", "l2update", "snapshot", "heartbeat"))
_GENERATED: Final = {**{kind[:3].encode(): kind for kind in EXCHANGE_KINDS}, b"sub": ""}


class Item(NamedTuple):
    """One message of a feed.

    Attributes
    ----------
    recv_ns
        When a client of the recorded connection had it, ns; never falls.
    kind
        ``ticker match last_match l2update snapshot heartbeat``, whatever the dialect.
    product
        Product it speaks of.
    raw
        The message as recorded, times not yet moved.
    """

    recv_ns: int
    kind: str
    product: str
    raw: bytes


class Feed(Protocol):
    """A source of items.

    Attributes
    ----------
    name
        What is served, for people.
    dialect
        Of its messages; Exchange messages can be told in both dialects, Advanced Trade ones in their own only.
    products
        Products that a client may subscribe.
    heartbeats
        Whether the items hold heartbeats of each product; else the exchange makes them.
    continuous
        Whether a snapshot in mid-stream goes on from the book before, so that readers need only the difference.
    """

    name: str
    dialect: Dialect
    products: tuple[str, ...]
    heartbeats: bool
    continuous: bool

    def items(self) -> Iterator[Item]:
        """Yield the items from the beginning."""
        ...


class Recorded:
    """Messages at hand, as tests make them.

    Parameters
    ----------
    items
        In order of ``recv_ns``.
    dialect, heartbeats
        As for :class:`Feed`.
    """

    def __init__(self, items: Iterable[Item], *, dialect: Dialect = "exchange", heartbeats: bool = False) -> None:
        self._items = list(items)
        self.name = f"{len(self._items)} messages"
        self.dialect, self.heartbeats, self.continuous = dialect, heartbeats, False
        self.products = tuple(sorted({item.product for item in self._items if item.product}))

    def items(self) -> Iterator[Item]:
        """Yield the items from the beginning."""
        return iter(self._items)


def preloaded(feed: Feed) -> Feed:
    """Return a feed that ends, held in memory, so that making it costs nothing while it is served."""
    held = Recorded(feed.items(), dialect=feed.dialect, heartbeats=feed.heartbeats)
    held.name, held.products, held.continuous = feed.name, feed.products, feed.continuous
    return held


class Synthetic:
    """The generated market, going on from segment to segment.

    A new segment begins where the last one ended: prices, trade ids and times go on, only the depth of the book is
    drawn anew. It is never evidence about a market.

    Parameters
    ----------
    seed
        Of the first segment; equal arguments give equal bytes.
    products
        Some of ``ingestion.market.PRODUCTS``.
    seconds
        Length; None goes on for ever.
    """

    dialect: Dialect = "exchange"
    heartbeats = True
    continuous = True

    def __init__(self, seed: int = 1, products: Sequence[str] = PRODUCTS, seconds: int | None = None) -> None:
        if seconds is not None and seconds <= 0:
            raise UsageError(f"seconds must be > 0, was {seconds}: give the length of the feed or leave it out")
        generate(seed=seed, seconds=1, products=products)  # refuses a wrong seed or product now, not in mid-stream
        self.seed, self.products, self.seconds = seed, tuple(products), seconds
        self.name = f"generated market, seed {seed}, no evidence about a market"

    def items(self) -> Iterator[Item]:
        """Yield the items from the beginning."""
        start_ns, parameters, left, segment, recv_ns = START_NS, DEFAULT, self.seconds, 0, 0
        ids = {p: parameters.products[p].first_trade_id for p in self.products}
        while left is None or left > 0:
            seconds = SEGMENT_S if left is None else min(SEGMENT_S, left)
            tickers: dict[str, bytes] = {}
            for at, product, raw in generate(
                seed=self.seed + 7_919 * segment,
                seconds=seconds,
                products=self.products,
                start_ns=start_ns,
                parameters=parameters,
            ):
                kind = _GENERATED[raw[9:12]]  # generated messages begin with their type
                if not kind or (segment and kind == "last_match"):
                    continue
                if kind == "ticker":
                    tickers[product] = raw
                if at > recv_ns:
                    recv_ns = at
                yield Item(recv_ns, kind, product, raw)
            scales = dict(parameters.products)
            for product, raw in tickers.items():
                said = msgspec.json.decode(raw, type=_Ticker)
                ids[product] = said.trade_id
                scales[product] = replace(scales[product], price=float(said.best_bid), first_trade_id=said.trade_id)
            parameters = replace(parameters, products=scales)
            start_ns += seconds * 1_000_000_000
            segment += 1
            left = None if left is None else left - seconds


class _Ticker(msgspec.Struct):
    best_bid: str
    trade_id: int
