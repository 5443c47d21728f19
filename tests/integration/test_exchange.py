"""The simulated exchange, seen by plain WebSocket clients: it behaves as Coinbase's feeds are documented to."""

from __future__ import annotations

import json
import math
import time
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from feature_repo.errors import StoreError
from ingestion.exchange import Exchange, Limits, Recorded, Synthetic, Taped, read_ledger
from ingestion.exchange.times import event_ns
from ingestion.tapes import find_tapes, read_lines
from tests import exchange_kit as kit
from tests.exchange_kit import all_of, listening, run, until

PRODUCTS = ("BTC-USD", "ETH-USD")
CLEAN = ("malformed", "gaps", "sequence_loss", "crossed", "unknown_delete", "late", "future", "duplicate")


def market(seconds: int = 20) -> Synthetic:
    return Synthetic(seed=7, products=PRODUCTS, seconds=seconds)


def test_exchange_dialect_is_whole_and_clean(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "sent.ndjson"
        async with Exchange(market(), speed=math.inf, ledger=path) as exchange, listening(exchange.url) as client:
            await client.subscribe(PRODUCTS)
            await all_of(exchange, client)
            feed = list(market().items())
            told = [m["type"] for m in client.messages]
            assert told[0] == "subscriptions"
            assert {c["name"]: c["product_ids"] for c in client.messages[0]["channels"]} == {
                name: list(PRODUCTS) for name in ("ticker", "matches", "level2_50", "heartbeat")
            }
            for kind in ("ticker", "match", "l2update", "snapshot", "last_match", "heartbeat"):
                assert told.count(kind) == sum(1 for item in feed if item.kind == kind), kind
            for product in PRODUCTS:
                assert kit.naive_book(client, product) == kit.server_book(exchange, product)
                assert len(exchange.book(product)[0]) > 100
            counts = kit.kernel_counts(client)
            assert {name: counts[name] for name in CLEAN} == dict.fromkeys(CLEAN, 0)
            assert counts["ticker"] == told.count("ticker") > 0
        sent = [e for e in read_ledger(path) if e.sent]
        assert [e.index for e in sent] == list(range(1, len(client.frames) + 1))
        assert [e.crc for e in sent] == [zlib.crc32(frame) for frame in client.frames]
        assert [e.key for e in sent if e.kind == "match"] == [str(m["trade_id"]) for m in client.of("match")]
        assert [e.event for e in read_ledger(path) if e.event] == ["open", "subscribe", "close"]

    run(work)


def test_advanced_dialect_is_numbered_whole_and_clean(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "sent.ndjson"
        async with Exchange(market(), speed=math.inf, ledger=path) as exchange:
            async with listening(exchange.url_advanced) as client:
                await client.subscribe_advanced(PRODUCTS)
                await all_of(exchange, client)
            assert [m["sequence_num"] for m in client.messages] == list(range(len(client.frames)))
            feed = list(market().items())
            for channel, kind in (("ticker", "ticker"), ("market_trades", "match"), ("l2_data", "l2update")):
                updates = [m for m in client.of(channel) if m["events"][0]["type"] == "update"]
                assert len(updates) == sum(1 for item in feed if item.kind == kind), channel
            assert len(client.of("heartbeats")) >= 19
            assert client.of("subscriptions")[-1]["events"][0]["subscriptions"] == {
                "ticker": list(PRODUCTS),
                "market_trades": list(PRODUCTS),
                "level2": list(PRODUCTS),
                "heartbeats": ["heartbeats"],
            }
            for product in PRODUCTS:
                assert kit.naive_book(client, product) == kit.server_book(exchange, product)
            counts = kit.kernel_counts(client)
            assert {name: counts[name] for name in CLEAN} == dict.fromkeys(CLEAN, 0)
        sent = [e for e in read_ledger(path) if e.sent]
        assert [e.seq for e in sent] == list(range(len(client.frames)))
        assert [e.crc for e in sent] == [zlib.crc32(frame) for frame in client.frames]

    run(work)


def test_both_dialects_tell_the_same_trades_at_once() -> None:
    async def work() -> None:
        async with (
            Exchange(market(), speed=math.inf) as exchange,
            listening(exchange.url) as plain,
            listening(exchange.url) as numbered,  # told apart by the form of its request
        ):
            await numbered.subscribe_advanced(["BTC-USD"], ["market_trades"])
            await plain.subscribe(["BTC-USD"], ["matches"])
            await exchange.ended.wait()
            await until(lambda: len(plain.frames) + len(numbered.frames) == exchange.summary.sent)
            there = {(m["trade_id"], m["price"], m["size"], m["time"]) for m in plain.of("match")}
            told = [t for m in numbered.of("market_trades") for e in m["events"] for t in e["trades"]]
            assert there <= {(int(t["trade_id"]), t["price"], t["size"], t["time"]) for t in told}
            assert {m["side"] for m in plain.of("match")} == {t["side"].lower() for t in told}

    run(work)


def test_late_comer_gets_the_book_as_it_stands() -> None:
    async def work() -> None:
        async with (
            Exchange(market(60), speed=200) as exchange,
            listening(exchange.url) as first,
            listening(exchange.url) as second,
        ):
            await first.subscribe(["BTC-USD"])
            await first.wait(lambda c: len(c.of("ticker")) > 20)
            await second.subscribe(["BTC-USD"])
            await exchange.ended.wait()
            await until(lambda: len(first.frames) + len(second.frames) == exchange.summary.sent)
            told = second.messages
            assert sorted(m["type"] for m in told[1:4]) == ["last_match", "snapshot", "ticker"]
            newest = next(m for m in told if m["type"] == "ticker")["trade_id"]
            assert newest == next(m for m in told if m["type"] == "last_match")["trade_id"]
            assert newest < next(m for m in told if m["type"] == "match")["trade_id"] == newest + 1
            book = kit.server_book(exchange, "BTC-USD")
            assert kit.naive_book(first, "BTC-USD") == kit.naive_book(second, "BTC-USD") == book
            assert kit.kernel_counts(second)["gaps"] == 0

    run(work)


def test_resubscribing_one_book_gives_a_fresh_snapshot_and_disturbs_no_other() -> None:
    async def work() -> None:
        async with Exchange(market(60), speed=100) as exchange, listening(exchange.url) as client:
            await client.subscribe(PRODUCTS)
            await client.wait(lambda c: len(c.of("l2update")) > 20)
            await client.ask(type="unsubscribe", product_ids=["BTC-USD"], channels=["level2_batch"])
            await client.wait(lambda c: len(c.of("subscriptions")) == 2)
            left = {c["name"]: c["product_ids"] for c in client.of("subscriptions")[1]["channels"]}
            assert left["level2_50"] == ["ETH-USD"] and left["ticker"] == list(PRODUCTS)
            await client.subscribe(["BTC-USD"], ["level2_batch"])
            await all_of(exchange, client)
            kinds = [(m["type"], m.get("product_id")) for m in client.messages]
            without = kinds[kinds.index(("subscriptions", None), 1) :]
            silence = without[: without.index(("snapshot", "BTC-USD"))]
            assert ("l2update", "BTC-USD") not in silence
            assert kinds.count(("snapshot", "BTC-USD")) == 2 and kinds.count(("snapshot", "ETH-USD")) == 1
            for product in PRODUCTS:
                assert kit.naive_book(client, product) == kit.server_book(exchange, product)

    run(work)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"type": "subscribe", "product_ids": ["DOGE-USD"], "channels": ["ticker"]}, "DOGE-USD is not a valid product"),
        ({"type": "subscribe", "product_ids": ["BTC-USD"], "channels": ["candle"]}, "candle is not a valid channel"),
        ({"type": "subscribe", "product_ids": ["BTC-USD"], "channels": ["level2"]}, "require authentication"),
        ({"type": "subscribe", "channels": ["heartbeat"]}, "at least one product ID for channel heartbeat"),
        ({"type": "subscribe", "product_ids": ["BTC-USD"]}, "at least one channel"),
        ({"type": "greet"}, "not a valid type"),
        ({"type": "subscribe", "product_ids": "BTC-USD", "channels": ["ticker"]}, "array"),
        ("{not json", ""),
    ],
)
def test_wrong_request_is_answered_and_changes_nothing(request_: object, reason: str) -> None:
    async def work() -> None:
        async with Exchange(market(), speed=math.inf) as exchange, listening(exchange.url) as client:
            await client.socket.send(request_ if isinstance(request_, str) else json.dumps(request_))
            await client.wait(lambda c: len(c.frames) == 1)
            answer = client.messages[0]
            assert answer["type"] == "error" and reason in answer.get("reason", "")
            await client.subscribe(["BTC-USD"], ["ticker", {"name": "heartbeat", "product_ids": ["ETH-USD"]}])  # type: ignore[list-item]
            await client.wait(lambda c: len(c.of("subscriptions")) == 1)
            named = {c["name"]: c["product_ids"] for c in client.of("subscriptions")[0]["channels"]}
            assert named == {"ticker": ["BTC-USD"], "heartbeat": ["BTC-USD", "ETH-USD"]}

    run(work)


