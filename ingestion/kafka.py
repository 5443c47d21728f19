"""Settings of Kafka's clients, the same for all of ours, and what to do about their errors.

The clients are confluent-kafka's (librdkafka), which speak to Apache Kafka and to the embedded broker alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from feature_repo.errors import StoreError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, Producer

Answer = TypeVar("Answer")

REPEAT_S: Final = 10.0
"""Least time between two lines of the log about the same kind of error: an outage would fill it otherwise."""
SHORT_FETCH_MS: Final = 2
"""What a fetch waits for the first message at most, where the broker answers only then."""
ANSWER_S: Final = 10.0
"""How long one answer of a broker may take."""
_AGAIN_S: Final = 0.1
_PASSING: Final = frozenset(
    {
        "_TRANSPORT",
        "_ALL_BROKERS_DOWN",
        "_TIMED_OUT",
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "NOT_COORDINATOR",
        "_WAIT_COORD",
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
    }
)
"""Answers of a broker that is gone for a while, or still finds out who leads what."""


class ClientLost(StoreError):
    """A client that can't go on; another one can."""


class _Log:
    """What a client writes about its work goes to our log; it wants an object with ``log(level, format, …)``."""

    def log(self, level: int, text: str, *values: object) -> None:
        # a lost connection is the error callback's to tell; the client itself writes at each of its attempts
        logger = structlog.get_logger("kafka")
        (logger.error if level >= logging.CRITICAL else logger.debug)("kafka client", said=text % values)


class _Errors:
    """Hear what a client can mend by itself, each kind once in `REPEAT_S`.

    What it can't, the poll, consume or flush that hears it raises as `KafkaException`; see `lost_if_fatal`.
    """

    def __init__(self) -> None:
        self._told: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._told.get(error.code(), -REPEAT_S) >= REPEAT_S:
            self._told[error.code()] = now
            structlog.get_logger("kafka").warning("kafka", error=error.str(), code=error.name())


def raise_if_fatal(error: KafkaError) -> None:
    """Raise what no client can mend by itself.

    Raises
    ------
    ClientLost
        If the client that had this error can't go on, such as one whose static id another process has taken.
    """
    if error.fatal() or error.code() == error._FATAL:  # noqa: SLF001  (a public constant in spite of its name)
        raise ClientLost(
            f"a Kafka client can't go on: {error.str()}. If it was fenced, another process runs under the same static "
            "id (--instance-id): give each worker its own"
        )


@contextmanager
def lost_if_fatal() -> Iterator[None]:
    """Within it, raise as `ClientLost` what no client can mend by itself."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as failure:
        raise_if_fatal(failure.args[0])
        raise


def common(servers: str | None) -> dict[str, Any]:
    """Return what all clients share; None means ``VOLSPIKE_KAFKA_SERVERS``, StoreError where that is empty."""
    from infra.settings import settings

    servers = settings().kafka_servers if servers is None else servers
    if not servers:
        raise StoreError(
            "VOLSPIKE_KAFKA_SERVERS is empty: set it to host:port, or run this under a command that starts the "
            "embedded broker"
        )
    return {
        "bootstrap.servers": servers,
        "error_cb": _Errors(),
        "logger": _Log(),
        "socket.nagle.disable": True,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,  # the default, 10 s, would outlast the outage itself
        "log.connection.close": False,
    }


def producer(servers: str | None = None, **overrides: Any) -> Producer:
    """Make a producer that loses and doubles nothing while it lives: idempotent, acknowledged by all replicas.

    Parameters
    ----------
    servers
        Bootstrap servers; None means the setting ``VOLSPIKE_KAFKA_SERVERS``.
    overrides
        Settings of librdkafka, ``_`` for ``.``.

    Raises
    ------
    StoreError
        If no server is known. An unreachable one shows in `ping` or in the delivery reports.
    """
    from confluent_kafka import Producer

    return Producer(
        {
            **common(servers),
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "zstd",
            "partitioner": "murmur2",  # Java's default, which partition_of computes too; librdkafka's is another
            "linger.ms": 5,
            "batch.size": 512_000,
            **_dotted(overrides),
        }
    )


def consumer(group: str, servers: str | None = None, *, instance: str | None = None, **overrides: Any) -> Consumer:
    """Make a member of a consumer group; it commits only what it is told to.

    Parameters
    ----------
    group
        Consumer group.
    servers
        Bootstrap servers; None means the setting ``VOLSPIKE_KAFKA_SERVERS``.
    instance
        Static id of the member: one that comes back under it within the session timeout gets its partitions again
        without a rebalance. The second of two members with one id stops the first (a fatal error, FENCED_INSTANCE_ID).
    overrides
        Settings of librdkafka, ``_`` for ``.``.

    Raises
    ------
    StoreError
        If no server is known.
    """
    from confluent_kafka import Consumer

    static = {"group.instance.id": instance} if instance else {}
    return Consumer(
        {
            **common(servers),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": SHORT_FETCH_MS,
            "fetch.error.backoff.ms": 50,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
            "partition.assignment.strategy": "cooperative-sticky",
            "queued.max.messages.kbytes": 8_192,  # a partition: bounds the memory of a member that falls behind
            "fetch.queue.backoff.ms": 10,  # what a full queue waits; the default, 1 s, is longer than draining it takes
            **static,
            **_dotted(overrides),
        }
    )


def batch(reader: Consumer, most: int, timeout_s: float) -> list[Message]:
    """Read the messages that are there, or wait for the first.

    Parameters
    ----------
    most
        Longest list.
    timeout_s
        Longest wait for it to fill.

    Returns
    -------
    list
        Messages without an error; empty where none came. What the client can mend by itself is logged.

    Raises
    ------
    ClientLost
        If the client can't go on, such as one whose static id another process has taken.
    """
    with lost_if_fatal():
        found = reader.consume(most, timeout_s)
    kept = [message for message in found if message.error() is None]
    if len(kept) < len(found):
        for error in (message.error() for message in found):
            if error is not None:
                raise_if_fatal(error)
                structlog.get_logger("kafka").warning("kafka", error=error.str(), code=error.name())
    return kept


def patiently(ask: Callable[[float], Answer], limit_s: float, stop: Callable[[], bool] = lambda: False) -> Answer:
    """Ask a broker, and again while it is gone, or says that it is about to know, as one does that has just started.

    Parameters
    ----------
    ask
        The question; given how many seconds the answer may take.
    limit_s
        Seconds after which the last answer holds.
    stop
        Looked at between answers: the last one holds then too.

    Raises
    ------
    StoreError
        If the broker doesn't answer in time, or refuses; `ClientLost` where it is the client that can't go on.
    """
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + limit_s
    while True:
        try:
            return ask(min(ANSWER_S, max(_AGAIN_S, deadline - time.monotonic())))
        except KafkaException as failure:
            error = failure.args[0]
            raise_if_fatal(error)
            if error.name() not in _PASSING or time.monotonic() >= deadline or stop():
                told = f"Kafka doesn't answer: {error.str()}; check that it is well, and start again"
                raise StoreError(told) from failure
            time.sleep(_AGAIN_S)


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", ".") if not name.endswith("_cb") else name: value for name, value in overrides.items()}
