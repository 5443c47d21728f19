"""The log of one connection: numbers, gaps where they showed, records to enter it by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from ingestion.feed.inbox import Opened, Received
from ingestion.feed.watch import KEYFRAME_NS, Watch, read_head
from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels
from ingestion.kernel.messages import parse_times
from ingestion.market import generate
from ingestion.tapes import find_tapes, read_lines
from ingestion.topics import Envelope, tape_line

CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")


@lru_cache
def market(seconds: int = 60) -> list[Received]:
    return [Received(recv_ns, raw) for recv_ns, _, raw in generate(seed=3, seconds=seconds)]


def watch_over(
    received: Sequence[Received], batch: int = 50, dialect: str = "exchange"
) -> tuple[Watch, list[Envelope]]:
    products = tuple(sorted({read_head(m.raw).product for m in received} - {""}))
    watch = Watch(Opened("00f1a2b3c4d5e6f7", received[0].recv_ns, dialect, products, CHANNELS))  # type: ignore[arg-type]
    log = watch.begin()
    for at in range(0, len(received), batch):
        log += watch.take(received[at : at + batch])
    return watch, log


def records(log: Sequence[Envelope], kind: str) -> list[tuple[int, dict[str, object]]]:
    found = [(i, json.loads(e.raw)) for i, e in enumerate(log) if e.kind != "feed"]
    return [(i, r) for i, r in found if r["type"] == kind]


def advanced_tape(shared_data: Path) -> list[Received]:
    (tape,) = find_tapes([shared_data / "advanced_BTC-ETH_20260809_24s.ndjson.gz"])
    lines = b"".join(read_lines(tape)).splitlines()
    stamps = [json.loads(line).get("timestamp") for line in lines]
    times = parse_times([t or "1970-01-01T00:00:00Z" for t in stamps])
    times = np.maximum.accumulate(times) + 20_000_000
    return [Received(int(t) // 1000 * 1000, line) for t, line in zip(times, lines, strict=True)]


def test_every_message_stands_in_the_log_once_in_order_and_unchanged() -> None:
    received = market()
    _, log = watch_over(received)
    assert [e.n for e in log] == list(range(1, len(log) + 1))
    assert [(e.recv_ns, e.raw) for e in log if e.kind == "feed"] == received


def test_the_first_record_says_what_is_subscribed() -> None:
    _, log = watch_over(market(2))
    assert json.loads(log[0].raw) == {
        "type": "session",
        "feed": "exchange",
        "products": list(PRODUCTS),
        "channels": list(CHANNELS),
    }
    assert (log[0].kind, log[0].product_id, log[0].n) == ("state", "", 1)


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_a_clean_market_raises_no_alarm_whatever_the_batches(batch: int) -> None:
    watch, log = watch_over(market(30), batch)
    assert not records(log, "gap")
    assert not watch.gaps


@pytest.mark.parametrize("batch", [1, 20, 5000])
def test_a_lost_trade_is_a_gap_before_the_message_that_shows_it(batch: int) -> None:
    received = market(30)
    matches = [
        i for i, m in enumerate(received) if read_head(m.raw).type == "match" and read_head(m.raw).product == "ETH-USD"
    ]
    lost, shows = matches[10], matches[11]
    # A heartbeat may show it earlier: it names the last trade.
    for i in range(lost + 1, shows):
        head = json.loads(received[i].raw)
        if (
            head.get("product_id") == "ETH-USD"
            and head.get("last_trade_id", 0) >= json.loads(received[lost].raw)["trade_id"]
        ):
            shows = i
            break
    _, log = watch_over(received[:lost] + received[lost + 1 :], batch)
    ((at, gap),) = records(log, "gap")
    assert gap == {"type": "gap", "product_id": "ETH-USD", "reason": "trades"}
    assert log[at].product_id == "ETH-USD"
    assert log[at + 1].raw == received[shows].raw
    assert [e.n for e in log] == list(range(1, len(log) + 1))


def test_silence_of_one_product_is_a_gap_of_that_product() -> None:
    received = [
        m
        for m in market(30)
        if not (read_head(m.raw).product == "SOL-USD" and 10e9 < m.recv_ns - market(1)[0].recv_ns < 18e9)
    ]
    _, log = watch_over(received)
    gaps = [r for _, r in records(log, "gap")]
    assert {g["product_id"] for g in gaps} == {"SOL-USD"}
    assert gaps[0]["reason"] in ("silence", "trades")


def test_the_advanced_tape_raises_no_alarm_and_a_lost_number_is_found(shared_data: Path) -> None:
    received = advanced_tape(shared_data)
    watch, log = watch_over(received, dialect="advanced")
    assert not records(log, "gap"), watch.gaps
    at = next(i for i in range(500, len(received)) if read_head(received[i].raw).channel == "l2_data")
    _, log = watch_over(received[:at] + received[at + 1 :], dialect="advanced")
    gaps = records(log, "gap")
    assert {r["product_id"] for _, r in gaps} == {"BTC-USD", "ETH-USD"}
    assert {r["reason"] for _, r in gaps} == {"sequence"}


def test_readers_of_the_log_see_the_gaps_that_the_detector_saw() -> None:
    received = market(40)
    kept = [m for i, m in enumerate(received) if i % 400 != 399]
    watch, log = watch_over(kept)
    assert watch.gaps
    reader = Featurizer()
    rows = reader.push_lines(b"".join(map(tape_line, log)))
    starts = rows.quotes.filter(rows.quotes["kind"].to_numpy(zero_copy_only=False) == "gap_start")
    told = [(log[i + 1].n, str(r["product_id"])) for i, r in records(log, "gap")]
    assert sorted(zip(starts["n"].to_pylist(), starts["product_id"].to_pylist(), strict=True)) == sorted(told)


def test_each_minute_a_status_and_the_book_itself() -> None:
    received = market(130)
    watch, log = watch_over(received)
    frames = records(log, "keyframe")
    statuses = records(log, "status")
    assert [r["product_id"] for _, r in frames] == [r["product_id"] for _, r in statuses] == [*PRODUCTS] * 2
    for at, frame in frames:
        assert json.loads(log[at - 1].raw)["type"] == "status"
        # Independently: the book of a kernel that read the log so far.
        reader = Featurizer()
        reader.push_lines(b"".join(map(tape_line, [e for e in log[:at] if e.kind == "feed"])))
        book = reader.state(str(frame["product_id"])).book
        assert frame["bids"] == side_levels(book, BIDS)[:1000].tolist()
        assert frame["asks"] == side_levels(book, ASKS)[:1000].tolist()
    first = [log[at].recv_ns for at, _ in statuses[:3]]
    assert all(KEYFRAME_NS <= t - received[0].recv_ns < KEYFRAME_NS + 2_000_000_000 for t in first)
    trade = json.loads(
        next(e.raw for e in reversed(log[: statuses[0][0]]) if b'"match"' in e.raw and b"BTC-USD" in e.raw)
    )
    assert statuses[0][1]["trade_id"] == trade["trade_id"]
    assert watch.detector.synced("BTC-USD")


def test_no_keyframe_of_a_book_that_lost_messages() -> None:
    received = market(70)
    at = next(i for i, m in enumerate(received) if b'"match"' in m.raw and b"BTC-USD" in m.raw and i > 500)
    _, log = watch_over(received[:at] + received[at + 1 :])
    assert {r["product_id"] for _, r in records(log, "keyframe")} == {"ETH-USD", "SOL-USD"}
    assert {r["product_id"] for _, r in records(log, "status")} == set(PRODUCTS)


def test_what_was_dropped_behind_us_takes_the_book_down_until_a_snapshot() -> None:
    received = market(20)
    snapshot = next(m for m in received if b'"snapshot"' in m.raw and b"BTC-USD" in m.raw)
    watch, _log = watch_over(received[:-200])
    assert watch.detector.synced("BTC-USD")
    (note,) = watch.lost("BTC-USD", received[-200].recv_ns)
    assert json.loads(note.raw) == {"type": "book", "product_id": "BTC-USD", "state": "resyncing"}
    more = watch.take(received[-200:])
    assert not watch.detector.synced("BTC-USD")
    assert watch.detector.synced("ETH-USD")
    assert not records(more, "gap")  # the outbox has written it, where the hole is
    watch.take([Received(received[-1].recv_ns + 1000, snapshot.raw)])
    assert watch.detector.synced("BTC-USD")


@pytest.mark.parametrize(
    ("raw", "product"),
    [
        (b'{"type":"ticker","product_id":"BTC-USD"}', "BTC-USD"),
        (b'{"type":"subscriptions","channels":[]}', ""),
        (b'{"channel":"heartbeats","events":[{"heartbeat_counter":1}]}', ""),
        (b'{"channel":"l2_data","events":[{"product_id":"ETH-USD","updates":[]}]}', "ETH-USD"),
        (b'{"channel":"ticker","events":[{"tickers":[{"product_id":"A-B"},{"product_id":"C-D"}]}]}', ""),
        (b'{"channel":"market_trades","events":[{"trades":[{"product_id":"A-B"}]}]}', "A-B"),
        (b'{"type":"ticker","product_id":"../../etc"}', ""),
        (b'{"type":"ticker","product_id":7}', ""),
        (b'{"type":"tick', ""),
        (b"\xff\xfe", ""),
        (b"", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_the_product_of_a_message_is_the_one_that_it_names(raw: bytes, product: str) -> None:
    assert read_head(raw).product == product


def test_garbage_is_logged_and_counted_and_nothing_stops() -> None:
    received = market(5)
    at = received[100].recv_ns
    bad = [Received(at, raw) for raw in (b"\xff\xfe", b"{", b"", b"null", b'"text"', b'{"type":"ticker"}', b"a\nb")]
    watch, log = watch_over(received[:100] + bad + received[100:], batch=40)
    assert [e.raw for e in log if e.kind == "feed"] == [m.raw for m in received[:100] + bad + received[100:]]
    assert watch.detector.counts["malformed"] >= 4
    assert not watch.gaps


def test_complaints_of_the_exchange_are_handed_on() -> None:
    error = b'{"type":"error","message":"Failed to subscribe","reason":"X-Y is not a valid product"}'
    received = market(1)
    watch, _ = watch_over([*received, Received(received[-1].recv_ns, error)])
    assert watch.errors == ["Failed to subscribe: X-Y is not a valid product"]


def test_lag_is_from_the_exchange_s_time_to_receipt() -> None:
    received = [Received(m.recv_ns + 250_000_000, m.raw) for m in market(5)]
    watch, _ = watch_over(received)
    lags = watch.lags()
    assert len(lags) > 50
    assert 0.25 <= float(np.median(lags)) <= 0.40


@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("ahead_s", [-3600, 0, 3600])
def test_on_stream_time_a_feed_may_lie_in_another_hour_than_the_clock(batch: int, ahead_s: int) -> None:
    received = market(70)
    clock = [Received(m.recv_ns + ahead_s * 10**9, m.raw) for m in received]
    watch = Watch(Opened("00f1a2b3c4d5e6f7", clock[0].recv_ns, "exchange", PRODUCTS, CHANNELS), stream_clock=True)
    log = watch.begin()
    for at in range(0, len(clock), batch):
        log += watch.take(clock[at : at + batch])
    assert not watch.gaps
    times = parse_times([read_head(e.raw).time or "" for e in log if e.kind == "feed"])
    stamps = np.array([e.recv_ns for e in log if e.kind == "feed"])
    known = np.flatnonzero(times >= 0)[0]
    np.testing.assert_array_equal(stamps[known:], np.maximum.accumulate(times)[known:] // 1000 * 1000)
    assert len(records(log, "status")) == len(PRODUCTS)
    kernel = Featurizer()
    kernel.push_log(log)
    assert kernel.counts["late"] == kernel.counts["gaps"] == 0
