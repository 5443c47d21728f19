"""Each fault of the simulated exchange: what the client sees of it, and that it stands in the ledger."""

from __future__ import annotations

import asyncio
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ingestion.exchange import Entry, Exchange, Recorded, Synthetic, read_ledger
from ingestion.exchange.times import event_ns
from tests import exchange_kit as kit
from tests.exchange_kit import Listener, all_of, listening, run, until

Scene = Callable[[Exchange, Listener], Awaitable[None]]


def play(path: Path, scene: Scene, *, tickers: int = 20, **options: Any) -> tuple[Listener, list[Entry]]:
    """Serve tickers with ids 1, 2, … at full speed; return what the client got and the ledger."""
    kept: list[Listener] = []

    async def work() -> None:
        options.setdefault("speed", math.inf)
        async with Exchange(Recorded(kit.tickers(tickers)), ledger=path, **options) as exchange:
            async with listening(exchange.url) as client:
                await scene(exchange, client)
                kept.append(client)

    run(work)
    return kept[0], read_ledger(path)


def scene(fault: str, **what: Any) -> Scene:
    async def orders(exchange: Exchange, client: Listener) -> None:
        exchange.inject(fault, **what)
        await client.subscribe(["BTC-USD"], ["ticker"])
        await all_of(exchange, client)

    return orders


def ids(client: Listener) -> list[int]:
    return [m["trade_id"] for m in client.of("ticker")]


def faulty(entries: list[Entry], fault: str) -> list[Entry]:
    return [e for e in entries if e.fault == fault]


def test_drop(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("drop", kind="ticker", count=2))
    assert ids(client) == list(range(3, 21))
    assert [(e.key, e.sent) for e in faulty(ledger, "drop")] == [("1", False), ("2", False)]


def test_drop_on_a_numbered_connection_leaves_a_hole(tmp_path: Path) -> None:
    async def work() -> None:
        async with Exchange(Recorded(kit.tickers(5)), speed=math.inf) as exchange:
            async with listening(exchange.url_advanced) as client:
                exchange.inject("drop")
                await client.subscribe_advanced(["BTC-USD"], ["ticker"])
                await all_of(exchange, client)
                assert [m["sequence_num"] for m in client.messages] == [0, 2, 3, 4, 5]
                assert kit.kernel_counts(client)["sequence_loss"] == 1

    run(work)


def test_double(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("double"))
    assert ids(client) == [1, *range(1, 21)]
    assert [e.key for e in faulty(ledger, "double")] == ["1", "1"]


def test_swap(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("swap"))
    assert ids(client) == [2, 1, *range(3, 21)]
    assert [e.key for e in faulty(ledger, "swap")] == ["1"]


def test_late(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("late", seconds=0.055))
    assert ids(client) == [2, 3, 4, 5, 6, 1, *range(7, 21)]
    assert client.of("ticker")[5]["time"] < client.of("ticker")[4]["time"]
    assert [e.key for e in faulty(ledger, "late")] == ["1"]


@pytest.mark.parametrize("fault", ["late", "swap"])
def test_what_is_held_back_at_the_end_is_sent(tmp_path: Path, fault: str) -> None:
    client, ledger = play(tmp_path / "l", scene(fault, seconds=60), tickers=1)
    assert ids(client) == [1]
    assert [(e.key, e.sent) for e in faulty(ledger, fault)] == [("1", True)]


def test_future(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("future", seconds=30))
    first, second = (event_ns(m["time"]) or 0 for m in client.of("ticker")[:2])
    assert second - first == 10_000_000 - 30_000_000_000
    assert ids(client) == list(range(1, 21))
    assert [e.key for e in faulty(ledger, "future")] == ["1"]


def test_truncate(tmp_path: Path) -> None:
    client, ledger = play(tmp_path / "l", scene("truncate"))
    with pytest.raises(ValueError, match=r"line 1 column|Expecting|Unterminated"):
        json.loads(client.frames[1])
    assert [json.loads(frame)["trade_id"] for frame in client.frames[2:]] == list(range(2, 21))
    found = faulty(ledger, "truncate")
    assert [(e.key, e.crc) for e in found] == [("1", zlib.crc32(client.frames[1]))]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_garbage_loses_nothing(tmp_path: Path, seed: int) -> None:
    client, ledger = play(tmp_path / "l", scene("garbage", count=3), tickers=10)
    noise = [frame for frame in client.frames if b'"trade_id"' not in frame and b"subscriptions" not in frame]
    assert len(noise) == 3
    for frame in noise:
        with pytest.raises(ValueError, match=r"."):
            json.loads(frame)
    told = [json.loads(frame) for frame in client.frames if frame not in noise]
    assert [m["trade_id"] for m in told[1:]] == list(range(1, 11))
    assert [e.crc for e in faulty(ledger, "garbage")] == [zlib.crc32(frame) for frame in noise]


