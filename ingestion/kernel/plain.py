# mypy: allow-untyped-defs, allow-incomplete-defs, no-check-untyped-defs
"""A fast reader for the messages that make up nearly all of a feed: Exchange ones as Coinbase writes them.

It is a short cut only: a message taken here gives the very event that the general decoder would give, and where that is
not plain to see it is left to that one. Taken is

- an object that begins with its ``type``, one of ``TYPES``; after that the keys that ``_KEYS`` has for it and no
  others, in any order, none twice, without white space;
- ``side`` is ``buy`` or ``sell``; what the type can't be without is there; a list of changes isn't empty;
- read numbers stand as text, without sign or exponent, in at most 15 digits: then the digits as a whole number and the
  power of ten below them are exact doubles, and one division rounds correctly (Clinger 1990);
- unread values are text of printable ASCII without escapes, or whole numbers;
- all checks on values hold, of the event time too.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ingestion.kernel.compiled import inlined
from ingestion.kernel.events import BOOK_UPDATE, HEARTBEAT, NO_ID, NO_TIME, TICKER, TRADE
from ingestion.kernel.messages import parse_time

# What a key's value must be. A number's kind is NUMBER plus its index among the read ones.
_PRODUCT, _SIDE, _TIME, _ID, _WHOLE, _TEXT, _CHANGES, _NUMBER = range(8)
_PRICE, _BID, _BID_SIZE, _ASK, _ASK_SIZE, _SIZE = range(6)
N_NUMBERS = 6
TYPES: Final = {"ticker": TICKER, "match": TRADE, "l2update": BOOK_UPDATE, "heartbeat": HEARTBEAT}
# In the order in which Coinbase writes them: the key that follows the last one found is tried first.
_KEYS: Final = {
    "ticker": {
        "sequence": _WHOLE, "product_id": _PRODUCT, "price": _NUMBER + _PRICE, "open_24h": _TEXT, "volume_24h": _TEXT,
        "low_24h": _TEXT, "high_24h": _TEXT, "volume_30d": _TEXT, "best_bid": _NUMBER + _BID,
        "best_bid_size": _NUMBER + _BID_SIZE, "best_ask": _NUMBER + _ASK, "best_ask_size": _NUMBER + _ASK_SIZE,
        "side": _SIDE, "time": _TIME, "trade_id": _ID, "last_size": _NUMBER + _SIZE,
    },
    "match": {
        "trade_id": _ID, "maker_order_id": _TEXT, "taker_order_id": _TEXT, "side": _SIDE, "size": _NUMBER + _SIZE,
        "price": _NUMBER + _PRICE, "product_id": _PRODUCT, "sequence": _WHOLE, "time": _TIME,
    },
    "l2update": {"product_id": _PRODUCT, "changes": _CHANGES, "time": _TIME},
    "heartbeat": {"sequence": _WHOLE, "last_trade_id": _ID, "product_id": _PRODUCT, "time": _TIME},
}  # fmt: skip
_LACKING_OK: Final = {
    "ticker": set(_KEYS["ticker"]) - {"product_id", "price", "time"},
    "match": {"maker_order_id", "taker_order_id", "sequence"},
    "l2update": set[str](),
    "heartbeat": {"sequence", "last_trade_id"},
}
_KINDS = np.array([kind for keys in _KEYS.values() for kind in keys.values()], np.int64)
_COUNTS = np.array([len(keys) for keys in _KEYS.values()])
_FIRSTS = np.cumsum(_COUNTS) - _COUNTS
_NEEDED = np.array(
    [sum(1 << i for i, key in enumerate(keys) if key not in _LACKING_OK[of]) for of, keys in _KEYS.items()]
)
_EVENT_KINDS = np.array(list(TYPES.values()))
_POWERS = np.array([10.0**i for i in range(16)])
_DIGITS = 15
_ID_DIGITS = 18
_NAME_BYTES = 64
NEWLINE, _QUOTE, _DASH, _DOT, _COMMA, _CLOSE, _LIST, _UNLIST, _BACKSLASH, _UNDERSCORE, _COLON = b'\n"-.,}[]\\_:'


def _words(text: bytes) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return the first and second 8 bytes of a text of up to 16, and masks of those that count."""
    value, mask = text.ljust(16, b"\0"), (b"\xff" * len(text)).ljust(16, b"\0")
    (v0, v1), (m0, m1) = np.frombuffer(value, "<u8"), np.frombuffer(mask, "<u8")
    return v0, v1, m0, m1


