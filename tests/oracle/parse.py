"""Lines of a tape read with the standard library alone: what each says, or why it can't be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MalformedError(ValueError):
    """A message that is counted and left out; the text is its reason."""


@dataclass
class Message:
    """One message of one product; several share the ``n`` of an Advanced envelope (ADR 7)."""

    kind: str  # ticker trade continuity update snapshot heartbeat
    product: str | None  # None: a heartbeat of the Advanced feed, meant for every product of its session
    time_ns: int | None
    k: int = 0
    price: float | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    trade_id: int | None = None
    size: float | None = None
    taker: str | None = None  # buy or sell
    changes: list[tuple[str, float, float]] = field(default_factory=list)  # side (bid, ask), price, size


@dataclass
class Line:
    """One line of the tape: where and when it came, and its messages."""

    session: str
    n: int
    recv_ns: int | None
    name: str = "malformed"
    messages: list[Message] = field(default_factory=list)
    reason: str | None = None  # why it is malformed
    sequence: int | None = None
    channels: dict[str, list[str]] | None = None  # of a subscriptions message: channel -> products


def _reject_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise MalformedError("repeated key")
    return dict(pairs)


def _reject_constant(text: str) -> Any:
    raise MalformedError(f"{text} is no JSON")


def loads(text: str | bytes) -> dict[str, Any]:
    """Read one JSON object strictly."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
        value = json.loads(decoded, object_pairs_hook=_reject_repeats, parse_constant=_reject_constant)
    except UnicodeDecodeError:
        raise MalformedError("not UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise MalformedError("not JSON") from None
    if not isinstance(value, dict):
        raise MalformedError("not an object")
    return value


def time_ns(value: Any) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time with a zone."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise MalformedError("time")
    day, hour, minute, second, fraction, sign, off_h, off_m = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second}+00:00")
    except ValueError:
        raise MalformedError("time") from None
    whole = (moment - _EPOCH) // timedelta(seconds=1)
    if sign is not None:
        whole -= (1 if sign == "+" else -1) * (int(off_h) * 3600 + int(off_m) * 60)
    return whole * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def _number(value: Any, *, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedError("number")
    if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
        raise MalformedError("number")
    try:
        number = float(value)
    except OverflowError:
        raise MalformedError("number") from None
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise MalformedError("number")
    return number


def _need(body: dict[str, Any], name: str) -> Any:
    if body.get(name) is None:
        raise MalformedError(f"missing {name}")
    return body[name]


def _text(body: dict[str, Any], name: str) -> str:
    value = _need(body, name)
    if not isinstance(value, str):
        raise MalformedError(name)
    return value


def _rows(body: dict[str, Any], name: str) -> list[Any]:
    value = _need(body, name)
    if not isinstance(value, list):
        raise MalformedError(name)
    return value


def _price(body: dict[str, Any], name: str) -> float:
    return _number(_need(body, name), positive=True)


def _size(body: dict[str, Any], name: str) -> float:
    return _number(_need(body, name), positive=False)


def _maybe_price(body: dict[str, Any], name: str) -> float | None:
    return None if body.get(name) is None else _price(body, name)


def _maybe_size(body: dict[str, Any], name: str) -> float | None:
    return None if body.get(name) is None else _size(body, name)


def _trade_id(body: dict[str, Any], name: str) -> int:
    value = _need(body, name)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MalformedError(name)
    return value


def _side(value: Any, names: dict[str, str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise MalformedError("side")
    return names[value]


_TAKER_OF_MAKER = {"buy": "sell", "sell": "buy", "BUY": "sell", "SELL": "buy"}
_TAKER = {"buy": "buy", "sell": "sell"}
_BOOK_SIDE = {"buy": "bid", "sell": "ask"}
_BOOK_SIDE_ADVANCED = {"bid": "bid", "offer": "ask", "ask": "ask"}


def _exchange(body: dict[str, Any]) -> list[Message]:
    kind = body["type"]
    if kind == "ticker":
        return [
            Message(
                "ticker", _text(body, "product_id"), time_ns(_need(body, "time")),
                price=_price(body, "price"), bid=_maybe_price(body, "best_bid"), ask=_maybe_price(body, "best_ask"),
                bid_size=_maybe_size(body, "best_bid_size"), ask_size=_maybe_size(body, "best_ask_size"),
                trade_id=None if body.get("trade_id") is None else _trade_id(body, "trade_id"),
                size=_maybe_size(body, "last_size"),
                taker=None if body.get("side") is None else _side(body["side"], _TAKER),
            )
        ]
    if kind == "match":
        return [
            Message(
                "trade", _text(body, "product_id"), time_ns(_need(body, "time")), price=_price(body, "price"),
                size=_size(body, "size"), trade_id=_trade_id(body, "trade_id"),
                taker=_side(_need(body, "side"), _TAKER_OF_MAKER),
            )
        ]
    if kind == "last_match":
        return [Message("continuity", _text(body, "product_id"), None, trade_id=_trade_id(body, "trade_id"))]
    if kind == "heartbeat":
        last = None if body.get("last_trade_id") is None else _trade_id(body, "last_trade_id")
        return [Message("heartbeat", _text(body, "product_id"), time_ns(_need(body, "time")), trade_id=last)]
    if kind == "l2update":
        changes = []
        for change in _rows(body, "changes"):
            if not isinstance(change, list) or len(change) != 3:
                raise MalformedError("changes")
            price, size = _number(change[1], positive=True), _number(change[2], positive=False)
            changes.append((_side(change[0], _BOOK_SIDE), price, size))
        return [Message("update", _text(body, "product_id"), time_ns(_need(body, "time")), changes=changes)]
    levels = []
    for side, name in (("bid", "bids"), ("ask", "asks")):
        for level in _rows(body, name):
            if not isinstance(level, list) or len(level) < 2:
                raise MalformedError(name)
            levels.append((side, _number(level[0], positive=True), _number(level[1], positive=False)))
    return [Message("snapshot", _text(body, "product_id"), None, changes=levels)]


def _advanced(body: dict[str, Any]) -> list[Message]:
    channel = body["channel"]
    if channel == "heartbeats":
        return [Message("heartbeat", None, time_ns(_need(body, "timestamp")))]
    found: list[Message] = []
    for event in _rows(body, "events"):
        if not isinstance(event, dict):
            raise MalformedError("events")
        if channel == "ticker":
            when = time_ns(_need(body, "timestamp"))
            found += [
                Message(
                    "ticker", _text(entry, "product_id"), when, price=_price(entry, "price"),
                    bid=_maybe_price(entry, "best_bid"), ask=_maybe_price(entry, "best_ask"),
                    bid_size=_maybe_size(entry, "best_bid_quantity"),
                    ask_size=_maybe_size(entry, "best_ask_quantity"),
                )
                for entry in _rows(event, "tickers")
            ]
        elif channel == "market_trades":
            only_ids = event.get("type") == "snapshot"
            for entry in _rows(event, "trades"):
                product, trade_id = _text(entry, "product_id"), _trade_id(entry, "trade_id")
                if only_ids:
                    found.append(Message("continuity", product, None, trade_id=trade_id))
                    continue
                found.append(
                    Message(
                        "trade", product, time_ns(_need(entry, "time")), price=_price(entry, "price"),
                        size=_size(entry, "size"), trade_id=trade_id,
                        taker=_side(_need(entry, "side"), _TAKER_OF_MAKER),
                    )
                )
        else:
            changes, times = [], []
            for entry in _rows(event, "updates"):
                times.append(time_ns(_need(entry, "event_time")))
                price, size = _price(entry, "price_level"), _size(entry, "new_quantity")
                changes.append((_side(_need(entry, "side"), _BOOK_SIDE_ADVANCED), price, size))
            kind = "snapshot" if event.get("type") == "snapshot" else "update"
            found.append(Message(kind, _text(event, "product_id"), max(times, default=None), changes=changes))
    for k, message in enumerate(found):
        message.k = k
    if channel == "market_trades":  # listed newest first (ADR 26)
        found.sort(key=lambda message: message.trade_id or 0)
    return found


def _fill(line: Line, body: dict[str, Any]) -> None:
    if isinstance(body.get("channel"), str):
        sequence = body.get("sequence_num")
        line.sequence = sequence if isinstance(sequence, int) else None
        line.name = body["channel"]
        if line.name == "subscriptions":
            line.channels = {}
            for event in body.get("events", []):
                line.channels.update(event.get("subscriptions", {}))
        elif line.name in ("ticker", "market_trades", "l2_data", "heartbeats"):
            line.messages = _advanced(body)
        return
    line.name = body["type"] if isinstance(body.get("type"), str) else "unknown"
    if line.name == "subscriptions":
        channels = body.get("channels", [])
        line.channels = {c["name"]: c.get("product_ids", []) for c in channels if isinstance(c, dict)}
    elif line.name in ("ticker", "match", "last_match", "heartbeat", "l2update", "snapshot"):
        line.messages = _exchange(body)


def read(lines: Iterable[bytes], session: str) -> Iterator[Line]:
    """Read each line, in any of the three forms; a foreign line's n is its number on the tape."""
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = Line(session, number, None)
        try:
            body = loads(text)
            if "raw" in body:
                if body.get("ts") is not None:
                    line.recv_ns = round(_number(body["ts"], positive=True) * 1e6) * 1000
                if "session" in body and "n" in body:
                    line.session, line.n = body["session"], body["n"]
                if body.get("kind", "feed") != "feed":
                    line.name = body["kind"]
                    yield line
                    continue
                body = loads(body["raw"]) if isinstance(body["raw"], str) else body["raw"]
            _fill(line, body)
        except MalformedError as error:
            line.name, line.reason, line.messages = "malformed", str(error), []
        yield line
