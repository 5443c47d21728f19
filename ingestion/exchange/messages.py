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


def advanced(channel: str, events: list[dict[str, object]], now_ns: int, shift: Shift) -> Split:
    """Return an Advanced Trade message, ready for a ``sequence_num``."""
    head = b'{"channel":"%s","client_id":"","timestamp":"%s",%s' % (channel.encode(), shift.stamp(now_ns, 9), _SEQUENCE)
    return head, b',"events":%s}' % _encode(events)


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
        return advanced("ticker", [{"type": "update", "tickers": [advanced_ticker(item.raw)]}], now_ns, shift)
    if item.kind == "match":
        return advanced(
            "market_trades", [{"type": "update", "trades": [advanced_trade(item.raw, shift)]}], now_ns, shift
        )
    said = _L2UPDATE.decode(item.raw)
    when = shift.text(said.time.encode()).decode()
    updates = [
        {"side": _SIDES[side], "event_time": when, "price_level": price, "new_quantity": size}
        for side, price, size in said.changes
    ]
    event: dict[str, object] = {"type": "update", "product_id": said.product_id, "updates": updates}
    return advanced("l2_data", [event], now_ns, shift)


def advanced_ticker(raw: bytes) -> dict[str, str]:
    """Return the ticker object of Advanced Trade for an Exchange ticker; its 52-week figures are those of the day."""
    said = _TICKER.decode(raw)
    change = ""
    if said.open_24h and float(said.open_24h) > 0:
        change = f"{(float(said.price) / float(said.open_24h) - 1) * 100:.14g}"
    found = {
        "type": "ticker",
        "product_id": said.product_id,
        "price": said.price,
        "volume_24_h": said.volume_24h,
        "low_24_h": said.low_24h,
        "high_24_h": said.high_24h,
        "low_52_w": said.low_24h,
        "high_52_w": said.high_24h,
        "price_percent_chg_24_h": change,
        "best_bid": said.best_bid,
        "best_ask": said.best_ask,
        "best_bid_quantity": said.best_bid_size,
        "best_ask_quantity": said.best_ask_size,
    }
    return {name: value for name, value in found.items() if value}


def advanced_trade(raw: bytes, shift: Shift) -> dict[str, str]:
    """Return the trade object of Advanced Trade for an Exchange match; both name the maker's side."""
    said = _MATCH.decode(raw)
    return {
        "product_id": said.product_id,
        "trade_id": str(said.trade_id),
        "price": said.price,
        "size": said.size,
        "time": shift.text(said.time.encode()).decode(),
        "side": said.side.upper(),
    }


def advanced_book(name: str, product: Product, now_ns: int, shift: Shift) -> Split:
    """Return the ``l2_data`` snapshot of a book as it stands."""
    assert product.book is not None  # noqa: S101 - callers ask for known books only
    stamp = shift.stamp(now_ns).decode()
    updates = [
        {"side": side, "event_time": stamp, "price_level": price, "new_quantity": size}
        for side, levels in zip(("bid", "offer"), product.book.sides(), strict=True)
        for price, size in levels
    ]
    return advanced("l2_data", [{"type": "snapshot", "product_id": name, "updates": updates}], now_ns, shift)


def advanced_trades(product: Product, now_ns: int, shift: Shift, *, native: bool) -> Split:
    """Return the ``market_trades`` snapshot: the newest trades, newest first."""
    trades: list[object] = []
    for raw in reversed(product.trades):
        trades.append(msgspec.Raw(shift.all(raw)) if native else advanced_trade(raw, shift))
    return advanced("market_trades", [{"type": "snapshot", "trades": trades}], now_ns, shift)


def advanced_newest(product: Product, now_ns: int, shift: Shift, *, native: bool) -> Split:
    """Return the ``ticker`` snapshot: the newest ticker."""
    ticker: object = msgspec.Raw(product.ticker) if native else advanced_ticker(product.ticker)
    return advanced("ticker", [{"type": "snapshot", "tickers": [ticker]}], now_ns, shift)


def advanced_heartbeat(counter: int, now_ns: int, shift: Shift) -> Split:
    """Return the connection's ``heartbeats`` message."""
    stamp = shift.stamp(now_ns, 9).decode()
    since = f"{counter}.{now_ns % 1_000_000_000:09d}"
    current = f"{stamp[:10]} {stamp[11:-1]} +0000 UTC m=+{since}"
    return advanced("heartbeats", [{"current_time": current, "heartbeat_counter": counter}], now_ns, shift)


def advanced_subscriptions(topics: Iterable[Topic], now_ns: int, shift: Shift) -> Split:
    """Return Advanced Trade's acknowledgement, of all that is subscribed."""
    channels = _by_channel(topics, NAMES["advanced"])
    if "heartbeats" in channels:
        channels["heartbeats"] = ["heartbeats"]
    return advanced("subscriptions", [{"subscriptions": channels}], now_ns, shift)


def _by_channel(topics: Iterable[Topic], names: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for channel, product in topics:
        found.setdefault(names[channel], []).append(product)
    return found


def key_of(item: Item, when: bytes) -> str:
    """Return what tells a message from others of its kind and product: trade id, sequence, or its moved time."""
    if item.kind in ("ticker", "match", "last_match"):
        at = item.raw.find(b'"trade_id":')
        if at >= 0:
            end = item.raw.find(b",", at)
            return item.raw[at + 11 : end if end > 0 else None].strip(b'" }').decode()
    return when.decode()
