"""The way to Kafka: order kept and nothing lost, whatever the broker and the disk do. The producer is a stub."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.feed.outbox import Outbox
from ingestion.feed.spill import Spill
from ingestion.topics import CHUNK_BYTES, Envelope, partition_of
from tests.stub_broker import PARTITIONS, Broker

SESSION = "00f1a2b3c4d5e6f7"


def envelope(n: int, product: str = "BTC-USD", session: str = SESSION, size: int = 50) -> Envelope:
    return Envelope(session, n, n * 1000, product, "feed", "exchange", b"%d" % n + b" " * size)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def make(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Outbox]]:
    made: list[Spill] = []

    def outbox(limit: int = 64 << 20, **options: Any) -> Outbox:
        made.append(Spill(tmp_path / "spill", limit, segment_bytes=2000))
        return Outbox(broker.connect, "ticks.raw", PARTITIONS, made[-1], **{"slow_s": 1e9, **options})

    yield outbox
    for spill in made:
        spill.close()


def kill(outbox: Outbox) -> None:
    """What a kill leaves: the files, and no lock."""
    outbox._spill.close()


def settle(outbox: Outbox, until: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + 10
    while (outbox.waiting or outbox.spilling or outbox.dropped) and not until():
        outbox.poll()
        assert time.monotonic() < deadline


def numbers(broker: Broker, product: str = "BTC-USD") -> list[int]:
    return [e.n for e in broker.envelopes(partition_of(product, PARTITIONS)) if e.product_id == product]


def test_products_go_to_their_partition_and_the_rest_to_all(broker: Broker, make: Callable[..., Outbox]) -> None:
    outbox = make()
    outbox.put([envelope(1, ""), envelope(2), envelope(3, "ETH-USD"), envelope(4, "")])
    settle(outbox)
    for partition in range(PARTITIONS):
        own = {2: "BTC-USD", 3: "ETH-USD"}
        expected = [1, *(n for n, p in own.items() if partition_of(p, PARTITIONS) == partition), 4]
        assert [e.n for e in broker.envelopes(partition)] == expected
    assert outbox.counters.acknowledged == 4


def test_a_long_message_travels_in_chunks_and_counts_once(broker: Broker, make: Callable[..., Outbox]) -> None:
    outbox = make()
    long = envelope(2, size=3 * CHUNK_BYTES)
    outbox.put([envelope(1), long, envelope(3)])
    settle(outbox)
    found = broker.envelopes(partition_of("BTC-USD", PARTITIONS))
    assert [e.n for e in found] == [1, 2, 3]
    assert found[1].raw == long.raw
    assert max(len(value) for _, value, _ in broker.log[partition_of("BTC-USD", PARTITIONS)]) <= CHUNK_BYTES
    assert outbox.counters.acknowledged == 3


def test_a_full_window_goes_on_on_disk_and_comes_back_in_order(
    broker: Broker, make: Callable[..., Outbox], tmp_path: Path
) -> None:
    outbox = make(max_messages=10)
    broker.up = False
    for n in range(1, 101):
        outbox.put([envelope(n)])
        outbox.poll()
    assert outbox.spilling
    assert outbox.waiting == 10
    broker.up = True
    settle(outbox)
    outbox.put([envelope(101)])
    settle(outbox)
    assert numbers(broker) == list(range(1, 102))
    assert not list((tmp_path / "spill").glob("*.spill"))


def test_what_is_old_and_unacknowledged_is_on_disk_before_a_kill(broker: Broker, make: Callable[..., Outbox]) -> None:
    outbox = make(slow_s=0.0)
    broker.up = False
    outbox.put([envelope(n) for n in range(1, 6)])
    outbox.poll()
    assert outbox.spilling
    kill(outbox)
    broker.up = True
    after = make()
    after.put([envelope(1, session="f" * 16)])
    settle(after)
    found = broker.envelopes(partition_of("BTC-USD", PARTITIONS))
    assert [(e.session[0], e.n) for e in found] == [("0", 1), ("0", 2), ("0", 3), ("0", 4), ("0", 5), ("f", 1)]


def test_acknowledgements_lost_with_a_process_double_nothing_for_readers(
    broker: Broker, make: Callable[..., Outbox]
) -> None:
    outbox = make(slow_s=0.0)
    broker.up = False
    outbox.put([envelope(n) for n in range(1, 11)])
    outbox.poll()
    broker.producers[-1].deliver(6, acknowledged=False)
    kill(outbox)
    broker.up = True
    settle(make())
    assert numbers(broker) == list(range(1, 11))
    assert len(broker.log[partition_of("BTC-USD", PARTITIONS)]) == 16


def test_a_dead_producer_is_replaced_and_everything_unacknowledged_sent_again(
    broker: Broker, make: Callable[..., Outbox]
) -> None:
    outbox = make()
    outbox.put([envelope(1), envelope(2)])
    settle(outbox)
    broker.up = False
    outbox.put([envelope(n) for n in range(3, 9)])
    broker.producers[-1].deliver(2, acknowledged=False)
    broker.producers[-1].fail()
    outbox.poll()
    outbox.put([envelope(9)])
    broker.up = True
    settle(outbox)
    assert numbers(broker) == list(range(1, 10))
    assert outbox.counters.producers == len(broker.producers) == 2


def test_reports_of_a_discarded_producer_are_not_believed(broker: Broker, make: Callable[..., Outbox]) -> None:
    outbox = make()
    broker.up = False
    outbox.put([envelope(1), envelope(2)])
    first = broker.producers[0]
    held = list(first._queue)
    first.fail()
    outbox.poll()
    for _, _, report in held:
        report(None, None)
    assert outbox.waiting == 2
    broker.up = True
    settle(outbox)
    assert numbers(broker) == [1, 2]


def test_the_end_leaves_in_the_spill_what_nobody_acknowledged(broker: Broker, make: Callable[..., Outbox]) -> None:
    outbox = make()
    broker.up = False
    outbox.put([envelope(n) for n in range(1, 8)])
    outbox.close(0.05)
    assert outbox.counters.left == 7
    broker.up = True
    after = make()
    settle(after)
    assert numbers(broker) == list(range(1, 8))


def test_the_end_with_a_healthy_broker_leaves_nothing(
    broker: Broker, make: Callable[..., Outbox], tmp_path: Path
) -> None:
    outbox = make()
    outbox.put([envelope(n) for n in range(1, 8)])
    outbox.close(5)
    assert outbox.counters.left == 0
    assert numbers(broker) == list(range(1, 8))
    assert not list((tmp_path / "spill").glob("*.spill"))


def test_broker_and_disk_gone_together_is_counted_and_told_as_a_gap_where_it_was(
    broker: Broker, make: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(max_messages=5)
    broker.up = False

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ingestion.feed.spill.os.write", full)
    monkeypatch.setattr("ingestion.feed.outbox.RETRY_S", 0.0)
    outbox.put([envelope(n) for n in range(1, 6)])
    outbox.put([envelope(6), envelope(7, "ETH-USD"), envelope(8), envelope(9, "SOL-USD"), envelope(10)])
    assert outbox.dropped.count == 5
    assert outbox.take_lost() == []
    monkeypatch.undo()
    broker.up = True
    outbox.put([envelope(11), envelope(12, "ETH-USD")])
    settle(outbox)
    found = {p: broker.envelopes(partition_of(p, PARTITIONS)) for p in ("BTC-USD", "ETH-USD", "SOL-USD")}
    btc = [(e.n, e.kind) for e in found["BTC-USD"] if e.product_id == "BTC-USD"]
    assert btc == [*((n, "feed") for n in range(1, 6)), (10, "state"), (11, "feed")]
    record = next(e for e in found["BTC-USD"] if e.n == 10)
    assert json.loads(record.raw) == {"type": "gap", "product_id": "BTC-USD", "reason": "dropped"}
    assert [(e.n, e.kind) for e in found["ETH-USD"] if e.product_id == "ETH-USD"] == [(7, "state"), (12, "feed")]
    assert [(e.n, e.kind) for e in found["SOL-USD"] if e.product_id == "SOL-USD"] == [(9, "state")]
    assert sorted(outbox.take_lost()) == ["BTC-USD", "ETH-USD", "SOL-USD"]
    assert outbox.dropped.count == 5


def test_a_full_disk_alone_loses_nothing(
    broker: Broker, make: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ingestion.feed.spill.os.write", full)
    outbox = make(slow_s=0.0)
    for n in range(1, 50):
        outbox.put([envelope(n)])
        outbox.poll()
    settle(outbox)
    assert numbers(broker) == list(range(1, 50))
    assert outbox.dropped.count == 0


def test_the_session_s_first_record_survives_being_dropped(
    broker: Broker, make: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(limit=0, max_messages=2)
    monkeypatch.setattr("ingestion.feed.outbox.RETRY_S", 0.0)
    broker.up = False
    outbox.put([envelope(n) for n in range(1, 3)])
    opening = Envelope("f" * 16, 1, 1000, "", "state", "exchange", b'{"type":"session"}')
    outbox.put([opening, *(envelope(n, session="f" * 16) for n in range(2, 6))])
    broker.up = True
    settle(outbox)
    outbox.put([envelope(6, session="f" * 16)])
    settle(outbox)
    found = [e for e in broker.envelopes(partition_of("BTC-USD", PARTITIONS)) if e.session[0] == "f"]
    assert [(e.n, e.kind) for e in found] == [(1, "state"), (5, "state"), (6, "feed")]
    assert found[0].raw == opening.raw


def test_the_limit_of_the_spill_bounds_the_disk(
    broker: Broker, make: Callable[..., Outbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.feed.outbox.RETRY_S", 0.0)
    outbox = make(limit=20_000, max_messages=3)
    broker.up = False
    for n in range(1, 1001):
        outbox.put([envelope(n)])
        outbox.poll()
    assert sum(p.stat().st_size for p in (tmp_path / "spill").glob("*.spill")) <= 20_000
    assert outbox.dropped.count > 500
    broker.up = True
    settle(outbox)
    found = numbers(broker)
    assert found == sorted(found)
    assert found[-1] == 1000
    kept = [e for e in broker.envelopes(partition_of("BTC-USD", PARTITIONS)) if e.kind == "feed"]
    assert len(kept) + outbox.dropped.count == 1000
