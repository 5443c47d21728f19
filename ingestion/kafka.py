"""Settings of Kafka's clients, the same for all of ours, and topics made and checked.

The clients are confluent-kafka's (librdkafka), which speak to Apache Kafka and to the embedded broker alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from feature_repo.errors import StoreError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, Producer

Answer = TypeVar("Answer")

LIMIT_S: Final = 8.0
"""Bound on the first answer of a broker: whoever mistyped an address reads so within ten seconds."""
REPEAT_S: Final = 10.0
"""Least time between two lines of the log about the same kind of error: an outage would fill it otherwise."""
SHORTEST_SESSION_MS: Final = 2500
"""A member is given up after five heartbeats that didn't come; fewer, and a busy machine looks like a dead one."""
SHORT_FETCH_MS: Final = 2
LONG_FETCH_MS: Final = 100
"""What a fetch waits for the first message at most."""
_AGAIN_S: Final = 0.1
_PASSING: Final = frozenset(
    {
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "NOT_COORDINATOR",
        "_WAIT_COORD",
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
    }
)
"""Answers of a broker that still finds out who leads what."""
_UNKNOWN_TOPIC: Final = 3
"""UNKNOWN_TOPIC_OR_PARTITION of Kafka's protocol: metadata of a topic that isn't there."""
_EXISTS: Final = 36
"""TOPIC_ALREADY_EXISTS of Kafka's protocol: somebody else made it meanwhile."""

_EMBEDDED: Final = "mockCluster"
"""How librdkafka's broker for tests begins its cluster id."""


class ClientLost(StoreError):
    """A client that can't go on; another one can."""


class _Log:
    """What a client writes about its work goes to our log; it wants an object with ``log(level, format, …)``."""

    def log(self, level: int, text: str, *values: object) -> None:
        # a lost connection is the error callback's to tell; the client itself writes at each of its attempts
        logger = structlog.get_logger("kafka")
        (logger.error if level >= logging.CRITICAL else logger.debug)("kafka client", said=text % values)


class _Errors:
    """Hear what a client can mend by itself, each kind once in `REPEAT_S`; raise what it can't.

    What is raised here comes out of the poll, consume or flush that hears it.
    """

    def __init__(self) -> None:
        self._told: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        raise_if_fatal(error)
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


def _common(servers: str | None) -> dict[str, Any]:
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
            **_common(servers),
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
            **_common(servers),
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
    found = reader.consume(most, timeout_s)
    kept = [message for message in found if message.error() is None]
    if len(kept) < len(found):
        for error in (message.error() for message in found):
            if error is not None:
                raise_if_fatal(error)
                structlog.get_logger("kafka").warning("kafka", error=error.str(), code=error.name())
    return kept


def patiently(ask: Callable[[float], Answer], limit_s: float) -> Answer:
    """Ask a broker, and again while it says that it is about to know: as one does that has just started.

    Parameters
    ----------
    ask
        The question; given how many seconds are left for the answer.
    limit_s
        Seconds after which the last answer holds.

    Raises
    ------
    StoreError
        If the broker doesn't answer in time, or refuses; `ClientLost` where it is the client that can't go on.
    """
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + limit_s
    while True:
        try:
            return ask(max(_AGAIN_S, deadline - time.monotonic()))
        except KafkaException as failure:
            error = failure.args[0]
            raise_if_fatal(error)
            if error.name() not in _PASSING or time.monotonic() >= deadline:
                told = f"Kafka doesn't answer: {error.str()}; check that it is well, and start again"
                raise StoreError(told) from failure
            time.sleep(_AGAIN_S)


