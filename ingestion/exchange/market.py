"""What the exchange itself knows of its products: books, newest trades and tickers, as the feed has told them."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from ingestion.exchange.feeds import Dialect, Item

Levels = list[tuple[str, str]]
_TRADES: Final = 50
"""Trades kept per product: what an Advanced Trade snapshot of ``market_trades`` shows."""


class Book:
    """One product's levels, prices and sizes as the exchange wrote them.

    Examples
    --------
    >>> book = Book()
    >>> book.set("buy", "99.5", "1"); book.set("buy", "99.50", "2"); book.set("sell", "100", "3")
    >>> book.sides()
    ([('99.50', '2')], [('100', '3')])
    """

    __slots__ = ("asks", "bids")

    def __init__(self) -> None:
        self.bids: dict[float, tuple[str, str]] = {}
        self.asks: dict[float, tuple[str, str]] = {}

    def set(self, side: str, price: str, size: str) -> None:
        """Set the size of a level; 0 removes it. Sides are named as in either dialect."""
        levels = self.bids if side in ("buy", "bid") else self.asks
        if float(size) == 0:
            levels.pop(float(price), None)
        else:
            levels[float(price)] = (price, size)

    def sides(self) -> tuple[Levels, Levels]:
        """Return bids and asks, best first."""
        return (
            [self.bids[price] for price in sorted(self.bids, reverse=True)],
            [self.asks[price] for price in sorted(self.asks)],
        )

    def changes_to(self, other: Book) -> list[tuple[str, str, str]]:
        """Return what must change to make this book the other one, removals first."""
        gone, there = [], []
        for side, mine, theirs in (("buy", self.bids, other.bids), ("sell", self.asks, other.asks)):
            gone += [(side, price, "0") for key, (price, _) in mine.items() if key not in theirs]
            there += [(side, *level) for key, level in theirs.items() if mine.get(key) != level]
        return gone + there


class Product:
    """What is known of one product.

    Attributes
    ----------
    book
        None until a snapshot has come.
    ticker
        Newest ticker, as recorded.
    trades
        Newest trades, oldest first: Exchange matches, or trade objects of Advanced Trade.
    last_event
        Text of the newest time, as recorded.
    """

    __slots__ = ("book", "last_event", "ticker", "trades")

    def __init__(self) -> None:
        self.book: Book | None = None
        self.ticker = b""
        self.trades: deque[bytes] = deque(maxlen=_TRADES)
        self.last_event = b""

    def numbers(self) -> tuple[int, int]:
        """Return the greatest sequence and trade id told, 0 where none was."""
        told = [_NUMBERS.decode(raw) for raw in (self.ticker, *list(self.trades)[-1:]) if raw]
        return max((n.sequence for n in told), default=0), max((n.trade_id for n in told), default=0)


class Market:
    """The products of one feed.

    Parameters
    ----------
    dialect, continuous
        Of the feed.
    """

    def __init__(self, products: tuple[str, ...], dialect: Dialect, *, continuous: bool) -> None:
        self.products = {name: Product() for name in products}
        self._continuous = continuous
        self._learn = self._exchange if dialect == "exchange" else self._advanced

    def apply(self, item: Item) -> Item:
        """Learn from an item, and return what clients who know all before it are to be sent.

        Raises
        ------
        msgspec.MsgspecError, ValueError
            If the item is damaged; nothing was learnt from it then.
        """
        return self._learn(item, self.products[item.product])

    def _exchange(self, item: Item, product: Product) -> Item:
        kind, raw = item.kind, item.raw
        if kind == "ticker":
            product.ticker = raw
        elif kind == "match":
            product.trades.append(raw)
        elif kind == "l2update":
            changes = _L2UPDATE.decode(raw).changes
            book = product.book
            if book is not None:
                for side, price, size in changes:
                    book.set(side, price, size)
        elif kind == "snapshot":
            return self._snapshot(item, product)
        elif kind == "last_match":
            product.trades.append(raw.replace(b'"type":"last_match"', b'"type":"match"', 1))
        return item

    def _snapshot(self, item: Item, product: Product) -> Item:
        told = _SNAPSHOT.decode(item.raw)
        book, before = Book(), product.book
        for side, levels in (("buy", told.bids), ("sell", told.asks)):
            for price, size in levels:
                book.set(side, price, size)
        product.book = book
        if before is None or not self._continuous:
            return item
        update = {
            "type": "l2update",
            "product_id": item.product,
            "changes": before.changes_to(book),
            "time": _iso(item.recv_ns),
        }
        return item._replace(kind="l2update", raw=msgspec.json.encode(update))

    def _advanced(self, item: Item, product: Product) -> Item:
        for event in _ADVANCED.decode(item.raw).events:
            for ticker in event.tickers:
                product.ticker = bytes(ticker)
            # newest first on the wire
            product.trades.extend(bytes(trade) for trade in reversed(event.trades))
            if event.updates:
                if event.type == "snapshot" or product.book is None:
                    product.book = Book() if event.type == "snapshot" else None
                if product.book is not None:
                    for update in event.updates:
                        product.book.set(update.side, update.price_level, update.new_quantity)
        return item


def _iso(ns: int) -> str:
    from ingestion.exchange.times import Shift

    return Shift().stamp(ns).decode()


class _Numbers(msgspec.Struct):
    sequence: int = 0
    trade_id: int = 0


class _Changes(msgspec.Struct):
    changes: list[tuple[str, str, str]]


class _Snapshot(msgspec.Struct):
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class _Update(msgspec.Struct):
    side: str
    price_level: str
    new_quantity: str


class _Event(msgspec.Struct):
    type: str | None = None
    updates: list[_Update] = []
    trades: list[msgspec.Raw] = []
    tickers: list[msgspec.Raw] = []


class _Advanced(msgspec.Struct):
    events: list[_Event] = []


_NUMBERS: Final = msgspec.json.Decoder(_Numbers, strict=False)
_L2UPDATE: Final = msgspec.json.Decoder(_Changes)
_SNAPSHOT: Final = msgspec.json.Decoder(_Snapshot)
_ADVANCED: Final = msgspec.json.Decoder(_Advanced)
