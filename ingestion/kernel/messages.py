"""Typed forms of Coinbase's messages, and the reading of their times.

One structure takes both dialects and the tape's own wrapping, told apart by content: Exchange messages have
``type``, Advanced Trade ones ``channel``, wrapped and envelope lines ``raw``. Numbers may stand as text (as
Coinbase sends them) or as numbers. Fields that are not listed are skipped without being looked at.

Source: Coinbase Exchange and Advanced Trade WebSocket documentation.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.compiled import entry, inner

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A trade id or sequence number: fits an int64."""
Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Number of a message in its session: so does the next one."""


_UNREAD = msgspec.Raw()


class AdvancedUpdate(msgspec.Struct, gc=False):
    """One changed level of Advanced ``l2_data``."""

    side: str
    event_time: str
    price_level: float
    new_quantity: float


class AdvancedTrade(msgspec.Struct, gc=False):
    """One trade of Advanced ``market_trades``; ``side`` is the maker's."""

    product_id: str
    trade_id: Id
    price: float
    size: float
    time: str
    side: str


class AdvancedTicker(msgspec.Struct, gc=False):
    """One ticker of the Advanced ``ticker`` channel."""

    product_id: str
    price: float
    best_bid: float | None = None
    best_ask: float | None = None
    best_bid_quantity: float | None = None
    best_ask_quantity: float | None = None


class AdvancedEvent(msgspec.Struct, gc=False):
    """One entry of an Advanced envelope's ``events``."""

    type: str | None = None
    product_id: str | None = None
    updates: list[AdvancedUpdate] | None = None
    trades: list[AdvancedTrade] | None = None
    tickers: list[AdvancedTicker] | None = None
    subscriptions: dict[str, list[str]] | None = None


class Message(msgspec.Struct, gc=False):
    """Any line of a tape; which fields must be there depends on its type (see ``decode``).

    The fields come in the order in which an Exchange ticker has them, those that nobody reads too: a key that is
    expected next costs nothing to find, one that is not listed a search through all names (1.3 to 2.4 µs a ticker).
    """

    type: str | None = None
    sequence: msgspec.Raw = _UNREAD
    product_id: str | None = None
    price: float | None = None
    open_24h: msgspec.Raw = _UNREAD
    volume_24h: msgspec.Raw = _UNREAD
    low_24h: msgspec.Raw = _UNREAD
    high_24h: msgspec.Raw = _UNREAD
    volume_30d: msgspec.Raw = _UNREAD
    best_bid: float | None = None
    best_bid_size: float | None = None
    best_ask: float | None = None
    best_ask_size: float | None = None
    side: str | None = None
    time: str | None = None
    trade_id: Id | None = None
    last_size: float | None = None
    size: float | None = None
    changes: list[tuple[str, float, float]] | None = None
    last_trade_id: Id | None = None
    bids: list[tuple[float, float]] | None = None
    asks: list[tuple[float, float]] | None = None
    channels: msgspec.Raw = _UNREAD
    channel: str | None = None
    timestamp: str | None = None
    sequence_num: Id | None = None
    events: list[AdvancedEvent] | None = None
    ts: float | None = None
    pair: msgspec.Raw = _UNREAD
    session: str | None = None
    n: Number | None = None
    kind: str | None = None
    dialect: msgspec.Raw = _UNREAD
    raw: str | None = None
    products: list[str] | None = None
    reason: str | None = None
    state: str | None = None


class Channel(msgspec.Struct):
    """One channel of an Exchange ``subscriptions`` message."""

    name: str
    product_ids: list[str] = msgspec.field(default_factory=list)


class Head(msgspec.Struct):
    """What a message is, whatever else it holds."""

    type: str | None = None
    channel: str | None = None
    raw: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


HEAD = msgspec.json.Decoder(Head)
DECODER = msgspec.json.Decoder(Message, strict=False)
CHANNELS = msgspec.json.Decoder(list[Channel | str], strict=False)
NAMES = msgspec.json.Decoder(list[str])

