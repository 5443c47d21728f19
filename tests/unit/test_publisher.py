"""Rows on their way to the topics: gathered, sent once due, and never forgotten over a failure."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from ingestion.featurize import publisher
from ingestion.featurize.publisher import Publisher
from ingestion.kafka import ClientLost
from ingestion.kernel import Part
from ingestion.kernel.rows import joined
from ingestion.kernel.step import R_CAUSE, R_N
from ingestion.topics import FEATURES, QUOTES


def part(n: int, product: str = "BTC-USD", sessions: list[str] | None = None) -> Part:
    ints = np.zeros((8, 1), np.int64)
    ints[R_N] = ints[R_CAUSE] = n
    return Part(
        product, sessions or SESSIONS, ints, np.full((146, 1), float(n)), np.zeros((7, 0), np.int64), np.zeros((4, 0))
    )


SESSIONS = ["a" * 16]


class _Producer:
    """Takes messages until it fails."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.fails = False
        self.told: Any = None

    def produce(self, topic: str, value: bytes, key: bytes, **rest: Any) -> None:
        if self.fails:
            raise KafkaException(KafkaError(KafkaError._FATAL, "fenced", fatal=True))
        self.sent.append((key.decode(), value))
        self.told = rest["on_delivery"]

    def poll(self, timeout_s: float) -> int:
        return 0

    def flush(self, timeout_s: float) -> int:
        return 0


def made() -> tuple[Publisher, _Producer]:
    producer = _Producer()
    return Publisher(producer, {FEATURES: 1, QUOTES: 1}), producer


def test_rows_of_a_product_go_together_and_in_order() -> None:
    sender, producer = made()
    assert sender.due_at == math.inf
    began = time.monotonic()
    for n in range(1, 4):
        sender.gather([part(n), part(10 + n, "ETH-USD")])
    assert began + publisher.GATHER_S <= sender.due_at <= time.monotonic() + publisher.GATHER_S
    sender.send({}, {})
    assert sender.due_at == math.inf and sender.counts["rows_published"] == 6
    assert [key for key, _ in producer.sent] == ["BTC-USD", "ETH-USD"]
    assert [np.frombuffer(value[:8], "<i8")[0] for _, value in producer.sent] == [1, 11]


def test_many_rows_are_due_at_once() -> None:
    sender, _ = made()
    sender.gather([part(n) for n in range(publisher.GATHER_ROWS)])
    assert sender.due_at <= time.monotonic()


def test_rows_that_a_table_holds_were_sent_before() -> None:
    sender, _ = made()
    sender.gather([part(n) for n in range(1, 6)])
    sender.send({(SESSIONS[0], "BTC-USD"): 3}, {})
    assert sender.counts["rows_published"] == 2


def test_what_a_failure_interrupts_is_sent_again() -> None:
    sender, producer = made()
    producer.fails = True
    sender.gather([part(1)])
    for _ in range(2):
        with pytest.raises(ClientLost, match="fenced"):
            sender.send({}, {})
    producer.fails = False
    sender.send({}, {})
    assert len(producer.sent) == 1 and sender.due_at == math.inf


def test_a_message_that_was_given_up_ends_each_commit() -> None:
    """Its rows would be in the tables and never in the topic; made again from the log, they are in both."""
    sender, producer = made()
    sender.gather([part(1)])
    sender.send({}, {})
    producer.told(KafkaError(KafkaError._MSG_TIMED_OUT), None)
    for _ in range(2):
        with pytest.raises(ClientLost, match="not delivered"):
            sender.flush()


def test_parts_of_two_lists_of_sessions_stay_apart() -> None:
    other = ["b" * 16]
    found = joined([part(1), part(2, sessions=other), part(3), part(4, "ETH-USD"), part(5, sessions=other)])
    assert [(p.product_id, p.sessions[0][0], p.ints[R_N].tolist()) for p in found] == [
        ("BTC-USD", "a", [1, 3]),
        ("BTC-USD", "b", [2, 5]),
        ("ETH-USD", "a", [4]),
    ]
