"""One client's connection as the exchange sees it: what it subscribed, what waits to be sent to it, what went wrong."""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from ingestion.exchange.faults import ON_MESSAGES, Draw, Order, Rule
from ingestion.exchange.feeds import Dialect, Item
from ingestion.exchange.ledger import Record
from ingestion.exchange.messages import Split
from ingestion.exchange.requests import Topic

_TEXT: Final = 0x81
_BINARY: Final = 0x82
_NOISE: Final = b'{"type":"ticker","price":"1\x00\x01<!DOCTYPE html>'


def frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    r"""Return an unmasked, unfragmented WebSocket frame (RFC 6455 §5.2).

    Examples
    --------
    >>> frame(b"{}")
    b'\x81\x02{}'
    """
    n = len(payload)
    if n < 126:
        return bytes((opcode, n)) + payload
    if n < 65_536:
        return bytes((opcode, 126)) + n.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + n.to_bytes(8, "big") + payload


class Message(NamedTuple):
    """A message about to be sent: its payload, or the two parts around its number on an Advanced Trade connection."""

    kind: str
    product: str
    key: str
    payload: bytes | Split
    item: Item | None = None
    """Of the feed, where it is one of its messages."""


class Ready(NamedTuple):
    """A message with its number, and the bytes that will be sent."""

    kind: str
    product: str
    key: str
    payload: bytes
    seq: int
    fault: str = ""