_KEY_NAMES = [f'"{key}":'.encode() for keys in _KEYS.values() for key in keys]
_KEY_WORDS = np.array([_words(name[:16]) for name in _KEY_NAMES])
_KEY_BYTES = np.array([len(name) for name in _KEY_NAMES])
_OBJECT_WORD = _words(b'{"type":')[0]
_TYPE_WORDS = np.array([_words(f'"{name}",'.encode()) for name in TYPES])
_TYPE_BYTES = np.array([len(name) + 3 for name in TYPES])
_BUY_WORD, _, _BUY_MASK, _ = _words(b'"buy"')
_SELL_WORD, _, _SELL_MASK, _ = _words(b'"sell"')
_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_SPACES = np.uint64(0x20) * _ONES
_QUOTES = np.uint64(_QUOTE) * _ONES
_BACKSLASHES = np.uint64(_BACKSLASH) * _ONES
NEWLINES = np.uint64(NEWLINE) * _ONES
_ONE = np.uint64(1)
_TOP_BYTE = np.uint64(56)
PAD = 16
"""Bytes behind the last line that a look at a whole word may reach."""
LEVEL_BYTES = 15
"""Least length of a change."""


@inlined
def _is_one(first, second, w):
    return ((first ^ w[0]) & w[2]) | ((second ^ w[1]) & w[3]) == np.uint64(0)


@inlined
def _find_type(words, at):
    """Return the index of the type that stands at ``at``, with its comma; −1 where it is none of ours."""
    for of in range(len(_TYPE_BYTES)):
        if _is_one(words[at], words[at + 8], _TYPE_WORDS[of]):
            return of
    return -1


@inlined
def _find_key(text, words, at, of, expected):
    """Return the index, among those of its type, of the key that stands at ``at``; −1 where it is none of ours."""
    first = words[at]
    second = words[at + 8]
    count = _COUNTS[of]
    for i in range(count):
        key = expected + i
        if key >= count:
            key -= count
        place = _FIRSTS[of] + key
        if _is_one(first, second, _KEY_WORDS[place]):
            # The longest have 17 bytes, the last of which no word holds.
            return key if _KEY_BYTES[place] <= 16 or text[at + 16] == _COLON else -1
    return -1


@inlined
def zeros(word):
    """Return the high bit of each byte that is 0; exact up to the lowest one."""
    return (word - _ONES) & ~word & _HIGHS


@inlined
def bytes_to(flags):
    """Return the number of bytes up to and with the lowest one whose high bit is set."""
    return np.int64((((flags - _ONE) & ~flags & _ONES) * _ONES) >> _TOP_BYTE)


@inlined
def _whole(text, at):
    """Return (value, end) of the whole number at ``at``; an end of −1 where there is none that fits."""
    value = np.int64(0)
    i = at
    while 48 <= text[i] <= 57:
        value = value * 10 + (np.int64(text[i]) - 48)
        i += 1
        if i - at > _ID_DIGITS:
            return value, -1
    if i == at or (text[at] == 48 and i - at > 1):
        return value, -1
    return value, i


@inlined
def _number(text, at):
    """Return (value, end) of the quoted decimal number at ``at``; an end of −1 where it is not plain."""
    bad = (0.0, -1)
    if text[at] != _QUOTE:
        return bad
    first = at + 1
    i = first
    value = np.int64(0)
    while 48 <= text[i] <= 57 and i - first <= _DIGITS:
        value = value * 10 + (np.int64(text[i]) - 48)
        i += 1
    digits = i - first
    if digits == 0 or (text[first] == 48 and digits > 1):
        return bad
    places = 0
    if text[i] == _DOT:
        i += 1
        dot = i
        while 48 <= text[i] <= 57 and i - dot <= _DIGITS:
            value = value * 10 + (np.int64(text[i]) - 48)
            i += 1
        places = i - dot
        if places == 0:
            return bad
    if digits + places > _DIGITS or text[i] != _QUOTE:
        return bad
    return float(value) / _POWERS[places], i + 1


@inlined
def _text_end(text, words, at):
    """Return the end of the quoted text at ``at``; −1 where it is none or not plain ASCII."""
    if text[at] != _QUOTE:
        return -1
    at += 1
    while True:
        word = words[at]
        quotes = zeros(word ^ _QUOTES)
        # Below a space: the byte minus 0x20 borrows. A byte beyond ASCII has its high bit set.
        others = ((word - _SPACES) & ~word & _HIGHS) | (word & _HIGHS) | zeros(word ^ _BACKSLASHES)
        if quotes == np.uint64(0):
            if others != np.uint64(0):
                return -1
            at += 8
            continue
        if others & (quotes ^ (quotes - _ONE)) != np.uint64(0):
            return -1
        return at + bytes_to(quotes)


