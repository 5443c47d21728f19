"""A disk that takes no more, under each part that writes, and a broker gone besides: counted, told, and mended."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from infra.broker import EmbeddedKafka
from infra.settings import settings
from ingestion import cluster
from ingestion.exchange import Synthetic, read_ledger
from ingestion.feed.outbox import Outbox
from ingestion.kernel import Featurizer
from ingestion.tapes import find_tapes, read_lines
from ingestion.topics import FEATURES, QUOTES, RAW, tape_line
from tests import featurize_kit as kit
from tests import live_kit
from tests.conftest import until
from tests.ingest_kit import PRODUCTS, exchange, ingesting, log_of

Until = Callable[..., bool]
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="limits the file size of another process"),
]
FULL = 8_000
"""No file of the process may grow beyond this: a write fails as on a full disk, with no need for root."""


def full(pid: int, yes: bool = True) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL if yes else hard, hard))


@pytest.fixture(autouse=True)
def services(data_dir: Path, redis_server: str, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    live_kit.warm()
    for name, value in {
        "REDIS_URL": redis_server, "KAFKA_SERVERS": kafka_embedded, "COMMIT_EVERY_S": "0.2",
        "CHECKPOINT_EVERY_S": "0.4",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"VOLSPIKE_{name}", value)
    settings.cache_clear()


def test_the_featurizer_waits_for_room_and_writes_everything_then(tmp_path: Path, kafka_embedded: str) -> None:
    log = kit.log_of(60, seed=41)
    third = len(log) // 3
    stage = kit.Stage(kafka_embedded)
    cluster.require_topics(kafka_embedded, [FEATURES, QUOTES], kit.PARTITIONS)
    stage.feed(log[:third])
    with live_kit.Command(tmp_path, "featurize", "--topic", stage.topic, "--group", stage.group, "--json") as featurize:
        kit.assert_reached(log[:third], 120)
        full(featurize.pid)
        stage.feed(log[third : 2 * third])
        assert until(lambda: '"event": "commit"' in featurize.said(), 30), featurize.said()
        assert until(lambda: kit.newest_online(log[: 2 * third]), 20), "Redis waits for the disk"
        assert not kit.reached(log[: 2 * third])
        full(featurize.pid, yes=False)
        stage.feed(log[2 * third :])
        kit.assert_reached(log, 30)
        assert featurize.end() == 0, featurize.said()
    summary = json.loads(featurize.said().splitlines()[-1])
    assert summary["counts"]["commit_failures"] >= 1
    kit.assert_tables_hold(log)


def test_a_checkpoint_that_can_t_be_written_stops_nothing(kafka_embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = kit.log_of(40, seed=42)
    half = len(log) // 2
    stage = kit.Stage(kafka_embedded)
    first = stage.worker()

    files = first._checkpoints._fs
    real = type(files).open

    def no_room(self: object, path: str, mode: str = "rb", **more: object) -> object:
        if "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        if path.endswith(".zst"):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, path, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "open", no_room)
        with kit.running(first):
            stage.feed(log[:half])
            kit.assert_reached(log[:half])
    assert first.summary.counts["checkpoint_failures"] >= 1
    assert first.summary.counts["checkpoints"] == first.summary.counts["commit_failures"] == 0
    stage.feed(log[half:])
    with kit.running(stage.worker()) as second:
        kit.assert_reached(log)
    assert second.worker.summary.counts["taken over by checkpoint"] == 0
    kit.assert_tables_hold(log, rtol=1e-12)


def test_a_tape_that_can_t_be_written_costs_the_log_nothing(
    data_dir: Path, tmp_path: Path, kafka_embedded: str
) -> None:
    ledger, topic = tmp_path / "sent.ndjson", "disk-tape"
    with exchange(Synthetic(seed=43), speed=12.0, times="squeeze", ledger=ledger) as server:
        arguments = ("--feed", server.url, "--pair", ",".join(PRODUCTS), "--topic", topic, "--save-raw", "--json")
        with live_kit.Command(tmp_path, "ingest", *arguments) as ingest:
            raw = data_dir / "raw"
            assert until(lambda: raw.is_dir() and kit.folder_size(raw) > FULL, 120), ingest.said()
            full(ingest.pid)
            assert until(lambda: "the tape can't be written" in ingest.said(), 30), ingest.said()
            size = kit.folder_size(raw)
            sent = len(read_ledger(ledger))
            assert until(lambda: len(read_ledger(ledger)) > sent + 500, 60)
            assert kit.folder_size(raw) == size
            full(ingest.pid, yes=False)
            assert until(lambda: kit.folder_size(raw) > size, 30), ingest.said()
            assert ingest.end() == 0, ingest.said()
    report = json.loads(ingest.said().splitlines()[-1])
    assert report["tape_dropped"] > 0 and report["dropped"] == report["left_in_spill"] == 0
    log = log_of(kafka_embedded, topic)
    assert [e.n for e in log] == list(range(1, len(log) + 1))
    there = b"".join(map(tape_line, log))
    tape = b"".join(b"".join(read_lines(t)) for t in find_tapes([raw])).splitlines(keepends=True)
    known = set(there.splitlines(keepends=True))
    gaps = [json.loads(json.loads(line)["raw"]) for line in tape if line not in known]
    assert gaps and all(r["type"] == "gap" and r["reason"] == "dropped" for r in gaps), "the tape doesn't tell its hole"


def test_broker_and_disk_gone_together_is_a_counted_loss_inside_a_recorded_gap(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "sent.ndjson"
    monkeypatch.setattr("ingestion.feed.client.QUIET_HEARTBEAT_S", 60.0)
    monkeypatch.setattr("ingestion.feed.outbox.Outbox", partial(Outbox, max_messages=200))
    gone, real = False, os.write

    def write(file: int, data: bytes) -> int:
        if gone and str(data_dir) in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr("os.write", write)
    with (
        EmbeddedKafka(partitions=4) as broker,
        exchange(Synthetic(seed=44, seconds=100), speed=12.0, times="squeeze", ledger=ledger) as server,
        ingesting(server.url, broker.address, RAW, save_raw=True) as running,
    ):
        assert until(lambda: running.report.acknowledged > 200, 30)
        gone = True
        broker.down()
        assert until(lambda: running.report.dropped > 300, 30)
        gone = False
        broker.up()
        held = running.report.dropped
        assert until(lambda: server.ended.is_set(), 30)
        assert until(lambda: running.report.acknowledged + running.report.dropped >= running.report.logged, 20)
        report = running.end()
        log = log_of(broker.address, RAW)
    assert report.dropped >= held and report.left == 0
    there = Counter(zlib.crc32(e.raw) for e in log)
    missing = [e for e in read_ledger(ledger) if e.sent and not there[e.crc or 0]]
    assert report.dropped == len(missing)
    told = [json.loads(e.raw) for e in log if e.kind == "state"]
    assert {r["product_id"] for r in told if r["type"] == "gap" and r["reason"] == "dropped"} >= set(PRODUCTS)
    reader = Featurizer()
    quotes = pl.DataFrame(pl.from_arrow(reader.push_log(log).tables().quotes))
    gaps = live_kit.gaps_of(quotes)
    assert not live_kit.uncovered(missing, gaps, 0.2)
    for product in PRODUCTS:
        assert int(reader.state(product).s["book_state"][0]) == 1, f"{product} was never asked for again"
    tape = b"".join(b"".join(read_lines(t)) for t in find_tapes([data_dir / "raw"]))
    assert tape.count(b'"kind":"feed"') + report.tape_dropped >= report.messages
