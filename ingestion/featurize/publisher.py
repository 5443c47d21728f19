"""Rows on their way to ``ticks.features`` and ``ticks.quotes``: each at least once, in order per product.

They are gathered for some hundredths of a second: a message for each dozen of rows took a third of the loop's time, and
while one is made, the newest row waits for the interpreter on its way to Redis.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from feature_repo.errors import StoreError
from ingestion.kafka import ClientLost, lost_if_fatal
from ingestion.kernel import Part
from ingestion.kernel.rows import joined
from ingestion.kernel.step import Q_CAUSE, Q_SESSION, R_CAUSE, R_SESSION
from ingestion.topics import FEATURES, QUOTES, partition_of
from ingestion.wire import Wire, feature_messages, quote_messages

Held = dict[tuple[str, str], int]
"""(session, product) -> last message that a table holds."""
PRODUCER: Final = {"compression_type": "lz4", "queue_buffering_max_kbytes": 8_192}
"""Settings of its producer: rows of floats gain little from a slower compressor, and a queue of the default gigabyte
would be the featurizer's whole memory many times over."""
GATHER_S: Final = 0.05
"""How long rows wait for others: whoever can't wait so long for a row reads Redis."""
GATHER_ROWS: Final = 1_000
"""Rows that don't wait: at a backlog's speed they come in larger batches than are worth gathering."""
FLUSH_S: Final = 60.0
"""Bound on waiting for acknowledgements; a broker that is gone longer stops the commit, not the reading. After
librdkafka's ``message.timeout.ms``, 5 minutes, what was under way is given up, and so is the producer."""
LOOK_S: Final = 1.0
"""How often it is looked at meanwhile whether to wait no longer."""


class ProducerLost(ClientLost):
    """The producer can't go on: what it held is made again from the log by whoever comes next."""


class Publisher:
    """Sends rows that the tables don't hold yet.

    Parameters
    ----------
    producer
        An idempotent producer.
    partitions
        Partitions of each topic.
    """

    def __init__(self, producer: Any, partitions: dict[str, int]) -> None:
        self._producer = producer
        self._partitions = partitions
        self._gathered: list[Part] = []
        self._rows = 0
        self.due_at = math.inf
        """When what was gathered should be sent, on the monotonic clock; infinite where there is nothing."""
        self.counts: Counter[str] = Counter()
        self._failed: str = ""

    def gather(self, parts: Sequence[Part]) -> None:
        """Take rows, in log order; :meth:`send` sends them."""
        if not parts:
            return
        self._gathered += parts
        self._rows += sum(part.ints.shape[1] for part in parts)
        now = time.monotonic()
        self.due_at = now if self._rows >= GATHER_ROWS else min(self.due_at, now + GATHER_S)

    def send(self, rows: Held, quotes: Held) -> None:
        """Send what was gathered; rows that the tables hold were sent before.

        Parameters
        ----------
        rows, quotes
            What ``spike_features`` and ``quotes`` hold.

        Raises
        ------
        ProducerLost
            If the producer can't go on.
        """
        for part in joined(self._gathered):
            first = _first_new(part, part.ints[R_SESSION], part.ints[R_CAUSE], rows)
            if first < part.ints.shape[1]:
                self._send(FEATURES, part, feature_messages(part, first))
                self.counts["rows_published"] += part.ints.shape[1] - first
            first = _first_new(part, part.quote_ints[Q_SESSION], part.quote_ints[Q_CAUSE], quotes)
            if first < part.quote_ints.shape[1]:
                self._send(QUOTES, part, quote_messages(part, first))
                self.counts["quotes_published"] += part.quote_ints.shape[1] - first
        # only now: what a failure interrupts is sent again, not forgotten
        self._gathered, self._rows, self.due_at = [], 0, math.inf

    def _send(self, topic: str, part: Part, messages: Iterator[Wire]) -> None:
        partition = partition_of(part.product_id, self._partitions[topic])
        with _lost_if_fatal():
            for key, value, headers in messages:
                while True:
                    try:
                        self._producer.produce(
                            topic, value, key, partition=partition, headers=headers, on_delivery=self._delivered
                        )
                        break
                    except BufferError:  # the queue is full: the broker is slower than the kernel, so wait for it
                        self.counts["publish_waits"] += 1
                        self._producer.poll(0.1)
            self._producer.poll(0)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self.counts["publish_failures"] += 1
            self._failed = error.str()

    def flush(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until all that was sent is acknowledged.

        Parameters
        ----------
        give_up
            Looked at once a second: whether to wait no longer.

        Raises
        ------
        StoreError
            If it isn't in time.
        ProducerLost
            If a message was given up or refused, or the producer can't go on.
        """
        with _lost_if_fatal():
            began = time.monotonic()
            left = self._producer.flush(LOOK_S)
            while left and not give_up() and time.monotonic() - began < FLUSH_S:
                left = self._producer.flush(LOOK_S)
        if self._failed:
            raise ProducerLost(f"{FEATURES} and {QUOTES}: a message was not delivered, {self._failed}; see Kafka's log")
        if left:
            raise StoreError(
                f"{FEATURES} and {QUOTES}: {left} messages not acknowledged after "
                f"{time.monotonic() - began:.0f} s; see that Kafka runs"
            )


@contextmanager
def _lost_if_fatal() -> Iterator[None]:
    try:
        with lost_if_fatal():
            yield
    except ClientLost as lost:
        raise ProducerLost(str(lost)) from lost


def _first_new(part: Part, sessions: np.ndarray, causes: np.ndarray, held: Held) -> int:
    """Index of the first row that the table doesn't hold."""
    if not held or not len(causes):
        return 0
    known = np.array([held.get((session, part.product_id), -1) for session in part.sessions], np.int64)
    new = causes > known[sessions]
    return int(new.argmax()) if new.any() else len(causes)