def pace(servers: str) -> dict[str, int]:
    """Settings of a consumer that suit this broker: how soon a dead member's partitions move, how long a fetch waits.

    Brokers refuse less than their ``group.min.session.timeout.ms``, by default 6 s; ours allow less. The embedded one
    moreover waits a session less one second at each rebalance, however it came. A real one answers a waiting fetch as
    soon as there is a message, so it may wait long; the embedded one answers only when the time is over.

    Raises
    ------
    StoreError
        If the broker doesn't answer.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource

    client = _admin(servers)
    try:
        cluster = client.list_topics(timeout=LIMIT_S)
        if cluster.cluster_id.startswith(_EMBEDDED):
            return {"session_timeout_ms": SHORTEST_SESSION_MS, "fetch_wait_max_ms": SHORT_FETCH_MS}
        broker = ConfigResource(ConfigResource.Type.BROKER, str(min(cluster.brokers)))
        settings = client.describe_configs([broker], request_timeout=LIMIT_S)[broker].result()
    except KafkaException as error:
        raise StoreError(
            f"Kafka at {servers} (VOLSPIKE_KAFKA_SERVERS) doesn't tell its settings: {error.args[0].str()}. It must "
            "allow DescribeConfigs, or give the consumer a session_timeout_ms of its own"
        ) from error
    shortest = max(SHORTEST_SESSION_MS, int(settings["group.min.session.timeout.ms"].value))
    return {"session_timeout_ms": shortest, "fetch_wait_max_ms": LONG_FETCH_MS}


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", ".") if not name.endswith("_cb") else name: value for name, value in overrides.items()}


def ping(servers: str, timeout_s: float = LIMIT_S) -> None:
    """Check that a broker answers.

    Raises
    ------
    StoreError
        If none of ``servers`` does within ``timeout_s``.
    """
    _metadata(_admin(servers), servers, timeout_s)


def require_topics(servers: str, names: Sequence[str], partitions: int) -> dict[str, int]:
    """Have these topics, made with ``partitions`` partitions where they are missing.

    Parameters
    ----------
    servers
        Bootstrap servers.
    names
        Topics.
    partitions
        Least number of partitions of each.

    Returns
    -------
    dict
        Number of partitions of each, which can be more.

    Raises
    ------
    StoreError
        If no broker answers within 10 s, a topic has fewer partitions, or can't be made.
    """
    client = _admin(servers)
    there = _metadata(client, servers, LIMIT_S)
    missing = [name for name in names if name not in there]
    if missing:
        _make(client, servers, missing, partitions)
        there = _once_known(client, servers, missing)
    for name in names:
        if there[name] < partitions:
            raise StoreError(
                f"topic {name} at {servers} has {there[name]} partitions, at least {partitions} (VOLSPIKE_PARTITIONS) "
                f"are needed: set VOLSPIKE_PARTITIONS to {there[name]}, or delete the topic and it is made anew "
                "(partitions added later would move products between them)"
            )
    return {name: there[name] for name in names}


def cluster_id(servers: str) -> str:
    """Return what tells this cluster from all others, and from one that stood at the same address before.

    Raises
    ------
    StoreError
        If no broker answers within 10 s.
    """
    client = _admin(servers)
    _metadata(client, servers, LIMIT_S)
    return str(client.list_topics(timeout=LIMIT_S).cluster_id)


def _once_known(client: Any, servers: str, names: Sequence[str]) -> dict[str, int]:
    """Wait until new topics show in the metadata: a broker acknowledges them a little earlier."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        there = _metadata(client, servers, LIMIT_S)
        if all(name in there for name in names):
            return there
        time.sleep(0.02)
    raise StoreError(f"topics {', '.join(names)} were made at {servers}, but don't show there: see the broker's log")


def _admin(servers: str) -> Any:
    from confluent_kafka.admin import AdminClient

    quiet = {"log_level": 0, "error_cb": lambda error: None}  # what went wrong is raised, once
    return AdminClient({**_common(servers), **quiet})


def _metadata(client: Any, servers: str, timeout_s: float) -> dict[str, int]:
    """Topics and their partitions."""
    from confluent_kafka import KafkaException

    try:
        found = client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise StoreError(
            f"Kafka at {servers} (VOLSPIKE_KAFKA_SERVERS) doesn't answer: {error.args[0].str()}. Start it (make "
            "kafka), or unset the setting to use the embedded one"
        ) from error
    return {
        name: len(topic.partitions)
        for name, topic in found.topics.items()
        if topic.error is None or topic.error.code() != _UNKNOWN_TOPIC
    }


def _make(client: Any, servers: str, names: Sequence[str], partitions: int) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import NewTopic

    if client.list_topics(timeout=LIMIT_S).cluster_id.startswith(_EMBEDDED):
        for name in names:  # it has no call that makes topics; asked for one by name it makes it, with 4 partitions
            client.list_topics(topic=name, timeout=LIMIT_S)
        return
    replicas = -1  # the broker's own default
    made = client.create_topics([NewTopic(name, partitions, replicas) for name in names], request_timeout=LIMIT_S)
    for name, future in made.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() == _EXISTS:
                continue
            raise StoreError(
                f"topic {name} is missing at {servers} and can't be made there: {error.args[0].str()}. Make it with "
                f"{partitions} partitions"
            ) from error
