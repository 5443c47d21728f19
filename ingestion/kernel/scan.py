"""A fast reader for the line that makes up most tapes: a bare Exchange ticker, written as Coinbase writes it.

One pass over the bytes of a piece takes the lines that are exactly of that shape and leaves the others, whatever they
hold, to the general decoder. It is a short cut only: a line taken here gives the very event that the general decoder
would give, and where that is not plain to see the line is left. Taken is

- an object of the keys in ``_KEYS`` and no others, in any order, none twice, without white space;
- ``type`` is ``ticker``, ``side`` ``buy`` or ``sell``; ``product_id``, ``price`` and ``time`` are there;
- read numbers stand as text, without sign or exponent, in at most 15 digits: then the digits as a whole number and the
  power of ten below them are exact doubles, and one division rounds correctly (Clinger 1990);
- unread values are text of printable ASCII without escapes, or whole numbers;
- all checks on values hold, of the event time too.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.compiled import entry, inner
from ingestion.kernel.events import EVENT, NO_ID, NO_TIME, TICKER
from ingestion.kernel.messages import parse_time

# What a key's value must be. A number's kind is NUMBER plus its index among the read ones.
_TYPE, _PRODUCT, _SIDE, _TIME, _TRADE_ID, _WHOLE, _TEXT, _NUMBER = range(8)
_PRICE, _BID, _BID_SIZE, _ASK, _ASK_SIZE, _SIZE = range(6)
_N_NUMBERS = 6
# In the order in which Coinbase writes them: the key that follows the last one found is tried first.
_KEYS: Final = {
    "type": _TYPE, "sequence": _WHOLE, "product_id": _PRODUCT, "price": _NUMBER + _PRICE, "open_24h": _TEXT,
    "volume_24h": _TEXT, "low_24h": _TEXT, "high_24h": _TEXT, "volume_30d": _TEXT, "best_bid": _NUMBER + _BID,
    "best_bid_size": _NUMBER + _BID_SIZE, "best_ask": _NUMBER + _ASK, "best_ask_size": _NUMBER + _ASK_SIZE,
    "side": _SIDE, "time": _TIME, "trade_id": _TRADE_ID, "last_size": _NUMBER + _SIZE,
}  # fmt: skip
_N_KEYS = len(_KEYS)
_KINDS = np.array(list(_KEYS.values()), np.int64)
_NEEDED = sum(1 << list(_KEYS).index(key) for key in ("type", "product_id", "price", "time"))
_POWERS = np.array([10.0**i for i in range(16)])
_DIGITS = 15
_ID_DIGITS = 18
_NAME_BYTES = 64
_MANY_PRODUCTS = 256
_NEWLINE, _QUOTE, _DASH, _DOT, _COMMA, _OPEN, _CLOSE, _BACKSLASH, _UNDERSCORE = b'\n"-.,{}\\_'


def _words(text: bytes) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return the first and second 8 bytes of a text of up to 16, and masks of those that count."""
    value, mask = text.ljust(16, b"\0"), (b"\xff" * len(text)).ljust(16, b"\0")
    (v0, v1), (m0, m1) = np.frombuffer(value, "<u8"), np.frombuffer(mask, "<u8")
    return v0, v1, m0, m1


_KEY_WORDS = np.array([_words(f'"{key}":'.encode()) for key in _KEYS])
_KEY_BYTES = np.array([len(key) + 3 for key in _KEYS])
_TICKER_WORD = _words(b'"ticker"')[0]
_BUY_WORD, _, _BUY_MASK, _ = _words(b'"buy"')
_SELL_WORD, _, _SELL_MASK, _ = _words(b'"sell"')
_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_SPACES = np.uint64(0x20) * _ONES
_QUOTES = np.uint64(_QUOTE) * _ONES
_BACKSLASHES = np.uint64(_BACKSLASH) * _ONES
_NEWLINES = np.uint64(_NEWLINE) * _ONES
_ONE = np.uint64(1)
_TOP_BYTE = np.uint64(56)
_PAD = 16
"""Bytes behind the last line that a look at a whole word may reach."""


