"""The live system on one machine: every part as the command that it is, in one console.

::

    started   Kafka, Redis ──► exchange ──► service ──► featurize ──► ingest
    stopped   ingest (all received is logged) ──► featurize (all logged is in the tables) ──► the rest, in turn
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from feature_repo.errors import StoreError
from infra import service_child, services
from infra.children import Child, running, volspike
from infra.settings import settings
from infra.up_view import Counted, Line, Watcher, cells, table
from infra.upkeep import Compaction

SHOW_S: Final = 0.5
DRAIN_S: Final = 30.0
"""How long the end waits for the featurizer to have read the whole log."""
START_S: Final = 60.0
"""How long a part may take until it is there; the first run compiles the kernel."""
PRODUCTS: Final = ("BTC-USD", "ETH-USD", "SOL-USD")


@dataclass(frozen=True, slots=True)
class Order:
    """What to run.

    Attributes
    ----------
    feed
        Coinbase itself, tapes, or the generated market.
    tapes
        Of ``feed`` tape.
    products
        Products to watch; None for the settings' (live), or all three of the generated market.
    speed, ago_s
        Of tapes and the generated market: how fast, and how long before now their times begin.
    seconds
        How long after the first message to stop; None for at a signal.
    save_raw
        Whether to record tapes.
    service
        Whether to serve the champion; or the address of a service that runs.
    """

    feed: Literal["live", "tape", "synthetic"] = "synthetic"
    tapes: tuple[Path, ...] = ()
    products: tuple[str, ...] | None = None
    speed: float = 1.0
    ago_s: float = 0.0
    seconds: float | None = None
    save_raw: bool = False
    service: bool | str = True


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    ingest, featurize
        What these commands reported at their end.
    lines
        The products as they stood last.
    restarts
        Parts that died and were begun again, how often.
    seconds
        Wall time.
    """

    ingest: dict[str, Any] = field(default_factory=dict)
    featurize: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def up(order: Order, *, as_json: bool = False, quiet: bool = False) -> Outcome:
    """Run the live system until the time is over or a signal comes.

    Parameters
    ----------
    order
        What to run.
    as_json
        Print the outcome as JSON.
    quiet
        Print nothing.

    Raises
    ------
    StoreError
        If a part can't be started or dies again and again, or an embedded service ends by itself.
    """
    from infra.broker import ensure_kafka
    from infra.embedded import ensure_redis
    from ingestion.exchange import Taped
    from ingestion.kernel.warm import warm_up
    from ingestion.online import OnlineTable
    from ingestion.topics import RAW

    began = time.monotonic()
    outcome = Outcome()
    stop = threading.Event()
    talks = sys.stdout.isatty() and not (as_json or quiet)
    say: Callable[[str], None] = print if not (as_json or quiet) else lambda text: None
    with ExitStack() as stack:
        stack.enter_context(_signals(stop))
        stack.enter_context(_clock(order.speed))
        warm_up()  # once, here: its children then load what it compiled
        others = {service.pid for service in services.running(settings().run)}
        servers = stack.enter_context(ensure_kafka())
        redis = stack.enter_context(ensure_redis())
        embedded = [service for service in services.running(settings().run) if service.pid not in others]
        say(f"kafka {servers}, redis {redis}")
        feed, products = settings().feed, order.products or settings().products
        channels = settings().channels
        taped = Taped(order.tapes, order.products) if order.tapes else None
        if order.feed != "live":
            exchange = stack.enter_context(running("exchange", _exchange(order)))
            feed = _address(exchange)
            products = order.products or PRODUCTS
            if taped is not None:
                products, channels = taped.products, ",".join(taped.channels)
                feed += "/advanced" if taped.dialect == "advanced" else ""
            say(f"exchange {feed}, {order.feed} at {order.speed:g} times its speed")
        pair = ",".join(products)
        service = stack.enter_context(_service(order.service))
        featurize = stack.enter_context(running("featurize", volspike("featurize", "--json")))
        saving = ["--save-raw"] if order.save_raw else []
        command = volspike("ingest", "--json", "--feed", feed, "--pair", pair, "--channels", channels, *saving)
        ingest = stack.enter_context(running("ingest", command))
        parts = [featurize, ingest]
        say(f"ingest, featurize; {'service ' + service if service else 'no service'}; Ctrl-C stops all in order")
        counted = Counted(servers, RAW)
        stack.callback(counted.close)
        watcher = Watcher(products, OnlineTable(), counted, service, stream_clock=settings().clock == "stream")
        first: float | None = None
        upkeep = stack.enter_context(Compaction())
        with _shown(talks) as show:
            while not stop.wait(SHOW_S) and not _over(order.seconds, first):
                first = first or (time.monotonic() if counted.total else None)
                outcome.lines = watcher.look()
                show(outcome.lines)
                _still_there(embedded)
                for part in parts:
                    part.revive()
                upkeep.look()
        say("stopping: ingest")
        ingest.stop()
        say("stopping: featurize, when it has read the whole log")
        _drain(servers, RAW)
        outcome.lines = watcher.look()
        featurize.stop()
        outcome.ingest, outcome.featurize = _report(ingest), _report(featurize)
        outcome.restarts = {part.name: part.restarts for part in parts if part.restarts}
    outcome.seconds = time.monotonic() - began
    if as_json:
        print(json.dumps(_as_dict(outcome)))
    elif not quiet:
        print(summary(outcome))
    return outcome


