"""A stretch of the stream measured against what a healthy one shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from feature_repo.contract import SILENCE_HEARTBEAT_NS, SILENCE_NS
from feature_repo.errors import InputError, StoreError, UsageError
from infra.settings import settings
from ingestion import cluster, kafka
from ingestion.stretch import Product, Stretch
from ingestion.topics import Envelope, read

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

WAIT_S: Final = 8.0
"""How long messages are awaited where the topic holds fewer than are asked for."""
ERROR_SHARE: Final = 0.05
"""Most messages of a healthy stream that can't be read."""
BEAT_SHARE: Final = 0.9
"""Least share of the time with a recent heartbeat where they are subscribed."""
GAP_SHARE: Final = 0.05
"""Most of the time that may lie inside gaps."""
_MOST: Final = 2000
_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One figure and its bound; ``holds`` is None where too little was seen to tell."""

    name: str
    value: float | None
    op: Literal[">=", "<="]
    bound: float
    holds: bool | None


@dataclass(slots=True)
class Findings:
    """What a stretch showed.

    Attributes
    ----------
    topic, seconds
        What was read, and for how long.
    stretch
        The figures.
    checks
        The verdicts.
    ages
        Seconds since each product's last message, at the end.
    """

    topic: str
    seconds: float
    stretch: Stretch
    checks: list[Check] = field(default_factory=list)
    ages: dict[str, float] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether no bound was broken."""
        return all(check.holds is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for ``--json``."""
        s = self.stretch
        return {
            "topic": self.topic,
            "seconds": round(self.seconds, 3),
            "messages": s.messages,
            "sessions": s.sessions,
            "repeated": s.repeated,
            "records": dict(s.records),
            "errors": dict(s.errors),
            "of_no_product": dict(s.general),
            "products": {name: self._product(name, p) for name, p in sorted(s.products.items())},
            "checks": [
                {"check": c.name, "value": c.value, "op": c.op, "bound": c.bound, "holds": c.holds} for c in self.checks
            ],
            "healthy": self.healthy,
        }

    def _product(self, name: str, p: Product) -> dict[str, Any]:
        per_s = {kind: round(n / p.seconds, 2) if p.seconds else None for kind, n in p.types.most_common()}
        return {
            "messages": p.messages,
            "seconds": round(p.seconds, 3),
            "by_type": dict(p.types.most_common()),
            "per_s": per_s,
            "heartbeat_share": None if (share := p.beat_share()) is None else round(share, 4),
            "gaps": {reason: n for reason, n in p.gaps.items() if n},
            "gap_s": round(p.gap_ns / _S, 3),
            "gap_open": p.gap_since_ns is not None,
            "longest_quiet_s": round(p.quiet_ns / _S, 3),
            "age_s": round(self.ages[name], 3) if name in self.ages else None,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """What to read, and what is asked of it.

    Attributes
    ----------
    least
        Messages of the exchange at least.
    duration_s
        Read what comes in this time; None for what the topic holds.
    max_messages
        Stop after this many.
    staleness
        Whether each product must be fresh at the end.
    """

    least: int = 100
    duration_s: float | None = None
    max_messages: int | None = None
    staleness: bool = False


def validate(servers: str, topic: str, limits: Limits, *, progress: Callable[[int], None] = lambda _: None) -> Findings:
    """Read a stretch of a topic of the raw log and judge it.

    Without a duration that is what the topic holds, and where it holds too little, what comes within ``WAIT_S``; with
    one it is what comes in that time.

    Parameters
    ----------
    servers
        Kafka's bootstrap servers.
    topic
        Topic of the raw log.
    limits
        What to read, and what is asked of it.
    progress
        Told the messages read so far.

    Returns
    -------
    Findings

    Raises
    ------
    StoreError
        If the broker doesn't answer, or the topic isn't there.
    UsageError
        If a limit makes no sense.
    """
    most, duration_s = limits.max_messages, limits.duration_s
    if limits.least < 0:
        raise UsageError(f"--min was {limits.least}, must be >= 0")
    if most is not None and most < 1:
        raise UsageError(f"--max-messages was {most}, must be >= 1")
    if duration_s is not None and not duration_s > 0:
        raise UsageError(f"--duration was {duration_s:g} s, must be > 0")
    reader = kafka.consumer("volspike-validate", servers)
    began = time.monotonic()
    try:
        source = _Source(reader, servers, topic, live=limits.duration_s is not None)
        stretch = Stretch(source.partitions)
        deadline = began + (WAIT_S if limits.duration_s is None else limits.duration_s)
        while time.monotonic() < deadline:
            if stretch.messages >= (limits.max_messages or float("inf")):
                break
            if limits.duration_s is None and source.caught_up and stretch.messages >= limits.least:
                break
            if limits.duration_s is None and not source.caught_up:
                deadline = time.monotonic() + WAIT_S
            source.read_into(stretch, _MOST, min(0.2, max(0.0, deadline - time.monotonic())))
            progress(stretch.messages)
    finally:
        reader.close()
    findings = Findings(topic, time.monotonic() - began, stretch)
    _judge(findings, limits)
    return findings


class _Source:
    """A topic's partitions, read without a group, chunks joined."""

    def __init__(self, reader: Consumer, servers: str, topic: str, *, live: bool) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        self._reader = reader
        try:
            there = reader.list_topics(topic, timeout=cluster.LIMIT_S).topics[topic].partitions
            self.partitions = len(there)
            ends = {p: reader.get_watermark_offsets(TopicPartition(topic, p), cluster.LIMIT_S) for p in there}
        except KafkaException as error:
            raise StoreError(
                f"Kafka at {servers} (VOLSPIKE_KAFKA_SERVERS) doesn't answer: {error.args[0].str()}. Start it (make "
                "kafka), or name one that runs"
            ) from error
        if not there:
            raise StoreError(
                f"topic {topic} isn't at {servers}: run volspike ingest first, or name another with --topic"
            )
        self._left = {p: high for p, (low, high) in ends.items() if not live and high > low}
        self._held: dict[int, list[Envelope]] = {p: [] for p in there}
        reader.assign([TopicPartition(topic, p, high if live else low) for p, (low, high) in ends.items()])

    @property
    def caught_up(self) -> bool:
        """Whether all that the topic held at the start was read."""
        return not self._left

    def read_into(self, stretch: Stretch, most: int, timeout_s: float) -> None:
        """Read up to ``most`` messages; wait for the first up to ``timeout_s``."""
        whole: dict[int, list[Envelope]] = {}
        for message in kafka.batch(self._reader, most, timeout_s):
            partition = message.partition() or 0
            if (message.offset() or 0) + 1 >= self._left.get(partition, 1 << 62):
                del self._left[partition]
            try:
                envelope = self._join(message, partition)
            except InputError:
                stretch.unreadable("no envelope")
                continue
            if envelope is not None:
                whole.setdefault(partition, []).append(envelope)
        for partition, envelopes in whole.items():
            stretch.take(partition, envelopes)

    def _join(self, message: Message, partition: int) -> Envelope | None:
        envelope, part, parts = read(message.key(), message.value(), message.headers())
        if parts == 1:
            return envelope
        held = self._held[partition]
        if part != len(held) or (held and held[0].n != envelope.n):
            held.clear()  # sent again from its first chunk, or the reading began inside it
        if part == len(held):
            held.append(envelope)
        if len(held) < parts:
            return None
        raw = b"".join(e.raw for e in held)
        held.clear()
        return envelope._replace(raw=raw)


def _judge(findings: Findings, limits: Limits) -> None:
    """Hold the figures against their bounds."""
    stretch, checks = findings.stretch, findings.checks

    def check(name: str, value: float | None, op: Literal[">=", "<="], bound: float) -> None:
        holds = None if value is None else (value >= bound if op == ">=" else value <= bound)
        checks.append(Check(name, None if value is None else round(value, 4), op, bound, holds))

    check("messages", stretch.messages, ">=", limits.least)
    errors = sum(stretch.errors.values())
    check("schema errors, share", errors / stretch.messages if stretch.messages else None, "<=", ERROR_SHARE)
    check("numbers missing", stretch.missing(), "<=", 0)
    stream = settings().clock == "stream"
    newest = max((p.last_ns for p in stretch.products.values()), default=0)
    now_ns = newest if stream else time.time_ns()
    for name, product in sorted(stretch.products.items()):
        if not product.messages:
            check(f"{name}: messages", 0, ">=", 1)
            continue
        check(f"{name}: time with a recent heartbeat, share", product.beat_share(), ">=", BEAT_SHARE)
        open_ns = 0
        watermark = stretch.watermark_ns(name)
        if product.gap_since_ns is not None and watermark is not None:
            open_ns = watermark - product.gap_since_ns
        share = (product.gap_ns + open_ns) / _S / product.seconds if product.seconds >= 1 else None
        check(f"{name}: time inside gaps, share", share, "<=", GAP_SHARE)
        age = (now_ns - product.last_ns) / _S
        findings.ages[name] = age
        if limits.staleness:
            limit = SILENCE_HEARTBEAT_NS if "heartbeat" in product.subscribed or product.beats else SILENCE_NS
            check(f"{name}: seconds since the last message", age, "<=", limit / _S)
    if limits.staleness and not stretch.products:
        check("products", 0, ">=", 1)
