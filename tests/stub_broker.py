"""A broker and its producer by hand: what the outbox sends, when it is acknowledged, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingestion.topics import Envelope, Header, read
from tests.log_kit import kept

PARTITIONS = 4


class Error:
    def __init__(self, text: str) -> None:
        self._text = text

    def str(self) -> str:
        return self._text


class Broker:
    """What reached a broker, per partition in order; it acknowledges while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.log: list[list[tuple[bytes | None, bytes, list[Header]]]] = [[] for _ in range(PARTITIONS)]
        self.producers: list[Producer] = []

    def connect(self) -> Any:
        self.producers.append(Producer(self))
        return self.producers[-1]

    def envelopes(self, partition: int) -> list[Envelope]:
        """Return what a reader keeps of a partition: whole messages, each number once."""
        return kept(read(*message) for message in self.log[partition])


class Producer:
    """As much of a Kafka producer as the outbox uses."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queue: list[tuple[int, tuple[bytes | None, bytes, list[Header]], Callable[..., None]]] = []
        self._reports: list[tuple[Callable[..., None], Error | None]] = []

    def produce(
        self,
        topic: str,
        value: bytes,
        key: str | None,
        partition: int,
        on_delivery: Callable[..., None],
        *,
        headers: list[Header],
    ) -> None:
        assert topic == "ticks.raw"
        self._queue.append((partition, (key.encode() if key else None, value, headers), on_delivery))

    def poll(self, timeout_s: float) -> None:
        if self._broker.up:
            self.deliver(len(self._queue))
        reports, self._reports = self._reports, []
        for report, error in reports:
            report(error, None)

    def deliver(self, count: int, acknowledged: bool = True) -> None:
        """Bring messages to the broker; those whose acknowledgement gets lost on the way back stay to be sent again."""
        for partition, message, report in self._queue[:count]:
            self._broker.log[partition].append(message)
            if acknowledged:
                self._reports.append((report, None))
        if acknowledged:
            del self._queue[:count]

    def fail(self) -> None:
        """Break for good, as an idempotent producer does that lost count."""
        self._reports += [(report, Error("fatal: out of order")) for _, _, report in self._queue]
        self._queue.clear()

    def purge(self) -> None:
        self._reports += [(report, Error("purged")) for _, _, report in self._queue]
        self._queue.clear()

    def flush(self, timeout_s: float) -> int:
        self.poll(timeout_s)
        return 0
