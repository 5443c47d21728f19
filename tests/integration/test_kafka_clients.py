"""What our Kafka clients promise, on the embedded broker and on Apache Kafka alike."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from feature_repo.errors import StoreError
from ingestion import cluster, kafka, topics
from ingestion.topics import Envelope

Until = Callable[..., bool]
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD", "DOGE-USD", "1INCH-USDT", "A", "ÄÖ-EUR", "")


@pytest.fixture
def topic(kafka_broker: str) -> str:
    """A new topic of 4 partitions."""
    name = f"test.{uuid.uuid4().hex[:12]}"
    assert cluster.require_topics(kafka_broker, [name], 4) == {name: 4}
    return name


def drain(servers: str, topic: str, count: int, until: Until) -> list[Any]:
    """The first ``count`` messages of a topic, whatever their partition."""
    found: list[Any] = []
    reader = kafka.consumer(f"g-{uuid.uuid4().hex[:8]}", servers)
    reader.assign([TopicPartition(topic, p, 0) for p in range(4)])

    def enough() -> bool:
        found.extend(kafka.batch(reader, 500, 0.1))
        return len(found) >= count

    assert until(enough, 15), f"{len(found)} of {count} messages came"
    reader.close()
    return found


def test_an_envelope_comes_back_as_it_was_sent(kafka_broker: str, topic: str, until: Until) -> None:
    raw = b'{"type":"ticker","price":"1.5","note":"\xc3\xa9"}'
    sent = [Envelope("00f1a2b3c4d5e6f7", n, n * 1_000_000, p, "feed", "exchange", raw) for n, p in enumerate(PRODUCTS)]
    writer = kafka.producer(kafka_broker)
    for e in sent:
        writer.produce(topic, key=e.product_id.encode(), value=e.raw, headers=topics.headers(e))
    assert writer.flush(10) == 0
    back = [topics.read(m.key(), m.value(), m.headers()) for m in drain(kafka_broker, topic, len(sent), until)]
    assert sorted(e.n for e, _, _ in back) == list(range(len(sent)))
    assert {e for e, part, parts in back if (part, parts) == (0, 1)} == set(sent)


def test_the_producer_chooses_the_partition_that_partition_of_says(kafka_broker: str, topic: str, until: Until) -> None:
    writer = kafka.producer(kafka_broker)
    chosen: dict[str, int] = {}
    for product in filter(None, PRODUCTS):  # without a key any partition is right

        def note(error: Any, message: Any, product: str = product) -> None:
            assert error is None
            chosen[product] = message.partition()

        writer.produce(topic, key=product.encode(), value=b"x", on_delivery=note)
    assert writer.flush(10) == 0
    assert chosen == {product: topics.partition_of(product, 4) for product in filter(None, PRODUCTS)}
    assert len(set(chosen.values())) > 1


def test_a_snapshot_of_six_megabytes_travels_in_order(kafka_broker: str, topic: str, until: Until) -> None:
    raw = bytes(range(256)) * 16_384  # 4 MiB: the embedded broker holds 5 a partition
    parts = topics.chunks(raw)
    e = Envelope("00f1a2b3c4d5e6f7", 1, 1_000, "BTC-USD", "feed", "advanced", raw)
    writer = kafka.producer(kafka_broker, compression_type="none")
    for i, part in enumerate(parts):
        writer.produce(topic, key=b"BTC-USD", value=part, headers=topics.headers(e, i, len(parts)))
    assert writer.flush(10) == 0
    back = [topics.read(m.key(), m.value(), m.headers()) for m in drain(kafka_broker, topic, len(parts), until)]
    assert [(i, n) for _, i, n in back] == [(i, len(parts)) for i in range(len(parts))]
    assert b"".join(envelope.raw for envelope, _, _ in back) == raw


def test_two_members_share_and_the_one_that_stays_takes_all(kafka_broker: str, topic: str, until: Until) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    quick = cluster.pace(kafka_broker)
    one = kafka.consumer(group, kafka_broker, **quick)
    one.subscribe([topic])
    assert until(lambda: one.poll(0.05) is None and len(one.assignment()) == 4, 20)
    two = kafka.consumer(group, kafka_broker, **quick)
    two.subscribe([topic])

    def shared() -> bool:
        one.poll(0.05)
        two.poll(0.05)
        return len(one.assignment()) == len(two.assignment()) == 2

    assert until(shared, 20)
    mine, yours = ({p.partition for p in c.assignment()} for c in (one, two))
    assert mine | yours == {0, 1, 2, 3}
    two.close()
    assert until(lambda: one.poll(0.05) is None and len(one.assignment()) == 4, 20)
    one.close()


def test_nothing_is_committed_unasked_and_metadata_of_a_commit_comes_back(
    kafka_broker: str, topic: str, until: Until
) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    writer = kafka.producer(kafka_broker)
    for i in range(3):
        writer.produce(topic, key=b"BTC-USD", value=b"%d" % i)
    assert writer.flush(10) == 0
    at = TopicPartition(topic, topics.partition_of("BTC-USD", 4))
    reader = kafka.consumer(group, kafka_broker)
    reader.subscribe([topic])
    seen: list[bytes] = []

    def three() -> bool:
        seen.extend(m.value() for m in kafka.batch(reader, 10, 0.1))
        return len(seen) == 3

    assert until(three, 20)
    (before,) = reader.committed([at], timeout=5)
    assert before.offset < 0
    reader.commit(offsets=[TopicPartition(topic, at.partition, 2, "rewind=0")], asynchronous=False)
    reader.close()
    again = kafka.consumer(group, kafka_broker)
    (after,) = again.committed([at], timeout=5)
    assert (after.offset, after.metadata) == (2, "rewind=0")
    again.close()


def test_a_topic_with_too_few_partitions_is_named_with_the_setting(kafka_broker: str, topic: str) -> None:
    with pytest.raises(StoreError, match=rf"{topic} .* has 4 partitions, at least 9 \(VOLSPIKE_PARTITIONS\)"):
        cluster.require_topics(kafka_broker, [topic], 9)


def test_more_partitions_than_asked_are_told(kafka_broker: str, topic: str) -> None:
    assert cluster.require_topics(kafka_broker, [topic], 2) == {topic: 4}