@pytest.mark.parametrize("fault", ["disconnect", "cut"])
def test_connection_is_cut_without_a_word(tmp_path: Path, fault: str) -> None:
    async def orders(exchange: Exchange, client: Listener) -> None:
        await client.subscribe(["BTC-USD"], ["ticker"])
        await client.wait(lambda c: len(ids(c)) > 3)
        exchange.inject(fault)
        await client.wait(lambda c: c.closed is not None)
        assert client.closed == 1006
        await until(lambda: exchange.summary.closed[fault] == 1)
        assert exchange.summary.faults[fault] == 1
        async with listening(exchange.url) as again:
            await again.subscribe(["BTC-USD"], ["ticker"])
            await again.wait(lambda c: len(ids(c)) > 3)

    client, ledger = play(tmp_path / "l", orders, tickers=1_000, speed=1)
    assert ids(client) == list(range(1, len(ids(client)) + 1))
    events = [(e.connection, e.event) for e in ledger if e.event]
    assert (1, fault) in events and (1, "close") in events and (2, "open") in events
    assert len([e for e in ledger if e.sent and e.connection == 1]) == len(client.frames)


def test_stall_holds_everything_and_loses_nothing(tmp_path: Path) -> None:
    async def orders(exchange: Exchange, client: Listener) -> None:
        await client.subscribe(["BTC-USD"], ["ticker"])
        await client.wait(lambda c: len(ids(c)) > 3)
        exchange.inject("stall", seconds=0.3)
        await all_of(exchange, client)

    client, ledger = play(tmp_path / "l", orders, tickers=80, speed=1)
    assert ids(client) == list(range(1, 81))
    gaps_s = [(b - a) / 1e9 for a, b in zip(client.received_ns, client.received_ns[1:], strict=False)]
    assert max(gaps_s) > 0.25
    assert [e.event for e in ledger if e.event == "stall"] == ["stall"]


def test_half_open_socket_neither_sends_nor_answers(tmp_path: Path) -> None:
    async def orders(exchange: Exchange, client: Listener) -> None:
        await client.subscribe(["BTC-USD"], ["ticker"])
        await client.wait(lambda c: len(ids(c)) > 3)
        assert await asyncio.wait_for(await client.socket.ping(), 2) >= 0
        exchange.inject("half_open")
        pong = await client.socket.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pong, 0.15)
        received, played = len(client.frames), exchange.summary.messages["ticker"]
        await until(lambda: exchange.summary.messages["ticker"] > played + 5)
        assert len(client.frames) == received and client.closed is None
        client.socket.transport.abort()

    _, ledger = play(tmp_path / "l", orders, tickers=1_000, speed=1)
    assert [e.event for e in ledger if e.event == "half_open"] == ["half_open"]


