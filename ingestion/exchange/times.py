"""The times in messages, moved so that a recording begins now; the form of the text stays as the exchange wrote it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_EXCHANGE: Final = b'"time":"'
_ALL: Final = re.compile(rb'(?<="time":"|_time":"|stamp":")\d{4}-\d\d-\d\dT[^"]*')
_DIGITS: Final = re.compile(rb"\d+")
_KEPT: Final = 20_000
"""Seconds whose text is remembered; a day has 86,400, and a message's second is mostly that of the one before."""
_SECOND: Final = "%Y-%m-%dT%H:%M:%S"
_MILLIS: Final = tuple(b".%03d" % ms for ms in range(1000))
_MS: Final = 1_000_000
_S: Final = 1_000_000_000


class Shift:
    """Move times by one constant, and where asked squeeze them towards the start.

    Parameters
    ----------
    shift_ns
        Added to every time, rounded down to whole milliseconds, so that finer digits stay as they are.
    origin_ns
        Time of the recording that stays where ``shift_ns`` puts it when times are squeezed.
    squeeze
        Recorded seconds that become one second; 1 leaves distances as they are.

    Examples
    --------
    >>> Shift(1_500_000_000).text(b"2025-12-31T23:59:59.012345Z")
    b'2026-01-01T00:00:00.512345Z'
    >>> Shift(0, origin_ns=1_764_547_200_000_000_000, squeeze=10.0).text(b"2025-12-01T00:00:05.5Z")
    b'2025-12-01T00:00:00.550000Z'
    """

    __slots__ = ("_origin_ns", "_pairs", "_plain", "_shift_ms", "_squeeze", "_texts", "shift_ns")

    def __init__(self, shift_ns: int = 0, *, origin_ns: int = 0, squeeze: float = 1.0) -> None:
        self._shift_ms = shift_ns // _MS
        self.shift_ns = self._shift_ms * _MS
        self._origin_ns, self._squeeze = origin_ns, squeeze
        self._plain = squeeze == 1.0
        self._pairs: dict[bytes, tuple[bytes, bytes]] = {}
        self._texts: dict[int, bytes] = {}

    def ahead(self, seconds: float) -> Shift:
        """Return a shift that puts times further into the future, s."""
        return Shift(self.shift_ns + int(seconds * _S), origin_ns=self._origin_ns, squeeze=self._squeeze)

    def ns(self, recorded_ns: int) -> int:
        """Return where a recorded time lies now, ns."""
        if self._squeeze != 1.0:
            recorded_ns = self._origin_ns + int((recorded_ns - self._origin_ns) / self._squeeze)
        return recorded_ns + self.shift_ns

    def text(self, when: bytes) -> bytes:
        """Move one ISO 8601 time; what can't be read is handed back unchanged."""
        # The common form by two look-ups: a feed's messages share their second, and only milliseconds move.
        pair = self._pairs.get(when[:19])
        if pair is not None and when[19:20] == b"." and when[20:23].isdigit():
            ms = int(when[20:23]) + self._shift_ms % 1000
            return pair[ms >= 1000] + _MILLIS[ms % 1000] + when[23:]
        return self._slow(when)

    def _slow(self, when: bytes) -> bytes:
        try:
            second = int(datetime.strptime(when[:19].decode(), _SECOND).replace(tzinfo=UTC).timestamp())
        except ValueError:
            return when
        digits, zone = b"", when[19:]
        if zone[:1] == b"." and (found := _DIGITS.match(zone, 1)):
            digits, zone = found[0], zone[found.end() :]
        if not self._plain:
            ns = self.ns(second * _S + int(digits[:9].ljust(9, b"0")))
            return b"%s.%06d%s" % (self.second_text(ns // _S), ns % _S // 1000, zone)
        moved = second + self._shift_ms // 1000
        if len(self._pairs) > _KEPT:
            self._pairs.clear()
        self._pairs[when[:19]] = self.second_text(moved), self.second_text(moved + 1)
        ms = int(digits[:3].ljust(3, b"0")) + self._shift_ms % 1000
        return self.second_text(moved + ms // 1000) + _MILLIS[ms % 1000] + digits[3:] + zone

    def one(self, raw: bytes) -> tuple[bytes, bytes]:
        """Move the time of an Exchange message, of which it has one or none.

        Returns
        -------
        tuple
            The message, and its new time as text, empty where it has none.
        """
        at = raw.rfind(_EXCHANGE) + len(_EXCHANGE)
        if at < len(_EXCHANGE):
            return raw, b""
        end = raw.find(b'"', at)
        when = self.text(raw[at:end])
        return raw[:at] + when + raw[end:], when

    def all(self, raw: bytes) -> bytes:
        """Move every time of an Advanced Trade message: envelope, trades and changes."""
        return _ALL.sub(lambda found: self.text(found[0]), raw)

    def second_text(self, second: int) -> bytes:
        """Return a second since the epoch as text, without fraction and zone."""
        text = self._texts.get(second)
        if text is None:
            if len(self._texts) > _KEPT:
                self._texts.clear()
            text = datetime.fromtimestamp(second, UTC).strftime(_SECOND).encode()
            self._texts[second] = text
        return text

    def stamp(self, ns: int, digits: int = 6) -> bytes:
        """Write a time that needs no moving, ns, with so many digits.

        Examples
        --------
        >>> Shift().stamp(1_764_547_200_012_345_678)
        b'2025-12-01T00:00:00.012345Z'
        """
        return b"%s.%sZ" % (self.second_text(ns // _S), (b"%09d" % (ns % _S))[:digits])


def event_ns(when: str) -> int | None:
    """Read an ISO 8601 UTC time as ns, None where it can't be read."""
    try:
        second = datetime.strptime(when[:19], _SECOND).replace(tzinfo=UTC)
    except ValueError:
        return None
    found = re.match(r"\.(\d+)", when[19:])
    return int(second.timestamp()) * _S + (int(found[1][:9].ljust(9, "0")) if found else 0)
