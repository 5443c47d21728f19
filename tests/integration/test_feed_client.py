"""The connection to a feed: subscribed, read, found dead, opened again, or refused in one line."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from feature_repo.errors import InputError, UsageError
from ingestion.feed.client import Client
from ingestion.feed.dialects import Feed, checked_channels, feed_of, requests
from ingestion.feed.inbox import Closed, Inbox, Item, Opened, Received
from tests.conftest import free_port
from tests.feed_server import FeedServer, feed_server, plays

CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")


def run(
    url: str,
    until: Callable[[list[Item], Client], bool],
    *,
    dialect: str = "exchange",
    products: tuple[str, ...] = ("BTC-USD", "ETH-USD"),
    beside: Callable[[Client], Coroutine[Any, Any, None]] | None = None,
    **options: Any,
) -> list[Item]:
    """Run a client until a condition on what it received holds; fail after ten seconds."""
    items: list[Item] = []

    async def main() -> None:
        inbox = Inbox()
        client = Client(Feed(url, dialect), products, CHANNELS, inbox, **options)  # type: ignore[arg-type]
        running = asyncio.create_task(client.run())
        other = asyncio.create_task(beside(client)) if beside else None
        deadline = time.monotonic() + 10
        try:
            while not running.done() and not until(items, client):
                items.extend(inbox.take(1000, 0))
                assert time.monotonic() < deadline, items
                await asyncio.sleep(0.005)
        finally:
            client.stop()
            if other:
                await other
            await running
            items.extend(inbox.take(10**6, 0))

    asyncio.run(main())
    return items


def received(items: list[Item]) -> list[bytes]:
    return [item.raw for item in items if isinstance(item, Received)]


def opened(items: list[Item]) -> list[Opened]:
    return [item for item in items if isinstance(item, Opened)]


def test_messages_arrive_in_order_stamped_after_their_session() -> None:
    messages = [b'{"type":"ticker","n":%d}' % n for n in range(2000)]
    began = time.time_ns()
    with feed_server(plays(messages)) as server:
        items = run(server.url, lambda items, _: len(items) > 2000)
    assert isinstance(items[0], Opened)
    assert items[0].dialect == "exchange"
    assert received(items) == messages
    stamps = [item.recv_ns for item in items if isinstance(item, Received)]
    assert all(began < t < time.time_ns() and t % 1000 == 0 for t in stamps)
    assert stamps == sorted(stamps)
    assert items[-1] == Closed("stopped")


def test_the_exchange_takes_one_request_and_advanced_trade_one_a_channel() -> None:
    with feed_server(plays([b"{}"])) as server:
        run(server.url, lambda items, _: len(items) > 1)
        exchange = list(server.requests)
    with feed_server(plays([b"{}"])) as server:
        run(server.url, lambda items, _: len(items) > 1 and len(server.requests) == 4, dialect="advanced")
        advanced = list(server.requests)
    ids = ["BTC-USD", "ETH-USD"]
    assert exchange == [{"type": "subscribe", "product_ids": ids, "channels": list(CHANNELS)}]
    assert [r["channel"] for r in advanced] == ["ticker", "market_trades", "level2", "heartbeats"]
    assert all(r["product_ids"] == ids for r in advanced)


def test_a_lost_connection_is_a_new_session() -> None:
    async def once(server: FeedServer, connection: ServerConnection, request: dict[str, Any]) -> None:
        await connection.send(json.dumps({"type": "ticker", "connection": server.connections}))
        if server.connections == 1:
            connection.transport.abort()

    with feed_server(once) as server:
        items = run(server.url, lambda items, _: len(received(items)) == 2)
    sessions = [o.session for o in opened(items)]
    assert len(sessions) == len(set(sessions)) == 2
    assert all(len(s) == 16 and int(s, 16) >= 0 for s in sessions)
    assert any(isinstance(item, Closed) and item.reason == "connection lost" for item in items)


def test_a_half_open_socket_is_found_by_its_silence() -> None:
    async def mute(server: FeedServer, connection: ServerConnection, request: dict[str, Any]) -> None:
        await connection.send(b'{"type":"ticker"}', text=True)

    with feed_server(mute) as server:
        items = run(server.url, lambda items, _: len(opened(items)) == 2, quiet_s=0.3)
    assert Closed("silent for 0.3 s") in items


def test_a_resync_asks_for_one_product_s_book_only() -> None:
    async def ask(client: Client) -> None:
        while client._connection is None:
            await asyncio.sleep(0.005)
        client.resubscribe("ETH-USD")
        client.resubscribe("not ours")

    with feed_server(plays([b"{}"])) as server:
        run(server.url, lambda items, _: len(server.requests) == 3, beside=ask)
        later = server.requests[1:]
    assert later == [
        {"type": kind, "product_ids": ["ETH-USD"], "channels": ["level2_batch"]}
        for kind in ("unsubscribe", "subscribe")
    ]


def test_a_message_of_six_megabytes_is_taken() -> None:
    big = b'{"type":"snapshot","x":"' + b"y" * 6_000_000 + b'"}'
    with feed_server(plays([big])) as server:
        assert received(run(server.url, lambda items, _: len(items) > 1)) == [big]


def test_garbage_frames_are_handed_on_and_end_nothing() -> None:
    bad = [b"\xff\xfe\x00", b"", b"{", b'{"type":"ticker"}']

    async def send(server: FeedServer, connection: ServerConnection, request: dict[str, Any]) -> None:
        for raw in bad:
            await connection.send(raw, text=raw.startswith(b"{"))

    with feed_server(send) as server:
        items = run(server.url, lambda items, _: len(received(items)) == 4)
    assert received(items) == bad
    assert len(opened(items)) == 1


def test_an_unknown_product_is_left_out_where_there_are_others() -> None:
    async def refuse(client: Client) -> None:
        while client._connection is None:
            await asyncio.sleep(0.005)
        client.refused("Failed to subscribe: BTC-USD is not a valid product", frozenset())
        client.refused("Failed to subscribe: BTC-USD is not a valid product", frozenset())

    with feed_server(plays([b"{}"])) as server:
        run(server.url, lambda items, _: len(server.requests) == 2, beside=refuse)
        assert server.requests[1]["product_ids"] == ["ETH-USD"]


def test_a_refused_subscription_is_an_error_that_names_it() -> None:
    async def refuse(client: Client) -> None:
        client.refused("Failed to subscribe: level2 requires authentication", frozenset())

    with (
        feed_server(plays([b"{}"])) as server,
        pytest.raises(InputError, match=r"refused to subscribe BTC-USD,ETH-USD with .*authentication"),
    ):
        run(server.url, lambda *_: False, beside=refuse)


def test_complaints_in_mid_stream_end_nothing() -> None:
    async def refuse(client: Client) -> None:
        client.refused("BTC-USD is odd", frozenset({"BTC-USD"}))

    with feed_server(plays([b"{}"])) as server:
        run(server.url, lambda items, _: len(items) > 1, beside=refuse)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Listen on a port and answer whatever comes with the same bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if ended.is_set():
                        return
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join(5)


class Plain(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_is_told_from_a_feed() -> None:
    with HTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(InputError, match="answered HTTP 200 instead of opening a WebSocket"):
                run(f"ws://127.0.0.1:{server.server_port}", lambda *_: False)
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_speaks_something_else_is_told() -> None:
    with answering(b"SSH-2.0-OpenSSH\r\n") as port, pytest.raises(InputError, match="doesn't answer as a WebSocket"):
        run(f"ws://127.0.0.1:{port}", lambda *_: False)


def test_tls_where_there_is_none_is_told() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port, pytest.raises(InputError, match="TLS failed"):
        run(f"wss://127.0.0.1:{port}", lambda *_: False)


def test_a_server_that_hangs_up_on_tls_is_told() -> None:
    with answering(b"") as port, pytest.raises(InputError, match="TLS failed"):
        run(f"wss://127.0.0.1:{port}", lambda *_: False, start_s=0.5)


def test_a_run_that_never_connected_is_no_success() -> None:
    looks = iter(range(40))
    with pytest.raises(InputError, match="can't be reached"):
        run(f"ws://127.0.0.1:{free_port()}", lambda *_: next(looks, None) is None, start_s=60.0)


def test_nobody_there_is_told_after_some_tries() -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"can't be reached.*check address and network"):
        run(f"ws://127.0.0.1:{free_port()}", lambda *_: False, start_s=0.5)
    assert 0.4 < time.monotonic() - began < 5


def test_a_server_that_comes_late_is_waited_for() -> None:
    port = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))  # taken, not listening: connections are refused until it is given back
        items: list[Item] = []
        threading.Thread(target=lambda: items.extend(late(port)), daemon=True).start()
    with feed_server(plays([b"{}"]), port=port) as server:
        wait = threading.Event()
        deadline = time.monotonic() + 10
        while not items:
            assert time.monotonic() < deadline
            wait.wait(0.02)
        assert server.connections == 1
    assert received(items) == [b"{}"]


def late(port: int) -> list[Item]:
    return run(f"ws://127.0.0.1:{port}", lambda items, _: len(items) > 1)


@pytest.mark.parametrize("name", ["coinbase", "http://127.0.0.1", "ws://", "ws://host:port", ""])
def test_what_is_no_feed_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="expected exchange, advanced or an address"):
        feed_of(name)


def test_channels_are_known_by_both_names_and_others_refused() -> None:
    assert checked_channels(["market_trades", "matches", "level2"]) == ("matches", "level2_batch")
    with pytest.raises(UsageError, match="full,ticker, must be some of"):
        checked_channels(["full", "ticker"])
    with pytest.raises(UsageError, match="none, must be some of"):
        checked_channels([])


def test_requests_name_what_they_want() -> None:
    (text,) = requests("exchange", "unsubscribe", ["A-B"], ["level2_batch"])
    assert json.loads(text) == {"type": "unsubscribe", "product_ids": ["A-B"], "channels": ["level2_batch"]}