class Client:
    """A connection.

    Parameters
    ----------
    connection
        The socket.
    number
        From 1.
    draw
        Chances of faults.
    orders
        Faults asked for by hand, shared by all connections.
    queue_bytes
        Most that may wait in the socket's buffer before the client counts as slow.
    ahead
        Makes the message of an item again, with times so many seconds ahead.

    Attributes
    ----------
    dialect
        None until its path or first request settles it.
    topics
        What is subscribed, in that order.
    told
        Topics whose snapshot, or newest trade, the client has.
    seq
        Next ``sequence_num``.
    silent
        Half-open: nothing is sent nor read any more.
    sent_s, idle_s
        When it was last sent anything, and for how long it may be sent nothing; 0 for ever.
    why
        Reason of its end, empty while it lives.
    """

    def __init__(
        self,
        connection: ServerConnection,
        number: int,
        draw: Draw,
        orders: list[Order],
        queue_bytes: int,
        ahead: Callable[[Item, Dialect, float], bytes | Split],
    ) -> None:
        self._ahead = ahead
        self.connection, self.number, self.draw, self.orders = connection, number, draw, orders
        self.queue_bytes = queue_bytes
        self.dialect: Dialect | None = None
        self.topics: dict[Topic, None] = {}
        self.told: set[Topic] = set()
        self.seq = self.index = 0
        self.silent = False
        self.why = ""
        self.sent_s = self.idle_s = 0.0
        self.faults: Counter[str] = Counter()
        self._frames: list[bytes] = []
        self._records: list[Record] = []
        self._swapped: Ready | None = None
        self._late: list[tuple[float, int, Ready]] = []
        self._order = count()
        self._stalled_s = 0.0
        self._half: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return not self.why and not self.silent and self.connection.state is State.OPEN

    @property
    def busy(self) -> bool:
        """Whether something waits for its time."""
        return bool(self._late) or bool(self._frames)

    def send(self, message: Message, now_s: float, stream_s: float) -> None:
        """Queue a message, or what a fault makes of it.

        Parameters
        ----------
        message
            To be sent.
        now_s
            Clock of stalls and repeated faults, s.
        stream_s
            Clock of the feed, by which late messages are held back, s.
        """
        if not self.open:
            return
        ready = self._number(message, message.payload)
        rule = self._fault(message.kind, message.product, now_s)
        if rule is None:
            self._queue(ready)
            return
        self.faults[rule.fault] += 1
        ready = ready._replace(fault=rule.fault)
        match rule.fault:
            case "drop":
                self._note(ready, sent=False)
            case "double":
                self._queue(ready)
                self._queue(ready)
            case "swap" if self._swapped is None:
                self._swapped = ready
            case "late":
                heapq.heappush(self._late, (stream_s + rule.length_s, next(self._order), ready))
            case "future" if message.item is not None and self.dialect is not None:
                ahead = self._ahead(message.item, self.dialect, rule.length_s)
                payload = ahead if isinstance(ahead, bytes) else b"%s%d%s" % (ahead[0], ready.seq, ahead[1])
                self._queue(ready._replace(payload=payload))
            case "truncate":
                cut = self.draw.rng.randrange(1, max(2, len(ready.payload)))
                self._queue(ready._replace(payload=ready.payload[:cut]))
            case "garbage":
                self._garbage()
                self._queue(ready._replace(fault=""))
            case "cut":
                self._half = frame(ready.payload)[: len(ready.payload) // 2 + 1]
                self._note(ready, sent=False)
            case _:
                self._queue(ready._replace(fault=""))
                self.strike(rule, now_s)

    def omit(self, message: Message, fault: str) -> None:
        """Note a message that a fault keeps back for good."""
        self._note(Ready(message.kind, message.product, message.key, b"", -1, fault), sent=False)

    def strike(self, rule: Rule, now_s: float) -> None:
        """Let a fault of the whole connection happen now."""
        match rule.fault:
            case "stall":
                self._stalled_s = now_s + rule.length_s
            case "disconnect":
                self.why = "disconnect"
            case "cut":
                self._half = frame(b" " * 512)[:64]
            case "half_open":
                self.silent = True
                self.connection.transport.pause_reading()

    def due(self, now_s: float) -> Rule | None:
        """Return a repeated fault of the connection whose time has come."""
        rule = self.draw.due(now_s) if self.topics else None
        if rule is not None:
            self.faults[rule.fault] += 1
        return rule

    def flush(self, now_s: float, stream_s: float) -> list[Record]:
        """Hand what waits to the socket; return what went out, or was left out, since the last time.

        Returns
        -------
        list
            For the ledger. The client's ``why`` is set where it must be cut off.
        """
        while self._late and self._late[0][0] <= stream_s:
            self._queue(heapq.heappop(self._late)[2])
        if self._stalled_s > now_s or not (self._frames or self._half or self._records):
            return []
        frames, records = self._frames, self._records
        self._frames, self._records = [], []
        if self.silent or self.connection.state is not State.OPEN:
            return [record._replace(number=0) for record in records]
        transport: asyncio.Transport = self.connection.transport  # websockets sends a frame a call: 10 times dearer
        if frames:
            transport.write(b"".join(frames))
            self.sent_s = now_s
        if self._half is not None:
            transport.write(self._half)
            self.why = "cut"
        elif transport.get_write_buffer_size() > self.queue_bytes:
            self.why = "slow client"
        return records

    def waiting(self) -> int:
        """Bytes that the system hasn't taken yet."""
        return self.connection.transport.get_write_buffer_size() if self.open else 0

    def wanted(self, fault: str, product: str = "", channel: str = "") -> bool:
        """Whether a fault meets this request: by hand, or by chance."""
        for order in self.orders:
            rule = order.rule
            if (
                rule.fault == fault
                and order.connection in (None, self.number)
                and (not rule.products or product in rule.products)
                and rule.channel in ("", channel)
            ):
                self._use(order)
                self.faults[fault] += 1
                return True
        if self.draw.request(fault, product, channel):
            self.faults[fault] += 1
            return True
        return False

    # What happens to a message

    def _number(self, message: Message, payload: bytes | Split) -> Ready:
        if isinstance(payload, bytes):
            return Ready(message.kind, message.product, message.key, payload, -1)
        seq, self.seq = self.seq, self.seq + 1
        return Ready(message.kind, message.product, message.key, b"%s%d%s" % (payload[0], seq, payload[1]), seq)

    def _fault(self, kind: str, product: str, now_s: float) -> Rule | None:
        for order in self.orders:
            rule = order.rule
            if rule.fault in ON_MESSAGES and order.connection in (None, self.number) and rule.meets(kind, product):
                self._use(order)
                return rule
        return self.draw.message(kind, product, now_s)

    def _use(self, order: Order) -> None:
        order.count -= 1
        if order.count == 0:
            self.orders.remove(order)

    def _garbage(self) -> None:
        """Noise: text that is no JSON, or a binary frame."""
        text = self.draw.rng.random() < 0.5
        noise = _NOISE if text else self.draw.rng.randbytes(64)
        self._frames.append(frame(noise, _TEXT if text else _BINARY))
        self._note(Ready("garbage", "", "", noise, -1, "garbage"), sent=True)

    def _queue(self, ready: Ready) -> None:
        self._frames.append(frame(ready.payload))
        self._note(ready, sent=True)
        if self._swapped is not None:
            held, self._swapped = self._swapped, None
            self._queue(held)

    def _note(self, ready: Ready, *, sent: bool) -> None:
        if sent:
            self.index += 1
        self._records.append(
            Record(
                self.number,
                self.index if sent else 0,
                ready.kind,
                ready.product,
                ready.key,
                zlib.crc32(ready.payload) if sent else 0,
                ready.seq,
                ready.fault,
            )
        )