def test_unsubscribed_connection_is_closed_in_time() -> None:
    async def work() -> None:
        limits = Limits(subscribe_s=0.1)
        started = time.monotonic()
        async with Exchange(market(), limits=limits) as exchange, listening(exchange.url) as client:
            await client.wait(lambda c: c.closed is not None)
            assert client.closed == 1008 and time.monotonic() - started >= 0.1

    run(work)


def test_idle_advanced_connection_is_closed_unless_it_has_heartbeats() -> None:
    async def work() -> None:
        limits = Limits(idle_s=(0.2, 0.3))
        feed = Recorded([kit.ticker(0), kit.ticker(3_000, 2)])
        async with (
            Exchange(feed, speed=20, limits=limits) as exchange,
            listening(exchange.url_advanced) as quiet,
            listening(exchange.url_advanced) as beating,
            listening(exchange.url) as other,
        ):
            await beating.subscribe_advanced(["BTC-USD"], ["ticker", "heartbeats"])
            await quiet.subscribe_advanced(["BTC-USD"], ["ticker"])
            await other.subscribe(["BTC-USD"], ["ticker"])
            await quiet.wait(lambda c: c.closed is not None)
            await until(lambda: exchange.summary.closed["idle"] == 1)  # counted after the client was told
            counters = [m["events"][0]["heartbeat_counter"] for m in beating.of("heartbeats")]
            assert beating.closed is other.closed is None
            assert counters == list(range(1, len(counters) + 1)) and len(counters) >= 3

    run(work)


