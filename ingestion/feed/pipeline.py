"""Ingestion: a feed to ``ticks.raw``, with tapes, until it is told to stop.

::

    exchange ──► Client (an event loop that only stamps) ──► Inbox ──► Worker (a thread: detect, number, record, send)
        ▲                                                                │
        └──────────────────── snapshots asked for ───────────────────────┘

One that begins again, as after a kill, connects at once: what the worker needs, the kernel above all, is loaded in its
thread meanwhile, and what comes waits in the inbox. So the gap is as long as a connection takes.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_repo.errors import InputError, UsageError
from feature_repo.names import is_name
from infra.imports import arrow_without_pandas
from infra.settings import settings
from ingestion import cluster, kafka
from ingestion.feed.client import Client
from ingestion.feed.dialects import Feed, checked_channels, feed_of
from ingestion.feed.inbox import Inbox
from ingestion.feed.remembered import Topic, recall, remember
from ingestion.feed.report import Report
from ingestion.feed.spill import Spill
from ingestion.topics import RAW, require_name
from ingestion.tuning import leave_alone, tuned

if TYPE_CHECKING:
    from ingestion.feed.worker import Worker

FLUSH_S: Final = 10.0
"""How long the end waits for the broker; what it hasn't acknowledged by then stays in the spill."""
_SHOW_S: Final = 0.5
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """What to ingest.

    Attributes
    ----------
    feed
        ``exchange``, ``advanced`` or a WebSocket address.
    products, channels
        What to subscribe; channels by their names on the Exchange feed.
    topic
        Topic of the raw log.
    minutes
        How long; None for until told to stop.
    save_raw
        Whether to record tapes.
    """

    feed: str
    products: Sequence[str]
    channels: Sequence[str]
    topic: str = RAW
    minutes: float | None = None
    save_raw: bool = False


def ingest(
    order: Order,
    servers: str,
    *,
    show: Callable[[Report], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Report:
    """Read a feed into the raw log until the time is over or a signal comes.

    SIGINT and SIGTERM end it as the end of its time does: what was received is logged, and acknowledged or spilled.

    Parameters
    ----------
    order
        What to ingest.
    servers
        Kafka's bootstrap servers.
    show
        Called twice a second with the figures so far.
    stop
        Ends it when set: for who runs it in a thread, where no signal comes.

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        If the feed, a product or a channel makes no sense.
    InputError
        If the feed can't be reached, or refuses the subscription.
    StoreError
        If the broker can't be reached at the first start, the topic has too few partitions, or the data folder can't be
        written. One that begins again connects at once and lets the spill take what the broker doesn't.
    """
    feed, channels = feed_of(order.feed), checked_channels(order.channels)
    products = checked_products(order.products)
    require_name(order.topic)
    s = settings()
    folder = spill_folder(order.topic)
    known = recall(folder, servers, s.partitions)
    partitions = known or cluster.require_topics(servers, [order.topic], s.partitions)[order.topic]
    spill = Spill(folder, s.spill_mb << 20)
    try:
        if known is None:
            _load()  # the first time the kernel may have to be compiled, and nobody waits for what is missed
            remember(folder, Topic(servers, partitions))
        report = Report(feed=feed.url, topic=order.topic, products=products)

        def make(inbox: Inbox, client: Client) -> Worker:
            _load()

            from ingestion.feed.outbox import PRODUCER, Outbox
            from ingestion.feed.recorder import Recorder
            from ingestion.feed.worker import Worker

            recorder = Recorder(s.raw, s.tape_minutes * 60) if order.save_raw else None
            outbox = Outbox(lambda: kafka.producer(servers, **PRODUCER), order.topic, partitions, spill)
            leave_alone()
            return Worker(inbox, client, outbox, recorder, report)

        async def run() -> None:
            inbox = Inbox()
            client = _Client(feed, products, channels, inbox)
            await _run(client, make, inbox, report, order.minutes, show, stop or threading.Event())

        with tuned(), asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(run())
    finally:
        spill.close()
    return report


@cache
def _load() -> None:
    """Load what the worker needs, and have its kernel ready."""
    arrow_without_pandas()

    from ingestion.kernel.warm import warm_up

    warm_up()


def spill_folder(topic: str) -> Path:
    """Return where what the broker of a topic doesn't take waits."""
    return settings().data / "spill" / topic


def checked_products(products: Sequence[str]) -> tuple[str, ...]:
    """Return the products, each once.

    Raises
    ------
    UsageError
        If there is none, or one that can't be a product.
    """
    found = tuple(dict.fromkeys(products))
    bad = [p for p in found if not is_name(p)]
    if bad or not found:
        raise UsageError(
            f"pair is {','.join(products) or 'empty'}, expected products such as BTC-USD,ETH-USD; set --pair"
        )
    return found


class _Client(Client):
    """The client as the worker's thread may call it: everything happens in the event loop."""

    def __init__(self, feed: Feed, products: Sequence[str], channels: Sequence[str], inbox: Inbox) -> None:
        super().__init__(feed, products, channels, inbox)
        self._loop = asyncio.get_running_loop()

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and the connection with it
            self._loop.call_soon_threadsafe(call, *arguments)

    def resubscribe(self, product_id: str) -> None:
        self._soon(super().resubscribe, product_id)

    def refused(self, complaint: str, heard: frozenset[str]) -> None:
        self._soon(super().refused, complaint, heard)

    def fail(self, error: InputError) -> None:
        self._soon(super().fail, error)


async def _run(
    client: Client,
    make: Callable[[Inbox, Client], Worker],
    inbox: Inbox,
    report: Report,
    minutes: float | None,
    show: Callable[[Report], None],
    stop: threading.Event,
) -> None:
    """Run the client here and the worker in its thread until the end; then finish the log."""
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []
    workers: list[Worker] = []

    def work() -> None:
        try:
            workers.append(make(inbox, client))
            workers[0].run()
        except BaseException as error:  # whatever it is, it ends the ingestion and is raised there
            failures.append(error)
            loop.call_soon_threadsafe(client.stop)

    thread = threading.Thread(target=work, name="ingest-worker")
    thread.start()
    for name in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, NotImplementedError):  # not in the main thread: whoever runs it there stops it
            loop.add_signal_handler(name, client.stop)
    if minutes is not None:
        loop.call_later(minutes * 60, client.stop)
    showing = asyncio.create_task(_look(client, stop, report, show))
    try:
        await client.run()
    except InputError:
        if not failures:  # else it was told to stop before it was connected
            raise
    finally:
        showing.cancel()
        inbox.end()
        await asyncio.to_thread(thread.join)
        for worker in workers:
            worker.finish(FLUSH_S)
    if failures:
        raise failures[0]


async def _look(client: Client, stop: threading.Event, report: Report, show: Callable[[Report], None]) -> None:
    """Show the figures, and look whether to stop."""
    shown = time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(_LOOK_S)
        if time.monotonic() - shown >= _SHOW_S:
            shown = time.monotonic()
            show(report)
    client.stop()


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # no wheel on this platform: the stock loop does it, slower
        return None
    return uvloop.new_event_loop
