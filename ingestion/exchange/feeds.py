"""What the simulated exchange serves: a generated market without end, or a tape, as items in the order received."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from feature_repo.errors import InputError, UsageError
from ingestion.exchange.times import event_ns
from ingestion.market import DEFAULT, PRODUCTS, START_NS, generate
from ingestion.tapes import Tape, find_tapes, read_lines

Dialect = Literal["exchange", "advanced"]
MARKET_KINDS: Final = ("ticker", "match", "l2update")
"""Kinds that faults touch unless told otherwise."""
SEGMENT_S: Final = 1_800
"""Seconds generated at once: drawing them takes under 50 ms, which no reader notices."""
_ADVANCED: Final = {
    ("ticker", "snapshot"): "ticker",
    ("ticker", "update"): "ticker",
    ("market_trades", "snapshot"): "last_match",
    ("market_trades", "update"): "match",
    ("l2_data", "snapshot"): "snapshot",
    ("l2_data", "update"): "l2update",
}
_EXCHANGE: Final = frozenset(("ticker", "match", "last_match", "l2update", "snapshot", "heartbeat"))
_GENERATED: Final = {**{kind[:3].encode(): kind for kind in _EXCHANGE}, b"sub": ""}
_NAMED: Final = re.compile(rb'\\?"product_id\\?":\s*\\?"([^"\\]+)')


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


class Taped:
    """Tapes one after the other: bare, wrapped or envelope lines, plain or compressed.

    Parameters
    ----------
    paths
        Files or folders.
    products
        Products to serve; None serves all that the tapes name.

    Raises
    ------
    InputError
        If a tape can't be read, holds no message, or both dialects stand on them.
    UsageError
        If a product is on no tape.
    """

    heartbeats = False
    continuous = False

    def __init__(self, paths: Sequence[Path], products: Sequence[str] | None = None) -> None:
        self._tapes = find_tapes(paths)
        self.name = ", ".join(tape.path.name for tape in self._tapes[:3]) + (", …" if len(self._tapes) > 3 else "")
        there: set[str] = set()
        dialects: set[Dialect] = set()
        for tape in self._tapes:
            for block in read_lines(tape):
                there.update(name.decode() for name in _NAMED.findall(block))
            first = next((message for _, message, _ in _messages(tape) if message.type or message.channel), None)
            if first is not None:
                dialects.add("advanced" if first.channel else "exchange")
        if not there or len(dialects) != 1:
            found = "both dialects" if len(dialects) > 1 else "no message with a product"
            raise InputError(f"{self.name}: expected Coinbase messages of one dialect, found {found}; name other tapes")
        self.dialect = dialects.pop()
        wanted = there if products is None else set(products)
        if unknown := sorted(wanted - there):
            raise UsageError(f"products {', '.join(unknown)} are not on the tape, which has {', '.join(sorted(there))}")
        self.products = tuple(sorted(wanted))

    def items(self) -> Iterator[Item]:
        """Yield the items from the beginning; messages that nobody can be sent are left out."""
        wanted, recv_ns = frozenset(self.products), 0
        untimed: list[Item] = []
        for tape in self._tapes:
            for known_ns, message, raw in _messages(tape):
                kind, product, when = _read(message)
                if product not in wanted:
                    continue
                at = known_ns or (event_ns(when) if when and kind != "last_match" else None)
                if at is None and not recv_ns:  # a bare snapshot tells no time: it takes that of what follows
                    untimed.append(Item(0, kind, product, raw))
                    continue
                recv_ns = max(recv_ns, at or 0)
                if untimed:
                    yield from (item._replace(recv_ns=recv_ns) for item in untimed)
                    untimed.clear()
                yield Item(recv_ns, kind, product, raw)


class _Ticker(msgspec.Struct):
    best_bid: str
    trade_id: int


class _Named(msgspec.Struct):
    product_id: str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    product_id: str | None = None
    trades: list[_Named] = []
    tickers: list[_Named] = []


class _Line(msgspec.Struct):
    type: str | None = None
    product_id: str | None = None
    time: str | None = None
    channel: str | None = None
    timestamp: str | None = None
    events: list[_Event] = []
    ts: float | None = None
    kind: str | None = None
    raw: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Line)


def _messages(tape: Tape) -> Iterator[tuple[int | None, _Line, bytes]]:
    """Yield receive time where known, the decoded message and its bytes; what is no message is passed over."""
    for block in read_lines(tape):
        for line in block.split(b"\n"):
            try:
                message = _DECODER.decode(line)
                if message.raw is None:
                    yield None, message, line
                elif message.kind in (None, "feed"):
                    recv_ns = None if message.ts is None else round(message.ts * 1e6) * 1000
                    raw = message.raw.encode()
                    yield recv_ns, _DECODER.decode(raw), raw
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue


def _read(message: _Line) -> tuple[str, str, str | None]:
    """Return kind, product and time; an empty product where nobody can be sent it.

    Heartbeats are left out: the exchange makes its own, one a second, whatever the recording's connection asked for.
    """
    if message.channel is None:
        kind = message.type if message.type in _EXCHANGE and message.type != "heartbeat" else ""
        return kind or "", (message.product_id or "") if kind else "", message.time
    for event in message.events:
        kind = _ADVANCED.get((message.channel, event.type or ""), "")
        named = event.product_id or next((x.product_id for x in (*event.trades, *event.tickers)), None)
        if kind:
            return kind, named or "", message.timestamp
    return "", "", None