def test_heartbeats_are_made_where_a_tape_has_none() -> None:
    async def work() -> None:
        feed = Recorded(kit.tickers(60, apart_s=0.1))
        async with Exchange(feed, speed=math.inf) as exchange, listening(exchange.url) as client:
            await client.subscribe(["BTC-USD"], ["ticker", "heartbeat"])
            await all_of(exchange, client)
            beats = client.of("heartbeat")
            assert [m["last_trade_id"] for m in beats] == [10, 20, 30, 40, 50]
            assert [m["sequence"] for m in beats] == [100, 200, 300, 400, 500]
            assert kit.kernel_counts(client)["gaps"] == 0

    run(work)


@pytest.mark.parametrize("speed", [3_000, math.inf])
def test_slow_client_is_cut_off_and_others_go_on(speed: float) -> None:
    async def work() -> None:
        feed = Recorded(kit.tickers(30_000))
        limits = Limits(queue_bytes=100_000, patience_s=0.2)
        async with Exchange(feed, speed=speed, limits=limits) as exchange, listening(exchange.url) as quick:
            async with connect(exchange.url, max_queue=1, max_size=None, ping_interval=None, close_timeout=0.1) as slow:
                await slow.send(json.dumps({"type": "subscribe", "product_ids": ["BTC-USD"], "channels": ["ticker"]}))
                await quick.subscribe(["BTC-USD"], ["ticker"])
                await until(lambda: exchange.summary.closed["slow client"] == 1)
            await quick.wait(lambda c: len(c.frames) == 1 + 30_000)  # its confirmation, and all of the feed
            assert quick.closed is None

    run(work)


