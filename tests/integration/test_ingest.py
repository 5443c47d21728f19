"""Ingestion end to end: the simulated exchange's ledger against what the topic and the tapes hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from feature_repo.errors import InputError, StoreError, UsageError
from infra.broker import EmbeddedKafka
from infra.settings import ROOT, child_environment, settings
from ingestion import cluster
from ingestion.exchange import Synthetic, read_ledger
from ingestion.feed import Order
from ingestion.feed.pipeline import ingest
from ingestion.feed.recovery import Recovery
from ingestion.feed.worker import Worker
from ingestion.kernel import Featurizer
from ingestion.tapes import find_tapes, read_lines
from ingestion.topics import Envelope, partition_of, tape_line
from tests.conftest import free_port
from tests.feed_server import FeedServer, Play, feed_server, plays
from tests.ingest_kit import CHANNELS, PRODUCTS, exchange, ingesting, log_of, partitions

Until = Callable[..., bool]


def market(seconds: int | None = None) -> Synthetic:
    return Synthetic(seed=7, seconds=seconds)


def sent(ledger: Path) -> list[int]:
    return [e.crc for e in read_ledger(ledger) if e.sent and e.crc is not None]


def crcs(log: list[Envelope]) -> list[int]:
    return [zlib.crc32(e.raw) for e in log if e.kind == "feed"]


def records(log: list[Envelope], kind: str) -> list[dict[str, object]]:
    found = [json.loads(e.raw) for e in log if e.kind != "feed"]
    return [r for r in found if r["type"] == kind]


@pytest.mark.parametrize("path", ["/exchange", "/advanced"])
def test_what_was_sent_is_in_the_topic_and_on_the_tape_in_order(
    data_dir: Path, tmp_path: Path, kafka_broker: str, until: Until, path: str
) -> None:
    ledger, topic = tmp_path / "sent.ndjson", f"raw{path.replace('/', '-')}"
    with (
        exchange(market(24), speed=12.0, times="squeeze", ledger=ledger) as server,
        ingesting(server.url + path, kafka_broker, topic, save_raw=True) as running,
    ):
        assert until(lambda: server.ended.is_set() and running.report.messages == len(sent(ledger)), 20)
        report = running.end()
    log = log_of(kafka_broker, topic)
    assert crcs(log) == sent(ledger)
    assert len(crcs(log)) == report.messages > 500
    assert [e.n for e in log] == list(range(1, len(log) + 1))
    assert not records(log, "gap")
    assert report.dropped == report.left == 0
    assert report.acknowledged == report.logged == len(log)
    for index, own in enumerate(partitions(kafka_broker, topic)):
        assert [e.n for e in own] == sorted(e.n for e in own)
        assert all(not e.product_id or partition_of(e.product_id, 4) == index for e in own)
    tapes = find_tapes([data_dir / "raw"])
    assert b"".join(b"".join(read_lines(t)) for t in tapes) == b"".join(map(tape_line, log))
    assert not list((data_dir / "spill" / topic).glob("*.spill"))


def test_each_lost_trade_is_a_gap_and_only_its_book_is_asked_for_again(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, until: Until
) -> None:
    ledger, topic = tmp_path / "sent.ndjson", "raw-drop"
    faults = "drop=0.04@match/ETH-USD"
    with (
        exchange(market(40), speed=10.0, times="squeeze", ledger=ledger, faults=faults) as server,
        ingesting(server.url, kafka_embedded, topic) as running,
    ):
        assert until(lambda: server.ended.is_set() and running.report.messages == len(sent(ledger)), 20)
        report = running.end()
    lost = [int(e.key) for e in read_ledger(ledger) if e.fault == "drop"]
    log = log_of(kafka_embedded, topic)
    assert len(lost) > 3
    assert {r["product_id"] for r in records(log, "gap")} == {"ETH-USD"}
    assert report.resyncs >= 1
    again = [e for e in read_ledger(ledger) if e.kind == "snapshot" and e.sent]
    assert {e.product for e in again[3:]} == {"ETH-USD"}
    # Whoever reads the log has a gap open over each lost trade, and the others' books never fall.
    reader = Featurizer()
    quotes = reader.push_log(log).tables().quotes.to_pylist()
    assert {q["product_id"] for q in quotes if q["kind"] == "gap_start"} == {"ETH-USD"}
    open_from: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for q in quotes:
        if q["kind"] == "gap_start":
            open_from[q["product_id"]] = q["n"]
        elif q["kind"] == "gap_end":
            spans.append((open_from.pop(q["product_id"]), q["n"]))
    spans += [(first, 1 << 60) for first in open_from.values()]
    heard = {int(json.loads(e.raw)["trade_id"]): e.n for e in log if b'"match"' in e.raw and e.product_id == "ETH-USD"}
    for trade in lost:
        shown = min((n for t, n in heard.items() if t > trade), default=None)
        if shown is not None:
            assert any(first <= shown and last >= heard.get(trade - 1, 0) for first, last in spans), trade


def test_a_cut_connection_is_a_new_session_within_seconds_and_nothing_else_is_missing(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, until: Until
) -> None:
    ledger, topic = tmp_path / "sent.ndjson", "raw-cut"
    with (
        exchange(market(60), speed=12.0, times="squeeze", ledger=ledger, faults="disconnect=every:1.2s") as server,
        ingesting(server.url, kafka_embedded, topic) as running,
    ):
        assert until(lambda: server.ended.is_set() and running.report.sessions >= 3, 20)
        report = running.end()
    log = log_of(kafka_embedded, topic)
    assert len({e.session for e in log}) == report.sessions >= 3
    for session in {e.session for e in log}:
        own = [e for e in log if e.session == session]
        assert [e.n for e in own] == list(range(1, len(own) + 1))
        assert json.loads(own[0].raw)["type"] == "session"
    opened = [e.time_ns for e in read_ledger(ledger) if e.event == "open"]
    closed = [e.time_ns for e in read_ledger(ledger) if e.event == "close"]
    assert all(b - a < 2e9 for a, b in zip(closed, opened[1:], strict=False))
    in_topic, in_ledger = crcs(log), sent(ledger)
    missing = len(in_ledger) - len(in_topic)
    assert 0 <= missing < 0.1 * len(in_ledger)  # what was in flight when the connection was cut


def test_a_snapshot_that_never_comes_ends_stale_and_the_others_go_on(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(Recovery, wait_s=0.2, tries=2, slow_s=60.0)
    monkeypatch.setattr("ingestion.feed.worker.Worker", partial(Worker, recovery=quick))
    topic = "raw-stale"
    with (
        exchange(market(60), speed=12.0, times="squeeze", faults="no_snapshot=1.0/SOL-USD") as server,
        ingesting(server.url, kafka_embedded, topic) as running,
    ):
        assert until(lambda: running.report.stale == 1, 10)
        assert until(server.ended.is_set, 10)
        report = running.end()
    log = log_of(kafka_embedded, topic)
    assert records(log, "book") == [{"type": "book", "product_id": "SOL-USD", "state": "stale"}]
    assert report.resyncs == 2
    reader = Featurizer()
    reader.push_log(log)
    states = {p: int(reader.state(p).s["book_state"][0]) for p in PRODUCTS}
    assert {p: s == 1 for p, s in states.items()} == {"BTC-USD": True, "ETH-USD": True, "SOL-USD": False}


def test_a_broker_that_goes_and_comes_back_gets_everything_in_order(
    data_dir: Path, tmp_path: Path, until: Until
) -> None:
    ledger = tmp_path / "sent.ndjson"
    with (
        EmbeddedKafka(partitions=4) as broker,
        exchange(market(70), speed=12.0, times="squeeze", ledger=ledger) as server,
        ingesting(server.url, broker.address, "ticks.raw") as running,
    ):
        assert until(lambda: running.report.acknowledged > 100)
        broker.down()
        assert until(lambda: running.report.spilled > 0, 10)
        held = running.report.messages
        assert until(lambda: running.report.messages > held + 500)
        broker.up()
        assert until(lambda: server.ended.is_set() and running.report.messages == len(sent(ledger)), 20)
        assert until(lambda: running.report.acknowledged == running.report.logged, 10)
        report = running.end()
        log = log_of(broker.address, "ticks.raw")
    assert crcs(log) == sent(ledger)
    assert report.dropped == report.left == 0
    assert not records(log, "gap")


def command(url: str, broker: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "ingest", "--feed", url, "--pair", ",".join(PRODUCTS), *more],
        cwd=ROOT,
        env=child_environment(VOLSPIKE_KAFKA_SERVERS=broker),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
def test_a_kill_with_the_broker_gone_loses_a_second_at_most(data_dir: Path, tmp_path: Path, until: Until) -> None:
    ledger = tmp_path / "sent.ndjson"
    with (
        EmbeddedKafka(partitions=4) as broker,
        exchange(market(), speed=16.0, times="squeeze", ledger=ledger) as server,
    ):
        with command(server.url, broker.address) as process:
            assert until(lambda: len(sent(ledger)) > 500, 20)
            broker.down()
            assert until(lambda: list((data_dir / "spill" / "ticks.raw").glob("*.spill")) != [], 20)
            first = len(sent(ledger))
            assert until(lambda: len(sent(ledger)) > first + 600, 20)
            process.kill()
        killed_ns = time.time_ns()
        broker.up()
        with command(server.url, broker.address, "--json") as process:
            assert until(lambda: sum(e.event == "subscribe" for e in read_ledger(ledger)) == 2, 20)
            first = len(sent(ledger))
            assert until(lambda: len(sent(ledger)) > first + 100, 20)
            process.send_signal(signal.SIGTERM)
            report = json.loads(process.communicate(timeout=20)[0])
            assert process.returncode == 0
        log = log_of(broker.address, "ticks.raw")
    there = set(crcs(log))
    old = [e for e in read_ledger(ledger) if e.sent and e.connection == 1]
    missing = [e.time_ns for e in old if e.crc not in there]
    assert all(killed_ns - t < 2.0e9 for t in missing)
    assert report["left_in_spill"] == report["dropped"] == 0
    sessions = list(dict.fromkeys(e.session for e in log))
    assert len(sessions) == 2
    for session in sessions:
        numbers = [e.n for e in log if e.session == session]
        assert numbers == list(range(1, len(numbers) + 1))


def test_sigint_ends_it_with_everything_logged_and_a_report(data_dir: Path, tmp_path: Path, until: Until) -> None:
    ledger = tmp_path / "sent.ndjson"
    with (
        EmbeddedKafka(partitions=4) as broker,
        exchange(market(), speed=8.0, times="squeeze", ledger=ledger) as server,
        command(server.url, broker.address, "--save-raw") as process,
    ):
        assert until(lambda: len(sent(ledger)) > 300, 20)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[0]
        assert process.returncode == 0
        log = log_of(broker.address, "ticks.raw")
    assert said.startswith("feed       ws://127.0.0.1:")
    assert f"{len(crcs(log)):,} in " in said
    assert "0 left there, 0 dropped" in said
    assert crcs(log) == sent(ledger)[: len(crcs(log))]
    assert len(sent(ledger)) - len(crcs(log)) < 100  # sent while the connection was being closed
    text = b"".join(b"".join(read_lines(t)) for t in find_tapes([data_dir / "raw"]))
    assert text == b"".join(map(tape_line, log))


def test_a_snapshot_of_six_megabytes_is_one_message_of_the_log(
    data_dir: Path, kafka_embedded: str, until: Until
) -> None:
    levels = [[f"{50_000 - i / 100:.2f}", "0.12345678"] for i in range(120_000)]
    asks = [[f"{50_001 + i / 100:.2f}", "0.12345678"] for i in range(120_000)]
    raw = json.dumps({"type": "snapshot", "product_id": "BTC-USD", "bids": levels, "asks": asks}).encode()
    assert len(raw) > 6_000_000
    with (
        feed_server(plays([raw])) as server,
        ingesting(server.url, kafka_embedded, "raw-big", products=("BTC-USD",)) as running,
    ):
        assert until(lambda: running.report.messages == 1 and running.report.acknowledged == 2)
    log = log_of(kafka_embedded, "raw-big")
    assert log[1].raw == raw
    assert log[1].product_id == "BTC-USD"


def once(url: str, broker: str, **options: object) -> None:
    ingest(Order(url, options.pop("products", PRODUCTS), CHANNELS, minutes=0.5, **options), broker)  # type: ignore[arg-type]


def refusing(reason: str) -> Play:
    async def play(server: FeedServer, connection: ServerConnection, request: dict[str, object]) -> None:
        await connection.send(json.dumps({"type": "error", "message": "Failed to subscribe", "reason": reason}))

    return play


def test_an_unknown_pair_is_an_error_that_names_it(data_dir: Path, kafka_embedded: str) -> None:
    began = time.monotonic()
    with (
        exchange(market()) as server,
        pytest.raises(InputError, match=r"refused to subscribe pair NO-PAIR.*not a valid product.*correct --pair"),
    ):
        once(server.url, kafka_embedded, products=("NO-PAIR",), topic="raw-unknown")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("path", ["/exchange", "/advanced"])
def test_an_unknown_pair_among_others_is_left_out(data_dir: Path, kafka_embedded: str, until: Until, path: str) -> None:
    topic = f"raw-partly{path.replace('/', '-')}"
    with (
        exchange(market(), speed=8.0, times="squeeze") as server,
        ingesting(server.url + path, kafka_embedded, topic, products=("BTC-USD", "NO-PAIR")) as running,
    ):
        assert until(lambda: running.report.messages > 200)
        report = running.end()
    products = {e.product_id for e in log_of(kafka_embedded, topic)} - {""}
    assert products == {"BTC-USD"}
    assert report.sessions == 1


def test_a_rejected_subscription_is_an_error(data_dir: Path, kafka_embedded: str) -> None:
    with (
        feed_server(refusing("level2, level3, and full channels now require authentication")) as server,
        pytest.raises(InputError, match=r"refused to subscribe .*require authentication"),
    ):
        once(server.url, kafka_embedded, topic="raw-rejected")


def test_a_topic_with_too_few_partitions_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedKafka(partitions=2) as broker:
        with pytest.raises(StoreError, match="has 2 partitions, at least 4"):
            once("ws://127.0.0.1:1", broker.address)


def test_a_data_folder_that_can_t_be_written_is_named(
    data_dir: Path, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "file").write_text("")
    monkeypatch.setenv("VOLSPIKE_DATA", str(data_dir / "file"))
    settings.cache_clear()
    with pytest.raises(StoreError, match="file/spill/raw-nowhere can't be written"):
        once("ws://127.0.0.1:1", kafka_embedded, topic="raw-nowhere")


def test_what_ended_it_is_told_not_that_it_was_not_connected_yet(
    data_dir: Path, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("ingestion.feed.outbox.Outbox", full)
    with pytest.raises(StoreError, match="the disk is full"):
        once(f"ws://127.0.0.1:{free_port()}", kafka_embedded)


def test_an_unreachable_broker_is_told_within_ten_seconds(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.LIMIT_S < 10
    monkeypatch.setattr(cluster, "LIMIT_S", 0.5)
    began = time.monotonic()
    with pytest.raises(StoreError, match="doesn't answer"):
        once("ws://127.0.0.1:1", f"127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("option", "value"), [("products", ()), ("products", ("../x",)), ("topic", "a b")])
def test_what_makes_no_sense_is_refused_before_anything_is_started(
    data_dir: Path, kafka_embedded: str, option: str, value: object
) -> None:
    with pytest.raises(UsageError):
        once("ws://127.0.0.1:1", kafka_embedded, **{option: value})
