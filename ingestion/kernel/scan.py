"""The plain messages of a tape's piece or of a stretch of the log, in one pass over the bytes; see ``plain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.compiled import entry, inlined
from ingestion.kernel.events import EVENT, LEVEL, TICKER
from ingestion.kernel.plain import (
    LEVEL_BYTES,
    N_NUMBERS,
    NEWLINE,
    NEWLINES,
    PAD,
    bytes_to,
    is_plain_name,
    message,
    zeros,
)

_MANY_PRODUCTS = 256


class Scanned(NamedTuple):
    """What :func:`scan_tickers` took and what it left.

    Attributes
    ----------
    events
        EVENT[m] of the lines taken, without session and receive time; ``n`` is ``first_n`` plus the line's index.
    lines
        int64[m], their indices in the piece.
    products
        Products that they speak of, each once.
    codes
        int64[m], index of each event's product in ``products``.
    left
        int64[l, 3]: index, first byte and end (at the line break) of each line left.
    """

    events: NDArray[np.void]
    lines: NDArray[np.int64]
    products: list[str]
    codes: NDArray[np.int64]
    left: NDArray[np.int64]


class ScannedLog(NamedTuple):
    """What :func:`scan_log` took.

    Attributes
    ----------
    events
        EVENT[m] of the messages taken, without number, session and receive time.
    taken
        int64[m], their indices.
    products, codes
        As of :class:`Scanned`.
    levels
        LEVEL[l], that the events' ``lo`` and ``hi`` point into.
    """

    events: NDArray[np.void]
    taken: NDArray[np.int64]
    products: list[str]
    codes: NDArray[np.int64]
    levels: NDArray[np.void]


@inlined
def _product(text, lo, hi, spans, known):
    """Return the index of the product text[lo:hi]: among those known, or of a new one; −1 where it can't be one."""
    for p in range(known):
        if spans[p, 1] - spans[p, 0] == hi - lo:
            i = 0
            while i < hi - lo and text[lo + i] == text[spans[p, 0] + i]:
                i += 1
            if i == hi - lo:
                return p
    if known == len(spans) or not is_plain_name(text, lo, hi):
        return -1
    spans[known, 0] = lo
    spans[known, 1] = hi
    return known


@inlined
def _line_end(words, at):
    """Return where the line break at or after ``at`` is."""
    while True:
        breaks = zeros(words[at] ^ NEWLINES)
        if breaks != np.uint64(0):
            return at + bytes_to(breaks) - 1
        at += 8


@entry
def _scan(text, words, first_n, latest, numbers, found, events, levels, lines, codes, spans, left):
    """Take the tickers that can be; ``text`` ends in a line break, where any value ends at the latest, and ``PAD``."""
    taken = 0
    passed = 0
    known = 0
    at = 0
    line = 0
    while at < len(text) - PAD:
        out = events[taken]
        end = message(text, words, at, TICKER, latest, numbers, found, out, levels)
        code = -1
        if end >= 0:
            code = _product(text, found[0], found[1], spans, known)
        if code >= 0:
            known = max(known, code + 1)
            out.n = first_n + line
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
def _scan_log(text, words, starts, feed, latest, numbers, found, events, levels, taken_at, codes, spans):
    """Take the messages that can be of those that begin at ``starts``, each with a line break behind it."""
    taken = 0
    known = 0
    for i in range(len(feed)):
        if not feed[i]:
            continue
        used = found[2]
        out = events[taken]
        end = message(text, words, starts[i], 0, latest[i], numbers, found, out, levels)
        code = -1
        if end == starts[i + 1] - 1:
            code = _product(text, found[0], found[1], spans, known)
        if code < 0:
            found[2] = used
            continue
        known = max(known, code + 1)
        codes[taken] = code
        taken_at[taken] = i
        taken += 1
    return taken, known


def count_lines(data: bytes) -> int:
    r"""Return the number of lines, with or without the last one's line break.

    Examples
    --------
    >>> count_lines(b"a\n\nb"), count_lines(b"a\n"), count_lines(b"")
    (3, 1, 0)
    """
    if not data:
        return 0
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == NEWLINE)) + (not data.endswith(b"\n"))


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
    text = np.frombuffer(data + bytes(PAD), np.uint8)
    # The 8 bytes from each position on: compared as one number.
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))
    # One event more than lines: the room in which a line is tried.
    events: NDArray[Any] = np.zeros(n_lines + 1, EVENT)
    lines, codes = np.empty((2, n_lines), np.int64)
    spans = np.zeros((_MANY_PRODUCTS, 2), np.int64)
    left = np.empty((n_lines, 3), np.int64)
    found, none = np.zeros(3, np.int64), np.empty(0, LEVEL)
    taken, passed, known = _scan(
        text, words, first_n, latest_ns, np.empty(N_NUMBERS), found, events, none, lines, codes, spans, left
    )
    names = [data[lo:hi].decode() for lo, hi in spans[:known].tolist()]
    return Scanned(events[:taken], lines[:taken], names, codes[:taken], left[:passed])


def scan_log(raws: Sequence[bytes], feed: NDArray[np.bool_], latest_ns: NDArray[np.int64]) -> ScannedLog:
    """Read the plain messages among some of a log.

    Parameters
    ----------
    raws
        The messages.
    feed
        bool[n], which the exchange sent.
    latest_ns
        int64[n], latest event time that is not in the future, ns.

    Returns
    -------
    ScannedLog
    """
    count = len(raws)
    data = b"\n".join([*raws, bytes(PAD)])
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter(map(len, raws), np.int64, count) + 1, out=starts[1:])
    text = np.frombuffer(data, np.uint8)
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))
    events: NDArray[Any] = np.zeros(count + 1, EVENT)
    levels: NDArray[Any] = np.empty(len(data) // LEVEL_BYTES, LEVEL)
    taken_at, codes = np.empty((2, count), np.int64)
    spans = np.zeros((_MANY_PRODUCTS, 2), np.int64)
    found = np.zeros(3, np.int64)
    taken, known = _scan_log(
        text, words, starts, feed, latest_ns, np.empty(N_NUMBERS), found, events, levels, taken_at, codes, spans
    )
    names = [data[lo:hi].decode() for lo, hi in spans[:known].tolist()]
    return ScannedLog(events[:taken], taken_at[:taken], names, codes[:taken], levels[: found[2]])
