"""The log against its tape and against its own beginning: nothing is added twice, nothing is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from feature_repo.contract import VIEW
from infra.settings import ROOT, child_environment, settings
from ingestion import tables
from ingestion.exchange import Synthetic
from tests import featurize_kit as kit
from tests import live_kit, log_kit
from tests.conftest import until
from tests.ingest_kit import exchange, ingesting, log_of

Until = Callable[..., bool]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    live_kit.warm()


@pytest.fixture
def online(redis_server: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis_server)
    settings.cache_clear()


@pytest.mark.slow
def test_a_tape_of_the_live_log_adds_nothing_to_the_live_tables(
    online: None, data_dir: Path, kafka_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.feed.client.QUIET_HEARTBEAT_S", 60.0)
    stage = kit.Stage(kafka_broker)
    with (
        exchange(Synthetic(seed=31, seconds=60), speed=20.0, times="squeeze", faults="disconnect=every:1s") as server,
        ingesting(server.url, kafka_broker, stage.topic, save_raw=True) as feed,
        kit.running(stage.worker(lambda parts: len(parts))) as run,
    ):
        assert until(lambda: server.ended.is_set() and feed.report.sessions > 1, 40)
        feed.end()
        log = log_of(kafka_broker, stage.topic)
        assert until(lambda: live_kit.lag(kafka_broker, stage.group, stage.topic, stage.partitions) == 0, 30)
        run.end()
    live = {name: tables.scan(name).collect() for name in (VIEW, "quotes")}
    assert live[VIEW].height > 100
    kit.assert_tables_hold(log)
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "replay", "--raw", str(data_dir / "raw"), "--json"],
        cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["rows_added"], said["quotes_added"]) == (0, 0)
    assert (said["rows"], said["quotes"]) == (live[VIEW].height, live["quotes"].height)
    for name, before in live.items():
        after = tables.scan(name).collect()
        assert after.sort(live_kit.ORDER, maintain_order=True).equals(before.sort(live_kit.ORDER, maintain_order=True))


def test_a_live_log_adds_nothing_to_the_tables_of_its_tape(online: None, data_dir: Path, kafka_embedded: str) -> None:
    from ingestion.replay import replay
    from ingestion.topics import tape_line

    log = kit.log_of(40, seed=32)
    tape = data_dir / "raw" / "tape.ndjson"
    tape.parent.mkdir()
    tape.write_bytes(b"".join(map(tape_line, log)))
    replay([tape])
    stage = kit.Stage(kafka_embedded)
    stage.feed(log)
    with kit.running(stage.worker(lambda parts: len(parts))) as run:
        assert until(lambda: live_kit.lag(kafka_embedded, stage.group, stage.topic, stage.partitions) == 0, 30)
    counts = run.worker.summary.counts
    assert run.worker.summary.rows > 300
    assert counts[f"{VIEW}_added"] == counts["quotes_added"] == counts["rows_published"] == 0
    kit.assert_tables_hold(log)


def test_a_log_that_no_longer_reaches_back_is_begun_where_it_begins_and_coverage_says_so(
    online: None, data_dir: Path, kafka_real: str
) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    log = kit.log_of(400, seed=33)
    stage = kit.Stage(kafka_real)
    first = log[: len(log) // 4]
    stage.feed(first)
    with kit.running(stage.worker(lambda parts: len(parts))):
        kit.assert_reached(first)
    for checkpoint in (data_dir / "state").rglob("*.ckpt.zst"):
        checkpoint.unlink()
    stage.feed(log[len(log) // 4 :])
    # Of each partition the first half goes, and with it all that the group has read.
    topic = live_kit.read_topic(kafka_real, stage.topic)
    cuts = {p: max(stored) // 2 for p, stored in enumerate(topic.stored) if stored}
    admin = AdminClient({"bootstrap.servers": kafka_real})
    for future in admin.delete_records([TopicPartition(stage.topic, p, at) for p, at in cuts.items()]).values():
        future.result(10)
    with kit.running(stage.worker(lambda parts: len(parts))) as run:
        kit.assert_reached(log)
    counts = run.worker.summary.counts
    used = {log_kit.partition_of(product, stage.partitions) for product in log_kit.PRODUCTS}
    assert counts["taken over by the log's beginning"] == len(used)
    assert counts["taken over by checkpoint"] == 0
    rows = tables.scan(VIEW).collect()
    assert not rows.select(live_kit.ROW_ID).is_duplicated().any()
    whole, _ = kit.rows_of(log)
    for product in log_kit.PRODUCTS:
        held = {e.n for e in topic.kept[log_kit.partition_of(product, 4)] if e.product_id == product}
        kept = {
            stored.n
            for offset, stored in topic.stored[log_kit.partition_of(product, 4)].items()
            if offset >= cuts[log_kit.partition_of(product, 4)]
        } & held
        entered = min(kept)
        after = rows.filter((pl.col("product_id") == product) & (pl.col("n") >= entered)).sort("row_time")
        begun = int(after["event_time_ns"][0])
        # Since it entered, and no longer: a row can't claim to know what is no longer there.
        since = (after["event_time_ns"] - begun) / live_kit.S
        assert (after["coverage_s"] <= since + 1.0).all(), product
        assert after["coverage_s"][-1] > 100
        full = whole.filter((pl.col("product_id") == product) & (pl.col("n") >= entered)).sort("row_time")
        ticks = after.join(full, on=live_kit.ROW_ID, how="inner").filter(pl.col("coverage_s") >= 61)
        assert ticks.height > 50
        for feature in ("w30_return_std", "w60_trade_volume", "w60_n_observations"):
            a, b = ticks[feature], ticks[f"{feature}_right"]
            assert ((a - b).abs() <= 1e-12 * b.abs().clip(lower_bound=1e-3)).fill_null(True).all(), (product, feature)
        before = rows.filter((pl.col("product_id") == product) & (pl.col("n") < entered))
        assert not before.join(whole, on=live_kit.ROW_ID, how="anti").height
