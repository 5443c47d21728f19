"""The featurizer over real brokers: its rows are the tape's rows, whatever restarts, moves or is lost on the way."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contract import FEATURE_NAMES, VIEW
from infra.settings import settings
from ingestion import cluster, kafka, tables, wire
from ingestion.featurize.worker import Summary, Worker
from ingestion.kernel import Featurizer, Part
from ingestion.online import OnlineTable
from ingestion.topics import FEATURES, QUOTES, Envelope, tape_line
from tests import log_kit as kit
from tests.featurize_kit import PARTITIONS, worker_of


@dataclass
class Stage:
    """A topic with a log, a group, and folders of its own."""

    servers: str
    topic: str
    group: str
    redis: str
    log: list[Envelope]
    sent: int

    def worker(self, write: Callable[[list[Part]], int] | None = None, instance: str | None = None) -> Worker:
        return worker_of(self.servers, self.topic, self.group, PARTITIONS, write, instance=instance)

    def run(self, most: int) -> Summary:
        return self.worker().run(lambda: False, most)


@pytest.fixture
def stage(
    kafka_broker: str, redis_server: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[list[Envelope]], Stage]]:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis_server)
    settings.cache_clear()

    def build(log: list[Envelope]) -> Stage:
        own = uuid.uuid4().hex[:12]
        cluster.require_topics(kafka_broker, [own], PARTITIONS)
        sent = kit.produce(kafka_broker, log, PARTITIONS, own)
        return Stage(kafka_broker, own, own, redis_server, log, sent)

    yield build
    settings.cache_clear()


def session() -> str:
    return uuid.uuid4().hex[:16]


def log_of(seconds: int, seed: int = 1) -> list[Envelope]:
    return kit.with_keyframes(kit.market(seed, seconds, session=session()))


def stored(name: str) -> pl.DataFrame:
    return tables.scan(name).collect().sort("product_id", "session", "n", "k", "event_time_ns", maintain_order=True)


def assert_tables_hold(log: list[Envelope], rtol: float = 0.0) -> None:
    """The tables hold each row of the tape once, to the bit, or nearly where windows were rebuilt."""
    made = Featurizer().push_lines(b"".join(map(tape_line, log)))
    for name, rows in ((VIEW, made.features), ("quotes", made.quotes)):
        want = pl.DataFrame(pl.from_arrow(rows)).sort(
            "product_id", "session", "n", "k", "event_time_ns", maintain_order=True
        )
        got = stored(name)
        if not rtol:
            assert got.equals(want.select(got.columns)), name
            continue
        exact = [c for c in got.columns if c not in FEATURE_NAMES]
        assert got.select(exact).equals(want.select(exact)), name
        for column in (c for c in got.columns if c in FEATURE_NAMES):
            np.testing.assert_allclose(
                got[column].cast(pl.Float64).fill_null(np.nan).to_numpy(),
                want[column].cast(pl.Float64).fill_null(np.nan).to_numpy(),
                rtol=rtol, atol=1e-15, err_msg=column,
            )  # fmt: skip


def published(servers: str, topic: str, own: str) -> list[tuple[str, int, int]]:
    """Row ids of one session in a topic."""
    found = []
    reader = kafka.consumer(uuid.uuid4().hex, servers)
    try:
        from confluent_kafka import TopicPartition

        count = len(reader.list_topics(topic, 10).topics[topic].partitions)
        ends = {p: reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(count)}
        starts = {p: reader.get_watermark_offsets(TopicPartition(topic, p), 10)[0] for p in range(count)}
        reader.assign([TopicPartition(topic, p, starts[p]) for p in ends if ends[p] > starts[p]])
        left = sum(ends[p] - starts[p] for p in ends)
        while left:
            for message in reader.consume(500, 5):
                assert message.error() is None, message.error()
                left -= 1
                who, rows = wire.decode(message.value(), message.headers())
                if who == own:
                    product = message.key().decode()
                    found += [(product, int(n), int(k)) for n, k in zip(rows["n"], rows["k"], strict=True)]
    finally:
        reader.close()
    return found


def test_rows_live_are_the_rows_of_the_tape(stage: Callable[[list[Envelope]], Stage]) -> None:
    log = log_of(75)
    live = stage(log)
    summary = live.run(live.sent)
    assert_tables_hold(log)
    rows = stored(VIEW)
    assert summary.rows == rows.height > 500
    ids = list(zip(rows["product_id"], rows["n"], rows["k"], strict=True))
    assert sorted(published(live.servers, FEATURES, log[0].session)) == sorted(ids)
    assert len(published(live.servers, QUOTES, log[0].session)) == stored("quotes").height
    online = OnlineTable().read(kit.PRODUCTS)
    for product in kit.PRODUCTS:
        newest = rows.filter(pl.col("product_id") == product).sort("row_time").row(-1, named=True)
        row = online[product]
        assert row is not None
        assert row.values == {name: newest[name] for name in FEATURE_NAMES}


def test_restarts_change_no_bit(stage: Callable[[list[Envelope]], Stage]) -> None:
    log = log_of(75, seed=2)
    live = stage(log)
    first = live.run(live.sent // 3)
    second = live.run(live.sent // 3)
    third = live.run(live.sent - 2 * (live.sent // 3))
    assert first.counts["taken over by the log's beginning"] == PARTITIONS
    assert second.counts["taken over by checkpoint"] == third.counts["taken over by checkpoint"] == PARTITIONS
    assert_tables_hold(log)


@pytest.mark.slow
def test_without_its_checkpoint_a_worker_rewinds_and_adds_nothing_twice(
    stage: Callable[[list[Envelope]], Stage], data_dir: Path
) -> None:
    log = log_of(1300, seed=3)
    live = stage(log)
    kept = live.sent * 9 // 10
    live.run(kept)
    for checkpoint in (data_dir / "state").rglob("*.ckpt.zst"):
        checkpoint.write_bytes(b"damaged")
    rewound = live.worker()
    done = threading.Event()
    worker = threading.Thread(target=lambda: rewound.run(done.is_set), daemon=True)
    worker.start()
    reached = _until(lambda: _reached(log), 30)
    done.set()
    worker.join(30)
    assert reached
    assert rewound.summary.counts["taken over by rewinding"] == PARTITIONS
    assert rewound.summary.messages < live.sent
    assert_tables_hold(log, rtol=1e-12)


@pytest.mark.slow
def test_a_second_worker_takes_over_partitions_and_nothing_is_lost(
    stage: Callable[[list[Envelope]], Stage],
) -> None:
    log = log_of(75, seed=4)
    middle = len(log) // 2
    live = stage(log[:middle])
    stop_one, stop_two = threading.Event(), threading.Event()
    one, two = live.worker(), live.worker()
    pairs = ((one, stop_one), (two, stop_two))
    threads = [threading.Thread(target=w.run, args=(stop.is_set,), daemon=True) for w, stop in pairs]
    threads[0].start()
    assert _until(lambda: one.summary.rows > 100, 20)
    threads[1].start()
    assert _until(lambda: sum(two.summary.counts[f"taken over by {x}"] for x in HOW) > 0, 20)
    more = kit.produce(live.servers, log[middle:], PARTITIONS, live.topic)
    assert more
    ended = _until(lambda: _reached(log), 30)
    for stop, thread in zip((stop_one, stop_two), threads, strict=True):
        stop.set()
        thread.join(30)
    assert ended
    assert_tables_hold(log)


HOW = ("checkpoint", "rewinding", "the log's beginning")


def _reached(log: list[Envelope]) -> bool:
    """Whether the tables hold the log's last ticker of each product."""
    last = {e.product_id: e.n for e in log if e.raw.startswith(b'{"type":"ticker"')}
    held = tables.last_n(VIEW)
    return all(held.get((log[0].session, product), 0) >= n for product, n in last.items())


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    from tests.conftest import until

    return until(condition, seconds)
