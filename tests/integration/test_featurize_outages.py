"""Redis or the broker flushed, slow or gone under a featurizer: it goes on, recovers by itself, and says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from feature_repo.contract import VIEW
from infra.broker import EmbeddedKafka
from infra.embedded import EmbeddedRedis
from infra.settings import settings
from ingestion import kafka, tables
from ingestion.topics import Envelope
from tests import featurize_kit as kit
from tests.conftest import free_port, until
from tests.live_kit import scale

SHORT_S = 2.0
LONG_S = 60.0


@pytest.fixture
def online(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedRedis]:
    """Redis of this test's own: it is flushed, stopped and started again."""
    with EmbeddedRedis(port=free_port(), data=tmp_path / "redis") as server:
        monkeypatch.setenv("VOLSPIKE_REDIS_URL", server.address)
        settings.cache_clear()
        yield server


def client(server: EmbeddedRedis) -> redis.Redis:
    host, _, port = server.address.rpartition(":")
    return redis.Redis(host, int(port))


def pieces(log: list[Envelope], count: int) -> list[list[Envelope]]:
    size = -(-len(log) // count)
    return [log[at : at + size] for at in range(0, len(log), size)]


def test_rows_are_there_again_after_a_flush_of_redis(online: EmbeddedRedis, kafka_embedded: str) -> None:
    log = kit.log_of(40, seed=21)
    first, second = pieces(log, 2)
    stage = kit.Stage(kafka_embedded)
    with kit.running(stage.worker()) as run:
        stage.feed(first)
        kit.assert_reached(first)
        assert until(lambda: kit.newest_online(first))
        with client(online) as there:
            there.flushall()
            assert there.dbsize() == 0
        stage.feed(second)
        kit.assert_reached(log)
        assert until(lambda: kit.newest_online(log))
    assert run.worker.summary.counts["online_failures"] == 0
    kit.assert_tables_hold(log)


def outlast_redis(server: EmbeddedRedis, servers: str, down_s: float) -> None:
    """While Redis is gone the tables go on; when it is back its rows are the newest, though nothing new comes."""
    log = kit.log_of(60, seed=22)
    first, *rest = pieces(log, 6)
    stage = kit.Stage(servers)
    with kit.running(stage.worker()) as run:
        stage.feed(first)
        kit.assert_reached(first)
        server.stop()
        gone = time.monotonic()
        for i, piece in enumerate(rest):
            stage.feed(piece)
            kit.assert_reached(log[: log.index(piece[-1]) + 1])
            assert until(lambda i=i: time.monotonic() - gone >= down_s * (i + 1) / len(rest), down_s + 1)  # type: ignore[misc]
        server.start()
        back = time.monotonic()
        assert until(lambda: kit.newest_online(log), 15)
        assert time.monotonic() - back < 5
    counts = run.worker.summary.counts
    assert counts["online_failures"] >= 1
    assert counts["commit_failures"] == 0
    kit.assert_tables_hold(log)


def test_redis_may_be_gone_for_a_while(online: EmbeddedRedis, kafka_embedded: str) -> None:
    outlast_redis(online, kafka_embedded, SHORT_S)


@pytest.mark.slow
def test_redis_may_be_gone_for_a_minute(online: EmbeddedRedis, kafka_embedded: str) -> None:
    outlast_redis(online, kafka_embedded, LONG_S * scale())


def test_a_slow_redis_holds_nothing_up(online: EmbeddedRedis, kafka_embedded: str) -> None:
    log = kit.log_of(40, seed=23)
    first, second = pieces(log, 2)
    stage = kit.Stage(kafka_embedded)
    with kit.running(stage.worker()) as run:
        stage.feed(first)
        kit.assert_reached(first)
        with client(online) as there:
            there.execute_command("CLIENT", "PAUSE", 3000, "ALL")
        asleep = time.monotonic()
        stage.feed(second)
        kit.assert_reached(log)
        assert time.monotonic() - asleep < 3, "the tables waited for Redis"
        assert until(lambda: kit.newest_online(log), 15)
    assert run.worker.summary.counts["online_rows"] > 0
    kit.assert_tables_hold(log)


def outlast_broker(down_s: float) -> None:
    """While the broker is gone nothing is committed; when it is back everything is, once."""
    log = kit.log_of(60, seed=24)
    first, second = pieces(log, 2)
    with EmbeddedKafka(partitions=kit.PARTITIONS) as broker:
        stage = kit.Stage(broker.address)
        with kit.running(stage.worker()) as run:
            stage.feed(first)
            kit.assert_reached(first)
            broker.down()
            gone = time.monotonic()
            held = tables.last_n(VIEW)
            assert until(lambda: time.monotonic() - gone >= down_s, down_s + 1)
            assert tables.last_n(VIEW) == held
            broker.up()
            stage.feed(second)
            kit.assert_reached(log, 60)
        assert run.worker.summary.counts["rows_published"] >= tables.scan(VIEW).collect().height
    kit.assert_tables_hold(log)


def test_the_broker_may_be_gone_for_a_while(online: EmbeddedRedis) -> None:
    outlast_broker(SHORT_S)


@pytest.mark.slow
def test_the_broker_may_be_gone_for_a_minute(online: EmbeddedRedis) -> None:
    outlast_broker(LONG_S * scale())


def test_the_broker_may_go_while_rows_wait_for_it(online: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion.featurize.publisher.FLUSH_S", 0.5)
    log = kit.log_of(200, seed=25)
    with EmbeddedKafka(partitions=kit.PARTITIONS) as broker:
        stage = kit.Stage(broker.address)
        stage.feed(log)
        with kit.running(stage.worker()) as run:
            assert until(lambda: run.worker.summary.rows > 0, 30)
            broker.down()
            assert until(lambda: run.worker._committer.counts["commit_failures"] > 0, 20)
            broker.up()
            kit.assert_reached(log, 60)
    kit.assert_tables_hold(log)


def test_a_member_that_was_fenced_goes_on_as_a_new_one(online: EmbeddedRedis, kafka_real: str) -> None:
    """As a broker does that comes back after kill -9 and takes the only member for one that was replaced."""
    log = kit.log_of(40, seed=25)
    first, second = pieces(log, 2)
    stage = kit.Stage(kafka_real)
    with kit.running(stage.worker(instance="one")) as run:
        stage.feed(first)
        kit.assert_reached(first)
        ghost = kafka.consumer(stage.group, kafka_real, instance="one")
        ghost.subscribe([stage.topic])

        def fenced() -> bool:
            with suppress(kafka.ClientLost):  # it may be fenced in its turn before it is looked at
                ghost.poll(0.05)
            return run.worker.summary.counts["fenced"] == 1

        assert until(fenced, 30)
        ghost.close()
        stage.feed(second)
        kit.assert_reached(log, 60)
        assert until(lambda: kit.newest_online(log), 15)
    assert run.worker.summary.counts["fenced"] == 1
    kit.assert_tables_hold(log)
