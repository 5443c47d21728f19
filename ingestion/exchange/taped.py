"""Tapes as feeds: bare, wrapped or envelope lines of either dialect, as items in the order received."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from feature_repo.errors import InputError, UsageError
from ingestion.exchange.feeds import EXCHANGE_KINDS, Dialect, Item
from ingestion.exchange.times import event_ns
from ingestion.tapes import Tape, find_tapes, read_lines

_ADVANCED: Final = {
    ("ticker", "snapshot"): "ticker",
    ("ticker", "update"): "ticker",
    ("market_trades", "snapshot"): "last_match",
    ("market_trades", "update"): "match",
    ("l2_data", "snapshot"): "snapshot",
    ("l2_data", "update"): "l2update",
}
_KIND: Final = re.compile(
    rb'"(?:type|channel)\\?"\s*:\s*\\?"(ticker|match|l2update|heartbeat|market_trades|l2_data|heartbeats)\\?"'
)
_CHANNELS: Final = {
    b"ticker": "ticker", b"match": "matches", b"market_trades": "matches", b"l2update": "level2_batch",
    b"l2_data": "level2_batch", b"heartbeat": "heartbeat", b"heartbeats": "heartbeat",
}  # fmt: skip
_NAMED: Final = re.compile(rb'\\?"product_id\\?":\s*\\?"([^"\\]+)')


class Taped:
    """Tapes one after the other: bare, wrapped or envelope lines, plain or compressed.

    Parameters
    ----------
    paths
        Files or folders.
    products
        Products to serve; None serves all that the tapes name.
    batch_ms
        l2updates of a product are joined so that they come at least so far apart, as ``level2_batch`` promises;
        0 serves them as recorded. Advanced Trade has no such batches.

    Raises
    ------
    InputError
        If a tape can't be read, holds no message, or both dialects stand on them.
    UsageError
        If a product is on no tape.
    """

    heartbeats = False
    continuous = False

    def __init__(self, paths: Sequence[Path], products: Sequence[str] | None = None, batch_ms: float = 50) -> None:
        self._batch_ns = int(batch_ms * 1e6)
        self._tapes = find_tapes(paths)
        self.name = ", ".join(tape.path.name for tape in self._tapes[:3]) + (", …" if len(self._tapes) > 3 else "")
        there: set[str] = set()
        kinds: set[str] = set()
        dialects: set[Dialect] = set()
        for tape in self._tapes:
            for block in read_lines(tape):
                there.update(name.decode() for name in _NAMED.findall(block))
                kinds.update(_CHANNELS[kind] for kind in _KIND.findall(block))
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
        self.channels = tuple(sorted(kinds))
        """Channels whose messages stand on the tapes, by their names on the Exchange feed."""

    def items(self) -> Iterator[Item]:
        """Yield the items from the beginning; messages that nobody can be sent are left out."""
        recorded = self._recorded()
        return batched(recorded, self._batch_ns) if self._batch_ns and self.dialect == "exchange" else recorded

    def _recorded(self) -> Iterator[Item]:
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
        kind = message.type if message.type in EXCHANGE_KINDS and message.type != "heartbeat" else ""
        return kind or "", (message.product_id or "") if kind else "", message.time
    for event in message.events:
        kind = _ADVANCED.get((message.channel, event.type or ""), "")
        named = event.product_id or next((x.product_id for x in (*event.trades, *event.tickers)), None)
        if kind:
            return kind, named or "", message.timestamp
    return "", "", None


def batched(items: Iterator[Item], batch_ns: int) -> Iterator[Item]:
    """Join l2updates of a product that come sooner than ``batch_ns`` after the one before; nothing else moves.

    ::

        recorded   a───b─c──────d                  one product's l2updates
        sent       a─────────bc─────────d          |── batch_ns ──|

    A level changed twice is told once, by its last size; the time is that of the last change.
    """
    free_ns: dict[str, int] = {}
    held: dict[str, _L2Update] = {}
    for item in items:
        product = item.product
        if held:
            for name in sorted((p for p in held if free_ns[p] <= item.recv_ns), key=free_ns.__getitem__):
                yield _joined(held.pop(name), free_ns[name])
                free_ns[name] += batch_ns
        if item.kind == "snapshot":
            held.pop(product, None)
        elif item.kind == "l2update":
            if item.recv_ns < free_ns.get(product, 0):
                _hold(held, item)
                continue
            free_ns[product] = item.recv_ns + batch_ns
        yield item
    for name in sorted(held, key=free_ns.__getitem__):
        yield _joined(held[name], free_ns[name])


class _L2Update(msgspec.Struct, tag_field="type", tag="l2update"):
    product_id: str
    changes: list[tuple[str, str, str]]
    time: str


_L2UPDATE: Final = msgspec.json.Decoder(_L2Update)


def _hold(held: dict[str, _L2Update], item: Item) -> None:
    try:
        said = _L2UPDATE.decode(item.raw)
    except msgspec.MsgspecError:
        return  # damaged on the tape
    before = held.get(item.product)
    if before is not None:
        said.changes = before.changes + said.changes
    held[item.product] = said


def _joined(said: _L2Update, recv_ns: int) -> Item:
    newest = {(side, float(price)): (side, price, size) for side, price, size in said.changes}
    said.changes = list(newest.values())
    return Item(recv_ns, "l2update", said.product_id, msgspec.json.encode(said))
