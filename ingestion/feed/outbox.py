"""Envelopes to Kafka in order: a window in memory, a spill on disk behind it, a counted gap behind that.

::

    put ──► window (sent, not yet acknowledged) ──► producer ──► acknowledged: forgotten
              │ full, or its oldest is 1 s old
              ▼
            spill: the window is copied there, then all that comes; read back in order as the window empties

So whatever dies, what was received and isn't acknowledged lies in the spill, or is younger than a second (and in a
process that has just begun, than its beginning). What is sent twice carries the same number, and readers drop it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from ingestion.feed.dropped import Dropped
from ingestion.feed.spill import Position, Spill
from ingestion.topics import CHUNK_BYTES, Envelope, chunks, headers, partition_of

if TYPE_CHECKING:
    from confluent_kafka import Producer

MAX_MESSAGES: Final = 50_000
MAX_BYTES: Final = 64 << 20
SLOW_S: Final = 1.0
"""Age of the oldest unacknowledged message at which the window is copied to disk."""
FIRST_S: Final = 0.3
"""The same until the first acknowledgement: what came while this process was loading is older than it looks."""
RETRY_S: Final = 1.0
"""Pause between attempts to write to a full disk, or to make a new producer."""
_DRAIN_BYTES: Final = 1 << 20

PRODUCER: Final = {
    "message_timeout_ms": 0,  # never: a message given up would be a hole; the spill bounds what waits
    "queue_buffering_max_messages": 1_000_000,  # the window is the bound; broadcasts and chunks count several times
    "queue_buffering_max_kbytes": 1 << 20,
    "linger_ms": 0.5,  # what the worker hands over together goes together; more would only be waited for
    "compression_level": 1,  # batches are small: most of a higher level's time goes into clearing its tables
}
"""What the outbox's producer needs beside `ingestion.kafka.producer`'s own settings."""


@dataclass(slots=True)
class Counters:
    """What the outbox did."""

    acknowledged: int = 0
    spilled: int = 0
    resent: int = 0
    producers: int = 0
    left: int = 0
    """Messages that stay in the spill at the end."""


@dataclass(slots=True)
class _Sent:
    envelope: Envelope
    position: Position | None
    at: float
    parts: int = 1
    """Kafka messages that are not acknowledged."""


class Outbox:
    """Sends envelopes to one topic; owned by one thread, which never waits in it.

    Parameters
    ----------
    connect
        Makes a producer; called again where the last one failed for good.
    topic, partitions
        Where to; a product's messages go to ``partition_of(product)``, those of no product to every partition.
    spill
        Where to keep what the broker doesn't take.
    max_messages, max_bytes, slow_s
        Bounds of the window.
    """

    def __init__(
        self,
        connect: Callable[[], Producer],
        topic: str,
        partitions: int,
        spill: Spill,
        *,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
        slow_s: float = SLOW_S,
    ) -> None:
        self._connect, self._topic, self._partitions, self._spill = connect, topic, partitions, spill
        self._max_messages, self._max_bytes, self._slow_s = max_messages, max_bytes, slow_s
        self._window: deque[_Sent] = deque()
        self._bytes = 0
        self._partition: dict[str, int] = {}
        self._generation = 0
        self._broken = ""
        self._retry_at = 0.0
        self._behind = self._on_disk = spill.pending
        self._lost: list[str] = []
        self._log = structlog.get_logger("ingest")
        self.dropped = Dropped()
        self.counters = Counters(producers=1)
        from confluent_kafka import KafkaException

        self._failure: type[Exception] = KafkaException
        self._producer = connect()

    @property
    def waiting(self) -> int:
        """Messages sent and not acknowledged."""
        return len(self._window)

    @property
    def spilling(self) -> bool:
        """Whether something waits on disk."""
        return self._on_disk

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """Take envelopes, in log order."""
        records = self.dropped.take() if self.dropped and self._may_keep() else []
        wanted = [*records, *envelopes]
        kept = self._keep(wanted)
        self.dropped.add(wanted[kept:])
        self._lost += [e.product_id for e in records[:kept] if e.n > 1]

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take acknowledgements and do what time asks for: copy to disk, send from it, replace a dead producer."""
        self._producer.poll(timeout_s)
        self._forget_acknowledged()
        now = time.monotonic()
        if self._broken and now >= self._retry_at:
            self._renew(now)
        slow_s = self._slow_s if self.counters.acknowledged else min(self._slow_s, FIRST_S)
        if not self._behind and self._window and now - self._window[0].at > slow_s:
            self._begin_spill()
        if self._behind:
            self._drain()
        if self.dropped:
            self.put(())

    def take_lost(self) -> list[str]:
        """Return the products whose loss was written to the log since the last call; empty stands for all."""
        lost, self._lost = self._lost, []
        return lost

    def close(self, timeout_s: float) -> None:
        """Send what there is for at most ``timeout_s``; what isn't acknowledged then stays in the spill."""
        deadline = time.monotonic() + timeout_s
        while (self._window or self._spill.pending or self.dropped) and time.monotonic() < deadline:
            self.poll(0.01)
        if self._window or self._spill.pending:
            self.counters.left = len(self._window) + self._spill.unread()
            fresh = [sent.envelope for sent in self._window if sent.position is None]
            try:
                if fresh:
                    self._spill.append(fresh)
            except OSError as error:
                self._complain(error)
                self.dropped.add(fresh)
        else:
            self._spill.clear()
        self._discard_producer()
        self._spill.close()

    def _may_keep(self) -> bool:
        room = len(self._window) < self._max_messages and self._bytes < self._max_bytes
        return time.monotonic() >= self._retry_at or (room and not self._behind)

    def _keep(self, envelopes: Sequence[Envelope]) -> int:
        """Send envelopes or put them on disk; return how many of them, from the first on."""
        sent = 0
        if not self._behind:
            sent = self._send([(e, None) for e in envelopes], self._max_messages, self._max_bytes)
            if sent == len(envelopes) or not self._begin_spill():
                return sent
        try:
            self._spill.append(envelopes[sent:])
        except OSError as error:
            self._complain(error)
            return sent
        self.counters.spilled += len(envelopes) - sent
        return len(envelopes)

    def _send(self, envelopes: Sequence[tuple[Envelope, Position | None]], most: int, most_bytes: int) -> int:
        """Send envelopes while the window has room; return how many."""
        window, now = self._window, time.monotonic()
        for i, (envelope, position) in enumerate(envelopes):
            if len(window) >= most or self._bytes >= most_bytes:
                return i
            sent = _Sent(envelope, position, now)
            window.append(sent)
            self._bytes += len(envelope.raw)
            if not self._broken:
                self._produce(sent)
        return len(envelopes)

    def _produce(self, sent: _Sent) -> None:
        e = sent.envelope
        product, raw = e.product_id, e.raw
        whole = len(raw) <= CHUNK_BYTES
        values = (raw,) if whole else chunks(raw)
        to = (self._partition_of(product),) if product else range(self._partitions)
        sent.parts = len(values) * len(to)
        done = partial(self._delivered, sent, self._generation)
        produce = self._producer.produce
        try:
            for i, value in enumerate(values):
                head = headers(e, i, len(values))
                for partition in to:
                    produce(self._topic, value, product or None, partition, done, headers=head)
        except (BufferError, self._failure) as error:
            self._broken = str(error)

    def _partition_of(self, product_id: str) -> int:
        found = self._partition.get(product_id)
        if found is None:
            found = self._partition[product_id] = partition_of(product_id, self._partitions)
        return found

    def _delivered(self, sent: _Sent, generation: int, error: Any, _message: Any) -> None:
        if generation != self._generation:
            return  # of a producer that was given up: its messages were sent again
        if error is not None:
            self._broken = self._broken or error.str()
        else:
            sent.parts -= 1

    def _forget_acknowledged(self) -> None:
        window = self._window
        position = None
        while window and window[0].parts == 0:
            sent = window.popleft()
            self._bytes -= len(sent.envelope.raw)
            self.counters.acknowledged += 1
            position = sent.position or position
        if position is not None:
            if self._spill.pending or (window and window[0].position is not None):
                self._spill.trim(position)
            else:
                self._spill.clear()
                self._on_disk = False
                self._log.info("all that waited on disk is acknowledged")

    def _begin_spill(self) -> bool:
        """Copy the window to disk, so that all that comes can follow it there."""
        if time.monotonic() < self._retry_at:
            return False
        fresh = [sent for sent in self._window if sent.position is None]
        try:
            positions = self._spill.append([sent.envelope for sent in fresh]) if fresh else []
        except OSError as error:
            self._complain(error)
            return False
        for sent, position in zip(fresh, positions, strict=True):
            sent.position = position
        self._spill.skip_all()
        self._behind = True
        self.counters.spilled += len(fresh)
        if not self._on_disk:
            self._on_disk = True
            folder = str(self._spill.folder)
            if self.counters.acknowledged:
                self._log.warning("the broker is slow or gone: messages wait on disk", folder=folder)
            else:
                self._log.info("messages wait on disk until the broker has answered", folder=folder)
        return True

    def _drain(self) -> None:
        """Send from disk while the window has room."""
        if self._broken or 2 * len(self._window) >= self._max_messages or 2 * self._bytes >= self._max_bytes:
            return
        damaged = self._spill.damaged
        found = self._spill.read(_DRAIN_BYTES)
        if self._spill.damaged > damaged:
            self._log.error("a part of what waited on disk was damaged and is lost", folder=str(self._spill.folder))
        self._send(found, len(self._window) + len(found), 2 * self._max_bytes)
        if not self._spill.pending:
            self._behind = False
            if not self._window:  # nothing of it could be read
                self._spill.clear()
                self._on_disk = False

    def _renew(self, now: float) -> None:
        """Replace a producer that failed for good, and send again all that isn't acknowledged, in order."""
        self._log.warning("the producer failed and is replaced", error=self._broken, messages=len(self._window))
        self._discard_producer()
        self._broken = ""
        self._retry_at = now + RETRY_S
        self._producer = self._connect()
        self.counters.producers += 1
        for sent in self._window:
            if self._broken:
                break
            sent.at = now
            self._produce(sent)
            self.counters.resent += 1

    def _discard_producer(self) -> None:
        self._generation += 1
        self._producer.purge()
        self._producer.flush(1.0)

    def _complain(self, error: OSError) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        self._log.error(
            "messages can't wait on disk; what the broker doesn't take either is dropped, counted, and told as a gap",
            error=error.strerror or str(error),
            folder=str(self._spill.folder),
        )
