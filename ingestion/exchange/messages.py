"""The exchange's messages in both dialects, made from what the feed told in one.

Source: Coinbase Exchange and Advanced Trade WebSocket documentation, and recordings of both feeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from ingestion.exchange.feeds import Item
from ingestion.exchange.market import Product
from ingestion.exchange.requests import NAMES, Topic
from ingestion.exchange.times import Shift

Split = tuple[bytes, bytes]
"""An Advanced Trade message before and after its ``sequence_num``, which each connection counts for itself."""
_SEQUENCE: Final = b'"sequence_num":'
_encode: Final = msgspec.json.encode


class Ticker(msgspec.Struct):
    """An Exchange ticker; fields that a recording left out are empty."""

    product_id: str
    price: str
    volume_24h: str = ""
    low_24h: str = ""
    high_24h: str = ""
    open_24h: str = ""
    best_bid: str = ""
    best_bid_size: str = ""
    best_ask: str = ""
    best_ask_size: str = ""


class Match(msgspec.Struct):
    """An Exchange match."""

    product_id: str
    trade_id: int
    side: str
    size: str
    price: str
    time: str


class L2Update(msgspec.Struct):
    """An Exchange l2update."""

    product_id: str
    changes: list[tuple[str, str, str]]
    time: str


_TICKER: Final = msgspec.json.Decoder(Ticker)
_MATCH: Final = msgspec.json.Decoder(Match)
_L2UPDATE: Final = msgspec.json.Decoder(L2Update)
_KEYS: Final = {kind: b'"trade_id":' for kind in ("ticker", "match", "last_match")} | {"heartbeat": b'"sequence":'}
_SIDES: Final = {"buy": "bid", "sell": "offer"}


# Exchange


def error(message: str, reason: str) -> bytes:
    """Return an ``error`` message; both dialects write it alike."""
    return _encode({"type": "error", "message": message, **({"reason": reason} if reason else {})})


def subscriptions(topics: Iterable[Topic]) -> bytes:
    """Return the Exchange's acknowledgement, of all that is subscribed."""
    channels = [
        {"name": name, "product_ids": products, "account_ids": None}
        for name, products in _by_channel(topics, NAMES["exchange"]).items()
    ]
    return _encode({"type": "subscriptions", "channels": channels})


def snapshot(name: str, product: Product) -> bytes:
    """Return the Exchange's ``snapshot`` of a book as it stands."""
    assert product.book is not None  # noqa: S101 - callers ask for known books only
    bids, asks = product.book.sides()
    return _encode({"type": "snapshot", "product_id": name, "bids": bids, "asks": asks})


def last_match(product: Product, shift: Shift) -> bytes:
    """Return the newest trade as ``last_match``."""
    return shift.one(product.trades[-1])[0].replace(b'"type":"match"', b'"type":"last_match"', 1)


def heartbeat(name: str, product: Product, now_ns: int, shift: Shift) -> tuple[bytes, int]:
    """Return the Exchange's ``heartbeat`` of a product, and its sequence."""
    sequence, trade_id = product.numbers()
    stamp = shift.stamp(now_ns).decode()
    said = {"type": "heartbeat", "last_trade_id": trade_id, "product_id": name, "sequence": sequence, "time": stamp}
    return _encode(said), sequence


# Advanced Trade


def advanced(channel: bytes, events: bytes, now_ns: int, shift: Shift) -> Split:
    """Return an Advanced Trade message of encoded events, ready for a ``sequence_num``."""
    head = b'{"channel":"%s","client_id":"","timestamp":"%s",%s' % (channel, shift.stamp(now_ns, 9), _SEQUENCE)
    return head, b',"events":[%s]}' % events


def as_recorded(raw: bytes, shift: Shift) -> Split:
    """Return a recorded Advanced Trade message, ready for another ``sequence_num``."""
    moved = shift.all(raw)
    at = moved.find(_SEQUENCE)
    if at < 0:
        return moved[: moved.rindex(b"}")] + b"," + _SEQUENCE, b"}"
    start = at + len(_SEQUENCE)
    end = start
    while end < len(moved) and moved[end : end + 1] not in (b",", b"}"):
        end += 1
    return moved[:start], moved[end:]


def translated(item: Item, shift: Shift) -> Split:
    """Return an Exchange message as Advanced Trade tells it, stamped with the time of sending."""
    now_ns = shift.ns(item.recv_ns)
    if item.kind == "ticker":
        return advanced(b"ticker", b'{"type":"update","tickers":[%s]}' % advanced_ticker(item.raw), now_ns, shift)
    if item.kind == "match":
        trade = advanced_trade(item.raw, shift)
        return advanced(b"market_trades", b'{"type":"update","trades":[%s]}' % trade, now_ns, shift)
    said = _L2UPDATE.decode(item.raw)
    when = shift.text(said.time.encode()).decode()
    updates = ",".join(
        f'{{"side":"{_SIDES[side]}","event_time":"{when}","price_level":"{price}","new_quantity":"{size}"}}'
        for side, price, size in said.changes
    )
    event = f'{{"type":"update","product_id":"{said.product_id}","updates":[{updates}]}}'
    return advanced(b"l2_data", event.encode(), now_ns, shift)