class Scanned(NamedTuple):
    """What :func:`scan_tickers` took and what it left.

    Attributes
    ----------
    events
        EVENT[m] of the lines taken, without session and receive time; ``n`` is ``first_n`` plus the line's index.
    lines
        int64[m], their indices in the piece.
    products
        Their products.
    left
        int64[l, 3]: index, first byte and end (at the line break) of each line left.
    """

    events: NDArray[np.void]
    lines: NDArray[np.int64]
    products: list[str]
    left: NDArray[np.int64]


@inner
def _find_key(words, at, expected):
    """Return the index of the key that stands at ``at``, −1 where it is none of ours."""
    first = words[at]
    second = words[at + 8]
    for i in range(_N_KEYS):
        key = expected + i
        if key >= _N_KEYS:
            key -= _N_KEYS
        w = _KEY_WORDS[key]
        if ((first ^ w[0]) & w[2]) | ((second ^ w[1]) & w[3]) == np.uint64(0):
            return key
    return -1


@inner
def _zeros(word):
    """Return the high bit of each byte that is 0; exact up to the lowest one."""
    return (word - _ONES) & ~word & _HIGHS


@inner
def _bytes_to(flags):
    """Return the number of bytes up to and with the lowest one whose high bit is set."""
    return np.int64((((flags - _ONE) & ~flags & _ONES) * _ONES) >> _TOP_BYTE)


@inner
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


@inner
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


@inner
def _text_end(text, words, at):
    """Return the end of the quoted text at ``at``; −1 where it is none or not plain ASCII."""
    if text[at] != _QUOTE:
        return -1
    at += 1
    while True:
        word = words[at]
        quotes = _zeros(word ^ _QUOTES)
        # Below a space: the byte minus 0x20 borrows. A byte beyond ASCII has its high bit set.
        others = ((word - _SPACES) & ~word & _HIGHS) | (word & _HIGHS) | _zeros(word ^ _BACKSLASHES)
        if quotes == np.uint64(0):
            if others != np.uint64(0):
                return -1
            at += 8
            continue
        if others & (quotes ^ (quotes - _ONE)) != np.uint64(0):
            return -1
        return at + _bytes_to(quotes)


@inner
def _is_name(text, lo, hi):
    """Tell whether text[lo:hi] may name a product: as ``chunk.is_name``."""
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


@inner
def _ticker(text, words, at, latest, numbers, out):
    """Read the line at ``at`` into ``numbers`` and ``out``; return its end, −1 where it must be left."""
    out.side = 0
    out.trade_id = NO_ID
    for i in range(_N_NUMBERS):
        numbers[i] = np.nan
    if text[at] != _OPEN:
        return -1
    seen = np.int64(0)
    key = -1
    while True:
        at += 1
        key = _find_key(words, at, key + 1)
        if key < 0 or seen & (np.int64(1) << key) != 0:
            return -1
        seen |= np.int64(1) << key
        at += _KEY_BYTES[key]
        kind = _KINDS[key]
        if kind >= _NUMBER:
            numbers[kind - _NUMBER], at = _number(text, at)
        elif kind == _TEXT:
            at = _text_end(text, words, at)
        elif kind == _WHOLE:
            at = _whole(text, at)[1]
        elif kind == _TRADE_ID:
            out.trade_id, at = _whole(text, at)
        elif kind == _TYPE:
            at = at + 8 if words[at] == _TICKER_WORD else -1
        elif kind == _SIDE:
            if (words[at] ^ _BUY_WORD) & _BUY_MASK == np.uint64(0):
                out.side = 1
                at += 5
            elif (words[at] ^ _SELL_WORD) & _SELL_MASK == np.uint64(0):
                out.side = -1
                at += 6
            else:
                return -1
        else:
            lo = at + 1
            at = _text_end(text, words, at)
            if at < 0:
                return -1
            if kind == _PRODUCT:
                out.lo = lo
                out.hi = at - 1
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
    # Sizes may be 0 or missing; prices may be missing but the ticker's own.
    if seen & _NEEDED != _NEEDED or text[at + 1] != _NEWLINE:
        return -1
    if not numbers[_PRICE] > 0.0 or numbers[_BID] == 0.0 or numbers[_ASK] == 0.0:
        return -1
    out.price = numbers[_PRICE]
    out.bid = numbers[_BID]
    out.bid_size = numbers[_BID_SIZE]
    out.ask = numbers[_ASK]
    out.ask_size = numbers[_ASK_SIZE]
    out.size = numbers[_SIZE]
    return at + 1


