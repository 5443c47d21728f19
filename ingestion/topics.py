"""What travels through Kafka: the envelope of the raw log, its chunks, and the partition of each product.

::

    received ──► Envelope(session, n, recv_ns, product, …, raw) ──► one message of ticks.raw, or several chunks
                     │                                          key: product, partition: partition_of
                     └──► tape_line: the same, as a line of a raw tape

A message that speaks of one product goes to that product's partition. One that speaks of none or of several goes to
every partition, with the same number; each reader keeps what concerns its products.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from feature_repo.errors import InputError, UsageError
from feature_repo.names import is_name

RAW: Final = "ticks.raw"
FEATURES: Final = "ticks.features"
QUOTES: Final = "ticks.quotes"
PREDICTIONS: Final = "predictions"
OUTCOMES: Final = "outcomes"
ALERTS: Final = "alerts"
TOPICS: Final = (RAW, FEATURES, QUOTES, PREDICTIONS, OUTCOMES, ALERTS)

CHUNK_BYTES: Final = 512_000
"""Longest value of one Kafka message: brokers and clients refuse 1 MB, and a snapshot of 46,000 levels has 5."""

Kind = Literal["feed", "keyframe", "state"]
Dialect = Literal["exchange", "advanced"]
Header = tuple[str, bytes]
_NAME: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADERS: Final = ("session", "n", "ts", "kind", "dialect")
_KINDS: Final[dict[bytes, Kind]] = {b"feed": "feed", b"keyframe": "keyframe", b"state": "state"}
_DIALECTS: Final[dict[bytes, Dialect]] = {b"exchange": "exchange", b"advanced": "advanced"}


def require_name(topic: str) -> None:
    """Raise UsageError where a topic can't be called that."""
    if not is_name(topic):
        raise UsageError(f"topic is {topic!r}, must be 1 to 64 of A-Z a-z 0-9 . _ -; set --topic")


class Envelope(NamedTuple):
    """One record of the raw log.

    Attributes
    ----------
    session
        Connection, 16 hex digits.
    n
        Number in the session: 1, 2, …, rising in log order.
    recv_ns
        Receive time, ns UTC, a whole microsecond.
    product_id
        The one product it speaks of; empty for none or several.
    kind
        ``feed``: as the exchange sent it; ``keyframe``, ``state``: written by the ingestor.
    dialect
        Of ``raw``, or of the connection.
    raw
        The message's bytes, JSON; never changed.
    """

    session: str
    n: int
    recv_ns: int
    product_id: str
    kind: Kind
    dialect: Dialect
    raw: bytes


def headers(envelope: Envelope, part: int = 0, parts: int = 1) -> list[Header]:
    """Return the Kafka headers of an envelope, or of one chunk of it.

    ``ts`` is the receive time in µs; ``chunk`` (``part/parts``, from 0) stands only where there are several.
    """
    session, kind, dialect = _fixed(envelope.session, envelope.kind, envelope.dialect)
    found = [session, ("n", b"%d" % envelope.n), ("ts", b"%d" % (envelope.recv_ns // 1000)), kind, dialect]
    if parts > 1:
        found.append(("chunk", b"%d/%d" % (part, parts)))
    return found


@lru_cache(maxsize=64)
def _fixed(session: str, kind: str, dialect: str) -> tuple[Header, Header, Header]:
    """Headers that are the same for thousands of messages: made once, they cost a third."""
    return ("session", session.encode()), ("kind", kind.encode()), ("dialect", dialect.encode())


def chunks(raw: bytes) -> list[bytes]:
    """Cut a message into values that a broker takes; one where it is short enough."""
    if len(raw) <= CHUNK_BYTES:
        return [raw]
    return [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]


def read(key: bytes | None, value: bytes | None, found: Sequence[Header] | None) -> tuple[Envelope, int, int]:
    """Read a Kafka message of the raw log.

    Returns
    -------
    tuple
        The envelope, with this chunk's bytes as ``raw``; index of the chunk; number of chunks.

    Raises
    ------
    InputError
        If a header is missing or unreadable.

    Examples
    --------
    >>> e = Envelope("00f1a2b3c4d5e6f7", 3, 5_000, "BTC-USD", "feed", "exchange", b"{}")
    >>> read(b"BTC-USD", b"{}", headers(e)) == (e, 0, 1)
    True
    """
    try:
        # As `headers` writes them; by name costs three times as much, and this is run for every message.
        (a, session), (b, n), (c, ts), (d, kind), (e, dialect) = found or ()
        if (a, b, c, d, e) != _HEADERS:
            raise ValueError("in another order")
        chunk = b"0/1"
    except ValueError:
        h = dict(found or ())
        try:
            session, n, ts, kind, dialect = (h[name] for name in _HEADERS)
            chunk = h.get("chunk", b"0/1")
        except KeyError as error:
            raise _unread(found, error) from error
    try:
        part, parts = (0, 1) if chunk == b"0/1" else (int(x) for x in chunk.split(b"/"))
        who = _session(session), int(n), int(ts) * 1000, _text(key or b"")
        # half the time of Envelope(…)
        envelope = tuple.__new__(Envelope, (*who, _KINDS[kind], _DIALECTS[dialect], value or b""))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _unread(found, error) from error
    return envelope, part, parts


@lru_cache(maxsize=4096)
def _session(raw: bytes) -> str:
    if not _NAME.fullmatch(raw):
        raise ValueError("session is no name")  # it becomes a key of the tables
    return raw.decode()


@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return raw.decode()


def _unread(found: Sequence[Header] | None, error: Exception) -> InputError:
    return InputError(
        f"message of {RAW}: headers were {sorted(dict(found or ()))} (not understood: {error}); expected session n ts "
        "kind dialect, as volspike ingest writes them"
    )


def tape_line(envelope: Envelope) -> bytes:
    """Return the envelope as a line of a raw tape, with its newline.

    Examples
    --------
    >>> line = tape_line(Envelope("00f1a2b3c4d5e6f7", 3, 1_500_000_000, "BTC-USD", "feed", "exchange", b"{}"))
    >>> line.decode().strip()
    '{"ts":1.500000,"pair":"BTC-USD","session":"00f1a2b3c4d5e6f7","n":3,"kind":"feed","dialect":"exchange","raw":"{}"}'
    """
    us = envelope.recv_ns // 1000
    text = msgspec.json.encode(envelope.raw.decode(errors="replace"))
    return b'{"ts":%d.%06d,"pair":"%s","session":"%s","n":%d,"kind":"%s","dialect":"%s","raw":%s}\n' % (
        us // 1_000_000,
        us % 1_000_000,
        envelope.product_id.encode(),
        envelope.session.encode(),
        envelope.n,
        envelope.kind.encode(),
        envelope.dialect.encode(),
        text,
    )


def partition_of(product_id: str, partitions: int) -> int:
    """Return the partition of a product: Kafka's own default for its key (murmur2), so that any producer agrees.

    Source: Apache Kafka, ``org.apache.kafka.common.utils.Utils.murmur2`` and ``toPositive``.

    Examples
    --------
    >>> [partition_of(p, 4) for p in ("BTC-USD", "ETH-USD", "SOL-USD")]
    [1, 0, 1]
    """
    return (_murmur2(product_id.encode()) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    end = len(data) & ~3
    for at in range(0, end, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if len(data) & 3:
        h = (h ^ int.from_bytes(data[end:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