def test_feed_begins_now_and_keeps_its_distances() -> None:
    async def work() -> None:
        recorded = [kit.ticker(0.5), kit.ticker(0.512345, 2), kit.ticker(2.75, 3)]
        async with Exchange(Recorded(recorded), speed=50) as exchange, listening(exchange.url) as client:
            before = time.time_ns()
            await client.subscribe(["BTC-USD"], ["ticker"])
            await client.wait(lambda c: len(c.of("ticker")) == 3)
            times = [event_ns(m["time"]) for m in client.of("ticker")]
            assert all(t is not None for t in times)
            first, second, third = (t for t in times if t is not None)
            assert before - 2_000_000 <= first <= client.received_ns[1]
            assert (second - first, third - first) == (12_345_000, 2_250_000_000)
            assert client.of("ticker")[1]["time"][-4:-1] == "345"  # digits below the millisecond are the recording's

    run(work)


def test_squeezed_times_keep_step_with_the_clock() -> None:
    async def work() -> None:
        feed = Recorded(kit.tickers(400, apart_s=0.05))
        async with Exchange(feed, speed=40, times="squeeze") as exchange, listening(exchange.url) as client:
            await client.subscribe(["BTC-USD"], ["ticker"])
            await all_of(exchange, client)
            times = [event_ns(m["time"]) for m in client.of("ticker")]
            lags = [(got - (t or 0)) / 1e9 for got, t in zip(client.received_ns[1:], times, strict=True)]
            assert len(lags) == 400 and min(lags) > -0.01 and sorted(lags)[200] < 0.2

    run(work)


def test_pace_is_that_of_the_recording() -> None:
    async def work() -> None:
        feed = Recorded(kit.tickers(50))
        async with Exchange(feed, speed=1) as exchange, listening(exchange.url) as client:
            began_ns = time.time_ns()  # from before the first message, which may come late to its receiver
            await client.subscribe(["BTC-USD"], ["ticker"])
            await all_of(exchange, client)
            took_s = (client.received_ns[-1] - began_ns) / 1e9
            assert 0.48 <= took_s < 2.0

    run(work)


def test_looped_feed_begins_anew_with_a_restart() -> None:
    async def work() -> None:
        feed = Recorded(kit.tickers(5))
        async with Exchange(feed, speed=10, loop=True) as exchange:
            seen = []
            for _ in range(2):
                async with listening(exchange.url) as client:
                    await client.subscribe(["BTC-USD"], ["ticker"])
                    await client.wait(lambda c: c.closed is not None)
                assert client.closed == 1012
                seen.append([m["trade_id"] for m in client.of("ticker")])
            assert seen == [[1, 2, 3, 4, 5]] * 2

    run(work)


def test_generated_market_goes_on_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr("ingestion.exchange.feeds.SEGMENT_S", 10)
        async with Exchange(market(35), speed=math.inf) as exchange, listening(exchange.url) as client:
            await client.subscribe(["BTC-USD"])
            await all_of(exchange, client)
            ids = [m["trade_id"] for m in client.of("match")]
            assert ids == list(range(ids[0], ids[0] + len(ids))) and len(ids) > 50
            assert len(client.of("snapshot")) == 1
            assert kit.naive_book(client, "BTC-USD") == kit.server_book(exchange, "BTC-USD")
            counts = kit.kernel_counts(client)
            assert {name: counts[name] for name in CLEAN} == dict.fromkeys(CLEAN, 0)
            prices = [float(m["price"]) for m in client.of("ticker")]
            assert max(abs(b / a - 1) for a, b in pairwise(prices)) < 0.01

    run(work)


def test_paths_that_are_not_there_and_a_dialect_that_cannot_be_served(shared_data: Path) -> None:
    async def work() -> None:
        tape = Taped([shared_data / "advanced_BTC-ETH_20260809_24s.ndjson.gz"])
        async with Exchange(tape) as exchange:
            with pytest.raises(InvalidStatus, match="404"):
                await connect(f"{exchange.url}/nowhere")
            async with listening(exchange.url_advanced.replace("/advanced", "/exchange")) as client:
                await client.subscribe(["BTC-USD"], ["ticker"])
                await client.wait(lambda c: len(c.frames) == 1)
                assert "Advanced Trade" in client.messages[0]["reason"]

    run(work)