@inlined
def is_plain_name(text, lo, hi):
    """Tell whether text[lo:hi] may name a product: as ``feature_repo.names.is_name``."""
    if hi - lo < 1 or hi - lo > _NAME_BYTES:
        return False
    telling = False
    for i in range(lo, hi):
        c = text[i]
        if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122:
            telling = True
        elif c != _DOT and c != _UNDERSCORE and c != _DASH:
            return False
    return telling


@inlined
def _side(words, at):
    """Return (0 buy, 1 sell, −1 neither; end of the quoted word at ``at``)."""
    if (words[at] ^ _BUY_WORD) & _BUY_MASK == np.uint64(0):
        return 0, at + 5
    if (words[at] ^ _SELL_WORD) & _SELL_MASK == np.uint64(0):
        return 1, at + 6
    return -1, -1


@inlined
def _changes(text, words, at, levels, used):
    """Read the changes at ``at`` into ``levels`` from ``used`` on; return (end, used), an end of −1 where not plain."""
    if text[at] != _LIST:
        return -1, used
    while True:
        at += 1
        if text[at] != _LIST or used == len(levels):
            return -1, used
        level = levels[used]
        side, at = _side(words, at + 1)
        if side < 0 or text[at] != _COMMA:
            return -1, used
        price, at = _number(text, at + 1)
        if at < 0 or not price > 0.0 or text[at] != _COMMA:
            return -1, used
        size, at = _number(text, at + 1)
        if at < 0 or text[at] != _UNLIST:
            return -1, used
        level.side = side
        level.price = price
        level.size = size
        used += 1
        at += 1
        if text[at] == _UNLIST:
            return at + 1, used
        if text[at] != _COMMA:
            return -1, used


@inlined
def message(text, words, at, only, latest, numbers, found, out, levels):
    """Read the message at ``at`` into ``out``, where its product stands and levels used into ``found``.

    ``only`` is the one kind to take, 0 for all. Returns the message's end, −1 where it must be left.
    """
    if words[at] != _OBJECT_WORD:
        return -1
    of = _find_type(words, at + 8)
    if of < 0 or (only != 0 and _EVENT_KINDS[of] != only):
        return -1
    at += 7 + _TYPE_BYTES[of]
    kind = _EVENT_KINDS[of]
    side = -1
    out.trade_id = NO_ID
    out.lo = 0
    out.hi = 0
    for i in range(N_NUMBERS):
        numbers[i] = np.nan
    seen = np.int64(0)
    key = -1
    while True:
        at += 1
        key = _find_key(text, words, at, of, key + 1)
        if key < 0 or seen & (np.int64(1) << key) != 0:
            return -1
        seen |= np.int64(1) << key
        place = _FIRSTS[of] + key
        at += _KEY_BYTES[place]
        value = _KINDS[place]
        if value >= _NUMBER:
            numbers[value - _NUMBER], at = _number(text, at)
        elif value == _TEXT:
            at = _text_end(text, words, at)
        elif value == _WHOLE:
            at = _whole(text, at)[1]
        elif value == _ID:
            out.trade_id, at = _whole(text, at)
        elif value == _SIDE:
            side, at = _side(words, at)
        elif value == _CHANGES:
            out.lo = found[2]
            at, found[2] = _changes(text, words, at, levels, found[2])
            out.hi = found[2]
        else:
            lo = at + 1
            at = _text_end(text, words, at)
            if at < 0:
                return -1
            if value == _PRODUCT:
                found[0] = lo
                found[1] = at - 1
            else:
                t = parse_time(text, lo, at - 1)
                if t < 0 or t > latest:
                    return -1
                out.t_ns = t
        if at < 0:
            return -1
        if text[at] == _CLOSE:
            break
        if text[at] != _COMMA:
            return -1
    if seen & _NEEDED[of] != _NEEDED[of] or text[at + 1] != NEWLINE:
        return -1
    # Sizes may be 0 or missing; prices may be missing but the message's own.
    if numbers[_PRICE] == 0.0 or numbers[_BID] == 0.0 or numbers[_ASK] == 0.0:
        return -1
    # A ticker names the taker's side, a match the maker's.
    out.side = 0 if side < 0 else 1 - 2 * side if kind == TICKER else 2 * side - 1
    out.kind = kind
    out.flags = 0
    out.k = 0
    out.session = 0
    out.recv_ns = NO_TIME
    out.price = numbers[_PRICE]
    out.bid = numbers[_BID]
    out.bid_size = numbers[_BID_SIZE]
    out.ask = numbers[_ASK]
    out.ask_size = numbers[_ASK_SIZE]
    out.size = numbers[_SIZE]
    return at + 1
