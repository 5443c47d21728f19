"""What a broker is asked before the work: whether it answers, which it is, its topics, the pace that it allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from feature_repo.errors import StoreError
from ingestion import kafka

LIMIT_S: Final = 6.0
"""Bound on the first answer of a broker: whoever mistyped an address reads so within ten seconds."""
SHORTEST_SESSION_MS: Final = 2500
"""A member is given up after five heartbeats that didn't come; fewer, and a busy machine looks like a dead one."""
LONG_FETCH_MS: Final = 100
"""The same where the broker answers as soon as there is one."""
_UNKNOWN_TOPIC: Final = 3
"""UNKNOWN_TOPIC_OR_PARTITION of Kafka's protocol: metadata of a topic that isn't there."""
_EXISTS: Final = 36
"""TOPIC_ALREADY_EXISTS of Kafka's protocol: somebody else made it meanwhile."""

_EMBEDDED: Final = "mockCluster"
"""How librdkafka's broker for tests begins its cluster id."""


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
        If no broker answers within ``LIMIT_S``, a topic has fewer partitions, or can't be made.
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
            return {"session_timeout_ms": SHORTEST_SESSION_MS, "fetch_wait_max_ms": kafka.SHORT_FETCH_MS}
        broker = ConfigResource(ConfigResource.Type.BROKER, str(min(cluster.brokers)))
        settings = client.describe_configs([broker], request_timeout=LIMIT_S)[broker].result()
    except KafkaException as error:
        raise StoreError(
            f"Kafka at {servers} (VOLSPIKE_KAFKA_SERVERS) doesn't tell its settings: {error.args[0].str()}. It must "
            "allow DescribeConfigs, or give the consumer a session_timeout_ms of its own"
        ) from error
    shortest = max(SHORTEST_SESSION_MS, int(settings["group.min.session.timeout.ms"].value))
    return {"session_timeout_ms": shortest, "fetch_wait_max_ms": LONG_FETCH_MS}


def cluster_id(servers: str) -> str:
    """Return what tells this cluster from all others, and from one that stood at the same address before.

    Raises
    ------
    StoreError
        If no broker answers within ``LIMIT_S``.
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
    return AdminClient({**kafka.common(servers), **quiet})


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