def test_snapshot_that_never_comes_and_one_that_does(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "l"
        async with (
            Exchange(Synthetic(seed=3, seconds=30), speed=60, ledger=path) as exchange,
            listening(exchange.url) as client,
        ):
            exchange.inject("no_snapshot", product="ETH-USD")
            await client.subscribe(["BTC-USD", "ETH-USD"], ["level2_batch"])
            await client.wait(lambda c: sum(m["product_id"] == "ETH-USD" for m in c.of("l2update")) > 3)
            assert [m["product_id"] for m in client.of("snapshot")] == ["BTC-USD"]
            await client.ask(type="unsubscribe", product_ids=["ETH-USD"], channels=["level2_batch"])
            await client.subscribe(["ETH-USD"], ["level2_batch"])
            await client.wait(lambda c: len(c.of("snapshot")) == 2)
            await all_of(exchange, client)
            assert kit.naive_book(client, "ETH-USD") == kit.server_book(exchange, "ETH-USD")
        assert [(e.product, e.sent) for e in read_ledger(path) if e.fault == "no_snapshot"] == [("ETH-USD", False)]

    run(work)


def test_refused_subscription(tmp_path: Path) -> None:
    async def orders(exchange: Exchange, client: Listener) -> None:
        exchange.inject("refuse", channel="ticker")
        await client.subscribe(["BTC-USD"], ["matches", "ticker"])
        await client.wait(lambda c: len(c.frames) == 1)
        assert client.messages[0] == {
            "type": "error",
            "message": "Failed to subscribe",
            "reason": "ticker is refused",
        }
        await client.subscribe(["BTC-USD"], ["ticker"])
        await all_of(exchange, client)

    client, ledger = play(tmp_path / "l", orders)
    assert ids(client) == list(range(1, 21))
    assert [e.event for e in ledger if e.event] == ["open", "refuse", "subscribe", "close"]


def test_refused_channel_stays_refused() -> None:
    async def work() -> None:
        async with Exchange(Recorded(kit.tickers(5)), faults="refuse=level2_batch") as exchange:
            async with listening(exchange.url) as client:
                for _ in range(3):
                    await client.subscribe(["BTC-USD"], ["level2_batch"])
                await client.subscribe(["BTC-USD"], ["ticker"])
                await client.wait(lambda c: len(c.frames) >= 4)
                assert [m["type"] for m in client.messages[:4]] == ["error"] * 3 + ["subscriptions"]

    run(work)


def test_rejected_handshake(tmp_path: Path) -> None:
    async def orders(exchange: Exchange, client: Listener) -> None:
        exchange.inject("reject", count=2)
        for _ in range(2):
            with pytest.raises(InvalidStatus, match="503"):
                await connect(exchange.url)
        async with listening(exchange.url) as again:
            await again.subscribe(["BTC-USD"], ["ticker"])
            await again.wait(lambda c: len(c.frames) > 0)

    _, ledger = play(tmp_path / "l", orders)
    assert [e.event for e in ledger].count("reject") == 2


def test_chances_are_seeded_and_spare_heartbeats_and_answers(tmp_path: Path) -> None:
    spec = "drop=0.05,double=0.05,swap=0.05,late=0.02:0.2s,truncate=0.05,garbage=0.05,future=0.05"

    async def whole(exchange: Exchange, client: Listener) -> None:
        await client.subscribe(["BTC-USD"], ["ticker", "heartbeat"])
        await all_of(exchange, client)

    runs = [play(tmp_path / f"l{i}", whole, tickers=600, faults=spec) for i in range(2)]
    found = [[(e.kind, e.key, e.index, e.fault) for e in ledger if not e.event] for _, ledger in runs]
    assert found[0] == found[1]
    counts = Counter(fault for *_, fault in found[0] if fault)
    assert set(counts) == {"drop", "double", "swap", "late", "truncate", "garbage", "future"}
    assert all(10 <= counts[name] <= 60 for name in ("drop", "swap", "truncate", "garbage", "future"))
    assert not any(fault for kind, _, _, fault in found[0] if kind in ("heartbeat", "subscriptions"))
    _, other = play(tmp_path / "other", whole, tickers=600, faults=f"{spec}", speed=math.inf)
    assert [e.fault for e in other if not e.event] == [fault for *_, fault in found[0]]


def test_heartbeats_are_met_where_asked(tmp_path: Path) -> None:
    async def whole(exchange: Exchange, client: Listener) -> None:
        await client.subscribe(["BTC-USD"], ["ticker", "heartbeat"])
        await all_of(exchange, client)

    client, ledger = play(tmp_path / "l", whole, tickers=600, faults="drop=1@heartbeat")
    assert not client.of("heartbeat") and ids(client) == list(range(1, 601))
    assert {e.kind for e in faulty(ledger, "drop")} == {"heartbeat"}


def test_disconnects_every_so_often(tmp_path: Path) -> None:
    async def work() -> None:
        async with Exchange(Recorded(kit.tickers(3_000)), faults="disconnect=every:0.1s") as exchange:
            for _ in range(3):
                started = time.monotonic()
                async with listening(exchange.url) as client:
                    await client.subscribe(["BTC-USD"], ["ticker"])
                    await client.wait(lambda c: c.closed is not None)
                    assert client.closed == 1006 and time.monotonic() - started >= 0.1
            assert exchange.summary.faults["disconnect"] == 3

    run(work)


def test_orders_by_websocket(tmp_path: Path) -> None:
    async def work() -> None:
        async with Exchange(Recorded(kit.tickers(20)), speed=math.inf) as exchange:
            async with connect(f"{exchange.url}/control") as control, listening(exchange.url) as client:

                async def ask(**said: Any) -> dict[str, Any]:
                    await control.send(json.dumps(said))
                    return dict(json.loads(await control.recv()))

                assert await ask(type="inject", fault="drop", count=3) == {"type": "injected"}
                assert "fault must be one of" in (await ask(type="inject", fault="rain"))["message"]
                assert (await ask(type="inject", fault="drop", often=True))["type"] == "error"
                await client.subscribe(["BTC-USD"], ["ticker"])
                await all_of(exchange, client)
                assert ids(client) == list(range(4, 21))
                summary = await ask(type="summary")
                assert summary["sent"] == len(client.frames) and summary["faults"] == {"drop": 3}
                assert (await ask(type="book", product_id="BTC-USD"))["bids"] == []

    run(work)


def test_reader_of_a_cut_frame_gets_no_half_message(tmp_path: Path) -> None:
    async def work() -> None:
        async with Exchange(Recorded(kit.tickers(20)), speed=1, faults="cut=1@ticker") as exchange:
            async with connect(exchange.url, ping_interval=None) as socket:
                await socket.send('{"type":"subscribe","product_ids":["BTC-USD"],"channels":["heartbeat"]}')
                await socket.recv()
                await socket.send('{"type":"subscribe","product_ids":["BTC-USD"],"channels":["ticker"]}')
                got: list[str | bytes] = []
                with pytest.raises(ConnectionClosed):
                    while True:
                        got.append(await socket.recv())
                assert all(json.loads(message)["type"] != "ticker" for message in got)

    run(work)