BAD_TIME = -2
"""What :func:`parse_times` gives for a text that is not an RFC 3339 time with a zone."""


@inner
def _digits(text, at, count):
    value = 0
    for i in range(at, at + count):
        digit = text[i] - 48
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@inner
def parse_time(text, at, end):
    """Read the RFC 3339 time text[at:end]: ns since the epoch, :data:`BAD_TIME` where it is none with a zone."""
    if end - at < 20:
        return BAD_TIME
    year = _digits(text, at, 4)
    month = _digits(text, at + 5, 2)
    day = _digits(text, at + 8, 2)
    hour = _digits(text, at + 11, 2)
    minute = _digits(text, at + 14, 2)
    second = _digits(text, at + 17, 2)
    if min(year, month, day, hour, minute, second) < 0 or month > 12 or month < 1 or day < 1:
        return BAD_TIME
    if text[at + 4] != 45 or text[at + 7] != 45 or text[at + 13] != 58 or text[at + 16] != 58:
        return BAD_TIME
    if (text[at + 10] != 84 and text[at + 10] != 32) or hour > 23 or minute > 59 or second > 59 or year < 1970:
        return BAD_TIME
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if month == 2:
        longest = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    else:
        longest = 31
    if day > longest or year > 2261:
        return BAD_TIME
    i = at + 19
    nanos = 0
    if text[i] == 46:
        i += 1
        scale = 100_000_000
        seen = 0
        while i < end and 48 <= text[i] <= 57:
            nanos += (text[i] - 48) * scale
            scale //= 10
            seen += 1
            i += 1
        if seen == 0 or seen > 9:
            return BAD_TIME
    offset = 0
    if i == end - 1 and text[i] == 90:
        offset = 0
    elif i == end - 6 and (text[i] == 43 or text[i] == 45) and text[i + 3] == 58:
        hours = _digits(text, i + 1, 2)
        minutes = _digits(text, i + 4, 2)
        if hours < 0 or minutes < 0 or hours > 23 or minutes > 59:
            return BAD_TIME
        offset = (hours * 60 + minutes) * (60 if text[i] == 43 else -60)
    else:
        return BAD_TIME
    # Days since 1970-01-01 in the proleptic Gregorian calendar, with years that begin in March.
    y = year - 1 if month <= 2 else year
    shifted = month + 9 if month <= 2 else month - 3
    days = 365 * y + y // 4 - y // 100 + y // 400 + (153 * shifted + 2) // 5 + day - 719469
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second - offset
    t_ns = seconds * 1_000_000_000 + nanos
    return t_ns if t_ns >= 0 else BAD_TIME


@entry
def _parse_times(text, starts, out):
    for row in range(len(starts) - 1):
        out[row] = parse_time(text, starts[row], starts[row + 1] - 1)


def parse_times(texts: list[str]) -> NDArray[np.int64]:
    """Read RFC 3339 times with a zone, up to nanoseconds.

    Returns
    -------
    int64[n]
        ns since the epoch, :data:`BAD_TIME` where a text is no such time.

    Examples
    --------
    >>> parse_times(["1970-01-01T00:00:01.5Z", "2025-11-12T07:20:11+01:00", "2025-11-12T07:20:11"]).tolist()
    [1500000000, 1762928411000000000, -2]
    """
    joined = "\n".join(texts)
    data = np.frombuffer(joined.encode(), np.uint8)
    ends = np.flatnonzero(data == 10) + 1
    if len(ends) != len(texts) - 1:  # a text with a line break in it: read one by one
        parts = [t.replace("\n", "?") for t in texts]
        return parse_times(parts)
    starts = np.concatenate(([0], ends, [len(data) + 1]))
    out = np.empty(len(texts), np.int64)
    _parse_times(data, starts, out)
    return out