def test_busy_port_is_named() -> None:
    async def work() -> None:
        async with Exchange(market()) as exchange:
            with pytest.raises(StoreError, match=f"port {exchange.port}.*VOLSPIKE_EXCHANGE_PORT"):
                async with Exchange(market(), port=exchange.port):
                    pass

    run(work)


def test_recorded_exchange_tape_is_served_whole(shared_data: Path) -> None:
    async def work() -> None:
        path = shared_data / "exchange_10products_20210417_31s.ndjson.gz"
        tape = Taped([path], batch_ms=0)
        async with Exchange(tape, speed=math.inf) as exchange, listening(exchange.url) as client:
            await client.subscribe(tape.products)
            await all_of(exchange, client)
            lines = [json.loads(line) for block in read_lines(find_tapes([path])[0]) for line in block.splitlines()]
            for kind in ("l2update", "match", "ticker", "snapshot", "last_match"):
                told = [_timeless(m) for m in client.of(kind)]
                taped = [_timeless(m) for m in lines if m["type"] == kind]
                assert sorted(told) == sorted(taped), kind
                if kind in ("l2update", "match"):
                    assert told == taped
            for product in tape.products:
                assert kit.naive_book(client, product) == kit.server_book(exchange, product)

    run(work)


def test_recorded_tape_comes_in_batches(shared_data: Path) -> None:
    async def work() -> None:
        tape = Taped([shared_data / "exchange_10products_20210417_31s.ndjson.gz"], ["YFI-BTC"])
        plain = Taped([shared_data / "exchange_10products_20210417_31s.ndjson.gz"], ["YFI-BTC"], batch_ms=0)
        items = [item for item in tape.items() if item.kind == "l2update"]
        assert all(b.recv_ns - a.recv_ns >= 50_000_000 for a, b in pairwise(items))
        assert len(items) < sum(1 for item in plain.items() if item.kind == "l2update")
        async with (
            Exchange(tape, speed=math.inf) as exchange,
            Exchange(plain, speed=math.inf) as other,
            listening(exchange.url) as client,
            listening(other.url) as full,
        ):
            for one in (client, full):
                await one.subscribe(["YFI-BTC"])
            await all_of(exchange, client)
            await all_of(other, full)
            assert kit.naive_book(client, "YFI-BTC") == kit.naive_book(full, "YFI-BTC")

    run(work)


def test_recorded_advanced_tape_is_served_whole(shared_data: Path) -> None:
    async def work() -> None:
        path = shared_data / "advanced_BTC-ETH_20260809_24s.ndjson.gz"
        tape = Taped([path])
        async with Exchange(tape, speed=math.inf) as exchange, listening(exchange.url) as client:
            await client.subscribe_advanced(tape.products)
            await all_of(exchange, client)
            assert [m["sequence_num"] for m in client.messages] == list(range(len(client.frames)))
            lines = [json.loads(line) for block in read_lines(find_tapes([path])[0]) for line in block.splitlines()]
            for channel in ("l2_data", "market_trades", "ticker"):
                told = [_levels(m) for m in client.of(channel) if m["events"][0]["type"] == "update"]
                taped = [_levels(m) for m in lines if m["channel"] == channel and m["events"][0]["type"] == "update"]
                assert told == taped and told, channel
            for product in tape.products:
                assert kit.naive_book(client, product) == kit.server_book(exchange, product)
                assert len(exchange.book(product)[0]) > 1_000
            counts = kit.kernel_counts(client)
            assert {n: counts[n] for n in ("malformed", "gaps", "sequence_loss", "crossed")} == dict.fromkeys(
                ("malformed", "gaps", "sequence_loss", "crossed"), 0
            )

    run(work)


def _timeless(message: dict[str, object]) -> str:
    """All of an Exchange message but its time; levels of a snapshot in order."""
    said = {k: v for k, v in message.items() if k != "time"}
    return json.dumps(said, sort_keys=True)


def _levels(message: dict[str, object]) -> str:
    """All of an Advanced Trade message but times and number."""
    return json.dumps(_strip(message["events"]), sort_keys=True)


def _strip(value: object) -> object:
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items() if k not in ("time", "event_time", "timestamp")}
    if isinstance(value, list):
        return [_strip(v) for v in value]
    return value
