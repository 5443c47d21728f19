"""A simulated exchange and an ingestion in threads of the test, and what a topic holds afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from ingestion.exchange import Exchange
from ingestion.exchange.feeds import Feed
from ingestion.feed import Order, Report
from ingestion.feed.pipeline import ingest
from ingestion.topics import Envelope, read
from tests.log_kit import kept

T = TypeVar("T")
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")


@contextmanager
def serving(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Run an asynchronous server in a thread of its own for the time of the block."""
    up, down = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    found: list[T] = []

    async def main() -> None:
        async with server as running:
            found.append(running)
            up.set()
            await down.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(10)
        loop.close()


@contextmanager
def exchange(feed: Feed, **options: Any) -> Iterator[Exchange]:
    """Run a simulated exchange in a thread of its own."""
    with serving(Exchange(feed, **options)) as server:
        yield server


class Running:
    """An ingestion under way."""

    def __init__(self, order: Order, servers: str) -> None:
        self.report = Report()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(order, servers), daemon=True)
        self._thread.start()

    def _run(self, order: Order, servers: str) -> None:
        try:
            self.report = ingest(order, servers, show=self._see, stop=self._stop)
        except BaseException as error:
            self.error = error

    def _see(self, report: Report) -> None:
        self.report = report

    def end(self) -> Report:
        """Stop it and return its report."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.report


@contextmanager
def ingesting(url: str, servers: str, topic: str, **options: Any) -> Iterator[Running]:
    """Ingest a feed into a topic until the end of the block."""
    products: Sequence[str] = options.pop("products", PRODUCTS)
    running = Running(Order(url, products, options.pop("channels", CHANNELS), topic, **options), servers)
    try:
        yield running
    finally:
        if running.error is None:
            running.end()


def partitions(servers: str, topic: str) -> list[list[Envelope]]:
    """Return what a reader keeps of each partition: whole messages, each number of a session once."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "enable.auto.commit": False})
    try:
        count = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(count)])
        found: list[list[Envelope]] = []
        for p in range(count):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)
            assert low == 0, "the broker has dropped the beginning: send less"
            found.append([Envelope("", high, 0, "", "feed", "exchange", b"")])  # how many are to come
        left = sum(p[0].n for p in found)
        raw: list[list[Any]] = [[] for _ in range(count)]
        while left:
            message = consumer.poll(10)
            assert message is not None and message.error() is None, f"{left} messages missing"
            raw[message.partition()].append(message)
            left -= 1
        return [kept(read(m.key(), m.value(), m.headers()) for m in messages) for messages in raw]
    finally:
        consumer.close()


def log_of(servers: str, topic: str) -> list[Envelope]:
    """Return the whole log: the partitions' records by session, in order of their numbers, each once."""
    sessions: dict[str, dict[int, Envelope]] = {}
    for records in partitions(servers, topic):
        for e in records:
            sessions.setdefault(e.session, {})[e.n] = e
    began = {s: min(e.recv_ns for e in records.values()) for s, records in sessions.items()}
    return [sessions[s][n] for s in sorted(sessions, key=lambda s: began[s]) for n in sorted(sessions[s])]