@inner
def _product(text, lo, hi, spans, known):
    """Return the index of the product text[lo:hi]: among those known, or of a new one; −1 where it can't be one."""
    for p in range(known):
        if spans[p, 1] - spans[p, 0] == hi - lo:
            i = 0
            while i < hi - lo and text[lo + i] == text[spans[p, 0] + i]:
                i += 1
            if i == hi - lo:
                return p
    if known == len(spans) or not _is_name(text, lo, hi):
        return -1
    spans[known, 0] = lo
    spans[known, 1] = hi
    return known


@inner
def _line_end(words, at):
    """Return where the line break at or after ``at`` is."""
    while True:
        breaks = _zeros(words[at] ^ _NEWLINES)
        if breaks != np.uint64(0):
            return at + _bytes_to(breaks) - 1
        at += 8


@entry
def _scan(text, words, first_n, latest, numbers, events, lines, codes, spans, left):
    """Take what can be taken; ``text`` ends in a line break, where any value ends at the latest, and ``_PAD`` more."""
    taken = 0
    passed = 0
    known = 0
    at = 0
    line = 0
    while at < len(text) - _PAD:
        out = events[taken]
        end = _ticker(text, words, at, latest, numbers, out)
        code = -1
        if end >= 0:
            code = _product(text, out.lo, out.hi, spans, known)
        if code >= 0:
            known = max(known, code + 1)
            out.kind = TICKER
            out.flags = 0
            out.k = 0
            out.n = first_n + line
            out.session = 0
            out.recv_ns = NO_TIME
            out.lo = 0
            out.hi = 0
            codes[taken] = code
            lines[taken] = line
            taken += 1
        else:
            end = _line_end(words, at)
            left[passed, 0] = line
            left[passed, 1] = at
            left[passed, 2] = end
            passed += 1
        at = end + 1
        line += 1
    return taken, passed, known


@entry
def _count(text, byte):
    found = 0
    for i in range(len(text)):
        found += text[i] == byte
    return found


def count_lines(data: bytes) -> int:
    r"""Return the number of lines, with or without the last one's line break.

    Examples
    --------
    >>> count_lines(b"a\n\nb"), count_lines(b"a\n"), count_lines(b"")
    (3, 1, 0)
    """
    if not data:
        return 0
    return int(_count(np.frombuffer(data, np.uint8), _NEWLINE)) + (not data.endswith(b"\n"))


def scan_tickers(data: bytes, n_lines: int, first_n: int, latest_ns: int) -> Scanned:
    """Read the plain tickers among some lines.

    Parameters
    ----------
    data
        Complete lines, each with its line break.
    n_lines
        How many.
    first_n
        Message number of the first.
    latest_ns
        Latest event time that is not in the future, ns.

    Returns
    -------
    Scanned
    """
    text = np.frombuffer(data + bytes(_PAD), np.uint8)
    # The 8 bytes from each position on: compared as one number.
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))
    # One event more than lines: the room in which a line is tried.
    events: NDArray[Any] = np.zeros(n_lines + 1, EVENT)
    lines, codes = np.empty((2, n_lines), np.int64)
    spans = np.zeros((_MANY_PRODUCTS, 2), np.int64)
    left = np.empty((n_lines, 3), np.int64)
    taken, passed, known = _scan(
        text, words, first_n, latest_ns, np.empty(_N_NUMBERS), events, lines, codes, spans, left
    )
    names = [data[lo:hi].decode() for lo, hi in spans[:known].tolist()]
    products = names * taken if known == 1 else [names[code] for code in codes[:taken].tolist()]
    return Scanned(events[:taken], lines[:taken], products, left[:passed])
