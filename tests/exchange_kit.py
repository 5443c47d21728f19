"""A plain WebSocket client of the simulated exchange, and a naive reading of what it received."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ingestion.exchange import Exchange, Item
from ingestion.kernel import Featurizer
from tests.oracle.book import Book

CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")
ADVANCED = ("ticker", "market_trades", "level2", "heartbeats")
DEADLINE_S = 20.0
T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a test's coroutine on the loop that the command uses, with a bound on its time."""

    async def bounded() -> T:
        return await asyncio.wait_for(work(), 3 * DEADLINE_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "the condition never came to hold"
        await asyncio.sleep(0.002)


class Listener:
    """A client that keeps all it receives."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[bytes] = []
        self.received_ns: list[int] = []
        self.closed: int | None = None
        self._messages: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                data = await self.socket.recv(decode=False)
                self.received_ns.append(time.time_ns())
                self.frames.append(data)
        except ConnectionClosed as error:
            self.closed = error.rcvd.code if error.rcvd else 1006

    async def ask(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def subscribe(self, products: Sequence[str], channels: Sequence[str] = CHANNELS) -> None:
        await self.ask(type="subscribe", product_ids=list(products), channels=list(channels))

    async def subscribe_advanced(self, products: Sequence[str], channels: Sequence[str] = ADVANCED) -> None:
        for channel in channels:
            await self.ask(type="subscribe", product_ids=list(products), channel=channel)

    @property
    def messages(self) -> list[dict[str, Any]]:
        self._messages += [json.loads(frame) for frame in self.frames[len(self._messages) :]]
        return self._messages

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [m for m in self.messages if m.get("type", m.get("channel")) in types]

    async def wait(self, holds: Callable[[Listener], bool]) -> None:
        await until(lambda: holds(self))

    async def stop(self) -> None:
        await self.socket.close()
        await self._reader


@asynccontextmanager
async def listening(url: str, **options: Any) -> AsyncIterator[Listener]:
    async with connect(url, max_size=None, ping_interval=None, **options) as socket:
        listener = Listener(socket)
        try:
            yield listener
        finally:
            await listener.stop()


async def all_of(exchange: Exchange, listener: Listener) -> None:
    """Wait until the feed has ended and its only client has all of it, or is closed."""
    await exchange.ended.wait()
    await until(lambda: listener.closed is not None or len(listener.frames) >= exchange.summary.sent)


def kernel_counts(listener: Listener) -> Counter[str]:
    """What the kernel counts in a session of these messages; without receive times, which a hurried feed outruns."""
    featurizer = Featurizer()
    featurizer.push_lines(b"\n".join(listener.frames))
    return featurizer.counts


def naive_book(listener: Listener, product: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Bids and asks, best first, by the plainest reading of the messages."""
    book = Book()
    names = {"buy": "bid", "sell": "ask", "bid": "bid", "offer": "ask"}
    for m in listener.messages:
        if m.get("type") == "snapshot" and m["product_id"] == product:
            book = Book(
                (side, float(price), float(size))
                for side, levels in (("bid", m["bids"]), ("ask", m["asks"]))
                for price, size in levels
            )
        elif m.get("type") == "l2update" and m["product_id"] == product:
            book.apply((names[side], float(price), float(size)) for side, price, size in m["changes"])
        elif m.get("channel") == "l2_data":
            for event in m["events"]:
                if event["product_id"] == product:
                    if event["type"] == "snapshot":
                        book = Book()
                    book.apply(
                        (names[u["side"]], float(u["price_level"]), float(u["new_quantity"])) for u in event["updates"]
                    )
    return book.sides["bid"].best(100_000), book.sides["ask"].best(100_000)


def server_book(exchange: Exchange, product: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The exchange's own book in numbers."""
    bids, asks = exchange.book(product)
    return [(float(p), float(s)) for p, s in bids], [(float(p), float(s)) for p, s in asks]


def ticker(at_s: float, trade_id: int = 1, product: str = "BTC-USD") -> Item:
    """A ticker of a made feed, ``at_s`` seconds after 2025-12-01."""
    recv_ns = 1_764_547_200_000_000_000 + int(at_s * 1e9)
    said = {
        "type": "ticker",
        "sequence": 10 * trade_id,
        "product_id": product,
        "price": "100.00",
        "best_bid": "99.99",
        "best_bid_size": "1.0",
        "best_ask": "100.01",
        "best_ask_size": "2.0",
        "side": "buy",
        "time": f"2025-12-01T{int(at_s) // 3600:02d}:{int(at_s) // 60 % 60:02d}:{at_s % 60:09.6f}Z",
        "trade_id": trade_id,
        "last_size": "0.5",
    }
    return Item(recv_ns, "ticker", product, json.dumps(said, separators=(",", ":")).encode())


def tickers(count: int, apart_s: float = 0.01) -> list[Item]:
    """Tickers with trade ids 1, 2, …"""
    return [ticker(i * apart_s, i + 1) for i in range(count)]
