"""What is measured of a stretch of the raw log, against logs whose faults are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest

from ingestion.feed.inbox import Opened, Received
from ingestion.feed.watch import Watch, read_head
from ingestion.market import generate
from ingestion.stretch import Stretch
from ingestion.topics import Envelope, partition_of

CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
PARTITIONS = 4


@lru_cache
def market(seconds: int = 40) -> list[Received]:
    return [Received(recv_ns, raw) for recv_ns, _, raw in generate(seed=3, seconds=seconds)]


def log_of(received: Sequence[Received], session: str = "00f1a2b3c4d5e6f7") -> list[Envelope]:
    watch = Watch(Opened(session, received[0].recv_ns, "exchange", PRODUCTS, CHANNELS))
    log = watch.begin()
    for at in range(0, len(received), 50):
        log += watch.take(received[at : at + 50])
    return log


def measure(log: Sequence[Envelope], batch: int = 100) -> Stretch:
    """Spread a log over partitions as the outbox does, and measure it as it would be read."""
    stretch = Stretch(PARTITIONS)
    for partition in range(PARTITIONS):
        own = [e for e in log if not e.product_id or partition_of(e.product_id, PARTITIONS) == partition]
        for at in range(0, len(own), batch):
            stretch.take(partition, own[at : at + batch])
    return stretch


def of(product: str, received: Sequence[Received]) -> list[Received]:
    return [m for m in received if read_head(m.raw).product == product]


def test_a_clean_log_has_nothing_wrong_and_every_message_once() -> None:
    received = market()
    stretch = measure(log_of(received))
    assert stretch.messages == len(received)
    assert stretch.missing() == stretch.repeated == 0
    assert not stretch.errors
    assert stretch.sessions == 1
    for name in PRODUCTS:
        product = stretch.products[name]
        own = of(name, received)
        assert product.messages == len(own)
        assert product.types["match"] == sum(b'"match"' in m.raw for m in own)
        assert product.seconds == pytest.approx((own[-1].recv_ns - own[0].recv_ns) / 1e9)
        assert not +product.gaps
        share = product.beat_share()
        assert share is not None and share > 0.95
    assert stretch.general == {"subscriptions": 1}


def test_a_heartbeat_each_other_second_covers_three_quarters_of_the_time() -> None:
    beats = 0
    kept = []
    for m in market():
        if b'"heartbeat"' in m.raw[:60] and b"ETH-USD" in m.raw:
            beats += 1
            if beats % 2:
                continue
        kept.append(m)
    share = measure(log_of(kept)).products["ETH-USD"].beat_share()
    assert share == pytest.approx(0.75, abs=0.03)


def test_a_gap_is_counted_with_its_reason_and_its_length() -> None:
    received = market()
    start = received[0].recv_ns
    kept = [m for m in received if not (read_head(m.raw).product == "BTC-USD" and 10e9 < m.recv_ns - start < 18e9)]
    stretch = measure(log_of(kept))
    product = stretch.products["BTC-USD"]
    assert sum(product.gaps.values()) == 1
    assert product.quiet_ns == pytest.approx(8e9, abs=1.2e9)
    assert product.gap_since_ns is not None  # no snapshot came, so it is open still
    watermark = stretch.watermark_ns("BTC-USD")
    assert watermark is not None
    assert (watermark - product.gap_since_ns) / 1e9 == pytest.approx(30, abs=2)
    assert not +stretch.products["ETH-USD"].gaps


def test_a_reconnect_is_a_gap_of_each_product() -> None:
    received = market()
    half = len(received) // 2
    again = [m for m in market() if b'"snapshot"' in m.raw]
    second = [Received(received[half].recv_ns + 2_000_000_000, m.raw) for m in again]
    late = [m for m in received[half:] if m.recv_ns > received[half].recv_ns + 2_000_000_000]
    stretch = measure(log_of(received[:half]) + log_of(second + late, "f" * 16))
    assert stretch.sessions == 2
    for name in PRODUCTS:
        assert stretch.products[name].gaps["session"] == 1
        assert 0 < stretch.products[name].gap_ns < 4e9


def test_messages_that_can_t_be_read_are_counted_once_whatever_partition() -> None:
    received = market()
    bad = [Received(received[500].recv_ns, raw) for raw in (b"{", b'{"type":"ticker","product_id":"BTC-USD"}', b"\xff")]
    stretch = measure(log_of(received[:500] + bad + received[500:]))
    assert sum(stretch.errors.values()) == 3
    assert stretch.messages == len(received) + 3


def test_missing_and_repeated_numbers_are_found() -> None:
    log = log_of(market())
    own = [e for e in log if e.product_id == "SOL-USD"]
    gone = {own[40].n, own[41].n}
    stretch = measure([e for e in log if e.n not in gone])
    assert stretch.missing() == 2
    twice = Stretch(1)
    twice.take(0, log)
    twice.take(0, log[-30:])
    assert twice.repeated == 30
    assert twice.messages == len(market())


def test_a_reader_that_enters_in_the_middle_misses_nothing() -> None:
    log = log_of(market())
    stretch = measure(log[len(log) // 2 :])
    assert stretch.missing() == 0
    assert stretch.messages > 100


def test_a_stretch_without_anything_is_empty() -> None:
    stretch = Stretch(PARTITIONS)
    assert (stretch.messages, stretch.missing(), stretch.sessions) == (0, 0, 0)