def advanced_ticker(raw: bytes) -> bytes:
    """Return the ticker object of Advanced Trade for an Exchange ticker; its 52-week figures are those of the day."""
    t = _TICKER.decode(raw)
    change = f"{(float(t.price) / float(t.open_24h) - 1) * 100:.14g}" if t.open_24h and float(t.open_24h) else "0"
    day = f'"low_52_w":"{t.low_24h}","high_52_w":"{t.high_24h}"'
    sizes = f',"best_bid_quantity":"{t.best_bid_size}","best_ask_quantity":"{t.best_ask_size}"'
    return (
        f'{{"type":"ticker","product_id":"{t.product_id}","price":"{t.price}","volume_24_h":"{t.volume_24h}",'
        f'"low_24_h":"{t.low_24h}","high_24_h":"{t.high_24h}",{day},"price_percent_chg_24_h":"{change}",'
        f'"best_bid":"{t.best_bid}","best_ask":"{t.best_ask}"{sizes if t.best_bid_size else ""}}}'
    ).encode()


def advanced_trade(raw: bytes, shift: Shift) -> bytes:
    """Return the trade object of Advanced Trade for an Exchange match; both name the maker's side."""
    t = _MATCH.decode(raw)
    when = shift.text(t.time.encode()).decode()
    return (
        f'{{"product_id":"{t.product_id}","trade_id":"{t.trade_id}","price":"{t.price}","size":"{t.size}",'
        f'"time":"{when}","side":"{t.side.upper()}"}}'
    ).encode()


def advanced_book(name: str, product: Product, now_ns: int, shift: Shift) -> Split:
    """Return the ``l2_data`` snapshot of a book as it stands."""
    assert product.book is not None  # noqa: S101 - callers ask for known books only
    when = shift.stamp(now_ns).decode()
    updates = ",".join(
        f'{{"side":"{side}","event_time":"{when}","price_level":"{price}","new_quantity":"{size}"}}'
        for side, levels in zip(("bid", "offer"), product.book.sides(), strict=True)
        for price, size in levels
    )
    event = f'{{"type":"snapshot","product_id":"{name}","updates":[{updates}]}}'
    return advanced(b"l2_data", event.encode(), now_ns, shift)


def advanced_trades(product: Product, now_ns: int, shift: Shift, *, native: bool) -> Split:
    """Return the ``market_trades`` snapshot: the newest trades, newest first."""
    trades = b",".join(shift.all(raw) if native else advanced_trade(raw, shift) for raw in reversed(product.trades))
    return advanced(b"market_trades", b'{"type":"snapshot","trades":[%s]}' % trades, now_ns, shift)


def advanced_newest(product: Product, now_ns: int, shift: Shift, *, native: bool) -> Split:
    """Return the ``ticker`` snapshot: the newest ticker."""
    ticker = product.ticker if native else advanced_ticker(product.ticker)
    return advanced(b"ticker", b'{"type":"snapshot","tickers":[%s]}' % ticker, now_ns, shift)


def advanced_heartbeat(counter: int, now_ns: int, shift: Shift) -> Split:
    """Return the connection's ``heartbeats`` message."""
    stamp = shift.stamp(now_ns, 9).decode()
    current = f"{stamp[:10]} {stamp[11:-1]} +0000 UTC m=+{counter}.{now_ns % 1_000_000_000:09d}"
    event = _encode({"current_time": current, "heartbeat_counter": counter})
    return advanced(b"heartbeats", event, now_ns, shift)


def advanced_subscriptions(topics: Iterable[Topic], now_ns: int, shift: Shift) -> Split:
    """Return Advanced Trade's acknowledgement, of all that is subscribed."""
    channels = _by_channel(topics, NAMES["advanced"])
    if "heartbeats" in channels:
        channels["heartbeats"] = ["heartbeats"]
    return advanced(b"subscriptions", _encode({"subscriptions": channels}), now_ns, shift)


def key_of(item: Item, when: bytes | Shift) -> str:
    """Return what tells a message from others of its kind and product: trade id, sequence, or its moved time."""
    name = _KEYS.get(item.kind, b'"time":"')
    at = item.raw.rfind(name)
    if at < 0:
        return ""
    if isinstance(when, bytes) and name == b'"time":"':
        return when.decode()
    start, end = at + len(name), at + len(name)
    while item.raw[end : end + 1] not in (b",", b"}", b""):
        end += 1
    found = item.raw[start:end].strip(b'"')
    return (when.text(found) if isinstance(when, Shift) and name == b'"time":"' else found).decode()


def _by_channel(topics: Iterable[Topic], names: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for channel, product in topics:
        found.setdefault(names[channel], []).append(product)
    return found