def _still_there(embedded: Sequence[services.Service]) -> None:
    """Raise StoreError where a service that this command embeds has ended by itself: nobody starts it again."""
    for service in embedded:
        if not services.alive(service.pid):
            log = settings().data / {"kafka": "kafka-embedded"}.get(service.name, service.name) / "server.log"
            raise StoreError(
                f"the embedded {service.name.capitalize()} has ended by itself, see {log}; start this again"
            )


def _over(seconds: float | None, first: float | None) -> bool:
    """Whether the time since the first message is over."""
    return seconds is not None and first is not None and time.monotonic() - first >= seconds


def summary(outcome: Outcome) -> str:
    """Return the outcome as lines."""
    log, made = outcome.ingest, outcome.featurize
    counts = made.get("counts", {})
    lines = ["  ".join(f"{cell:>10}" for cell in cells(line)) for line in outcome.lines]
    lines.append(
        f"ingest      {log.get('messages', 0):,} messages, gaps {sum(log.get('gaps', {}).values())}, dropped "
        f"{log.get('dropped', 0)}, in the log {log.get('acknowledged', 0):,}"
    )
    lines.append(
        f"featurize   {made.get('messages', 0):,} messages read, {made.get('rows', 0):,} rows, in the table "
        f"{counts.get('spike_features_added', 0):,}"
    )
    if outcome.restarts:
        lines.append("restarted   " + ", ".join(f"{name} {n} times" for name, n in outcome.restarts.items()))
    return "\n".join(lines)


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    shown = [{name: getattr(line, name) for name in Line.__slots__} for line in outcome.lines]
    return {
        "ingest": outcome.ingest,
        "featurize": outcome.featurize,
        "products": shown,
        "restarts": outcome.restarts,
        "seconds": outcome.seconds,
    }


def _exchange(order: Order) -> list[str]:
    feeds = [str(t.resolve()) for t in order.tapes] or ["synthetic"]
    given = [part for one in feeds for part in ("--feed", one)]
    paced = ("--speed", f"{order.speed:g}", "--ago", f"{order.ago_s:g}")
    return volspike("exchange", *given, "--port", "0", *paced, "--json")


def _address(exchange: Child) -> str:
    """Wait until the exchange says where it listens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for entry in services.running(settings().run, "exchange"):
            if entry.pid == exchange.pid:
                return f"ws://{entry.host}:{entry.port}"
        if not exchange.alive:
            break
        time.sleep(0.05)
    raise StoreError(f"the simulated exchange didn't start: {exchange.last_words()}")


@contextmanager
def _service(wanted: bool | str) -> Iterator[str]:
    """Serve the champion on the usual port, or a free one where that is taken."""
    if not wanted or isinstance(wanted, str):
        yield wanted or ""
        return
    with service_child.service() as started:
        yield started.url


@contextmanager
def _clock(speed: float) -> Iterator[None]:
    """At another speed than the world's, everybody runs on the stream's time."""
    before = os.environ.get("VOLSPIKE_CLOCK")
    if speed != 1.0:
        os.environ["VOLSPIKE_CLOCK"] = "stream"
        settings.cache_clear()
    try:
        yield
    finally:
        if speed != 1.0:
            os.environ.pop("VOLSPIKE_CLOCK")
            if before is not None:
                os.environ["VOLSPIKE_CLOCK"] = before
            settings.cache_clear()


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end it in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown(talks: bool) -> Iterator[Callable[[list[Line]], None]]:
    if not talks:
        yield lambda lines: None
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda lines: live.update(table(lines, "live; Ctrl-C stops"), refresh=True)


def _drain(servers: str, topic: str) -> None:
    """Wait until the featurizers have committed the whole log."""
    from confluent_kafka import TopicPartition

    from ingestion import kafka

    reader = kafka.consumer(settings().group, servers)
    deadline = time.monotonic() + DRAIN_S
    try:
        partitions = [TopicPartition(topic, p) for p in reader.list_topics(topic, 10).topics[topic].partitions]
        ends = {p.partition: reader.get_watermark_offsets(p, 10)[1] for p in partitions}
        while time.monotonic() < deadline:
            done = {p.partition: p.offset for p in reader.committed(partitions, 10)}
            if all(done[p] >= end for p, end in ends.items() if end > 0):
                return
            time.sleep(0.1)
    finally:
        reader.close()


def _report(child: Child) -> dict[str, Any]:
    """Return what a command printed at its end; empty where it was killed before."""
    try:
        found: dict[str, Any] = json.loads(child.out.read_text().strip().splitlines()[-1])
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return {}
    return found
