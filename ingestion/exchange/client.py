"""One client's connection as the exchange sees it: what it subscribed, and what waits to be sent to it."""

from __future__ import annotations

import asyncio
import zlib

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from ingestion.exchange.faults import Rule
from ingestion.exchange.feeds import Dialect
from ingestion.exchange.frames import TEXT, Message, frame
from ingestion.exchange.ledger import Record
from ingestion.exchange.mischief import Mischief
from ingestion.exchange.requests import Topic


class Client:
    """A connection.

    Parameters
    ----------
    connection
        The socket.
    number
        From 1.
    mischief
        What goes wrong on it.
    queue_bytes
        Most that may wait in the socket's buffer before the client counts as slow.
    noted
        Whether a ledger is kept.

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
    index, flushed
        Messages handed to the socket or waiting for it, and those handed to it.
    silent
        Half-open: nothing is sent nor read any more.
    sent_s, idle_s
        When it was last sent anything, and for how long it may be sent nothing; 0 for ever.
    why
        Reason of its end, empty while it lives.
    """

    def __init__(
        self, connection: ServerConnection, number: int, mischief: Mischief, queue_bytes: int, *, noted: bool
    ) -> None:
        self.connection, self.number, self.mischief = connection, number, mischief
        self.queue_bytes, self.noted = queue_bytes, noted
        self.dialect: Dialect | None = None
        self.topics: dict[Topic, None] = {}
        self.told: set[Topic] = set()
        self.seq = self.index = self.flushed = 0
        self.silent = False
        self.why = ""
        self.sent_s = self.idle_s = 0.0
        self._frames: list[bytes] = []
        self._records: list[Record] = []
        self._stalled_s = 0.0
        self._half, self._ending = b"", ""

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return not self.why and not self.silent and self.connection.state is State.OPEN

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
        if self._ending:
            return
        tail, seq = message.tail, -1
        if tail is not None:
            seq = self.seq
            self.seq = seq + 1
        mischief = self.mischief
        if mischief.awake:
            mischief.release(self, stream_s)
            rule = mischief.on_message(message.kind, message.product, now_s)
            if rule is not None or mischief.swapped is not None:
                mischief.do(self, rule, message, seq, now_s, stream_s)
                return
        if self.noted:
            self.queue(message, self.payload(message, seq), seq)
            return
        self.index += 1
        self._frames.append(message.whole or frame(b"%s%d%s" % (message.payload, seq, tail)))

    def payload(self, message: Message, seq: int) -> bytes:
        """Return a message's bytes, numbered where its dialect does."""
        return message.payload if message.tail is None else b"%s%d%s" % (message.payload, seq, message.tail)

    def queue(self, message: Message, payload: bytes, seq: int, fault: str = "", opcode: int = TEXT) -> None:
        """Let bytes wait for the socket."""
        self.index += 1
        self._frames.append(frame(payload, opcode))
        if self.noted:
            key, crc = message.key, zlib.crc32(payload)
            self._records.append(Record(self.number, self.index, message.kind, message.product, key, crc, seq, fault))

    def omit(self, message: Message, fault: str, seq: int = -1) -> None:
        """Note a message that isn't sent."""
        if self.noted:
            self._records.append(Record(self.number, 0, message.kind, message.product, message.key, 0, seq, fault))

    def strike(self, rule: Rule, now_s: float) -> None:
        """Let a fault of the whole connection happen now."""
        match rule.fault:
            case "stall":
                self._stalled_s = now_s + rule.length_s
            case "disconnect":
                self._ending = "disconnect"
            case "cut":
                self.halve(b" " * 512)
            case "half_open":
                self.silent = True
                self.connection.transport.pause_reading()

    def halve(self, payload: bytes) -> None:
        """End the connection in the middle of a message."""
        self._half, self._ending = frame(payload)[: 4 + len(payload) // 2], "cut"

    def flush(self, now_s: float, stream_s: float) -> list[Record]:
        """Hand what waits to the socket; return what went out, or was left out, since the last time.

        Returns
        -------
        list
            For the ledger. The client's ``why`` is set where it must be cut off.
        """
        self.mischief.release(self, stream_s)
        if self._stalled_s > now_s or not (self._frames or self._ending or self._records):
            return []
        frames, records = self._frames, self._records
        self._frames, self._records = [], []
        if not self.open:
            return [record._replace(number=0, crc=0) for record in records]
        # The library's own send takes one message a call, with a lock and a drain: ten times dearer.
        transport: asyncio.Transport = self.connection.transport
        if frames:
            transport.write(b"".join(frames))
            self.flushed += len(frames)
            self.sent_s = now_s
        if self._ending:
            transport.write(self._half)
            self.why = self._ending
        elif transport.get_write_buffer_size() > self.queue_bytes:
            self.why = "slow client"
        return records

    def waiting(self) -> int:
        """Bytes that the system hasn't taken yet."""
        return self.connection.transport.get_write_buffer_size() if self.open else 0
