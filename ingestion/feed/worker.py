"""What happens behind the reader: detect, number, record, send, recover. One thread owns all of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import structlog

from feature_repo.errors import InputError
from infra.settings import settings
from ingestion.feed.dialects import BOOK
from ingestion.feed.inbox import Closed, Inbox, Item, Opened, Received
from ingestion.feed.outbox import Outbox
from ingestion.feed.recorder import Recorder
from ingestion.feed.recovery import Recovery, Resubscribe
from ingestion.feed.report import Report
from ingestion.feed.watch import Watch
from ingestion.topics import Envelope

BATCH_S: Final = 0.004
"""Least time between batches: the kernel's work per batch would eat the core at one message each."""
BATCH_MESSAGES: Final = 500
NAMED_S: Final = 8.0
"""How long a product may stay silent at the start before it is said to be unknown."""

FIGURES_S: Final = 0.25
"""Time between updates of the report."""


class Connection(Protocol):
    """What the worker may ask of the client; called from the worker's thread."""

    def resubscribe(self, product_id: str) -> None:
        """Ask for a new snapshot of a product's book."""

    def refused(self, complaint: str, heard: frozenset[str]) -> None:
        """Take what the exchange complained of, and of which products messages came."""

    def fail(self, error: InputError) -> None:
        """End with an error."""


class Worker:
    """Turns the inbox into the log, until the inbox has ended.

    Parameters
    ----------
    inbox
        What the reader received.
    connection
        How to ask for snapshots.
    outbox
        Where the log goes.
    recorder
        Tapes of it, if wanted.
    report
        Figures to fill in.
    recovery
        Makes the state machine of a connection's books from its products and the time.
    """

    def __init__(
        self,
        inbox: Inbox,
        connection: Connection,
        outbox: Outbox,
        recorder: Recorder | None,
        report: Report,
        *,
        recovery: Callable[[Sequence[str], float], Recovery] = Recovery,
    ) -> None:
        self._inbox, self._connection, self._outbox, self._recorder = inbox, connection, outbox, recorder
        self._report, self._make_recovery = report, recovery
        self._watch: Watch | None = None
        self._recovery: Recovery | None = None
        self._opened_at = 0.0
        self._heard: frozenset[str] = frozenset()
        self._log = structlog.get_logger("ingest")
        self._told_at = 0.0
        self._cpu_at = 0.0
        self._past: Counter[str] = Counter()
        """Figures of the connections before this one."""

    def run(self) -> None:
        """Work until the inbox has ended and all of it is in the log."""
        while not self._inbox.done:
            began = time.monotonic()
            self.step(self._inbox.take(BATCH_MESSAGES, 0.02))
            rest = BATCH_S - (time.monotonic() - began)
            if rest > 0:
                time.sleep(rest)

    def step(self, items: Sequence[Item]) -> None:
        """Take some items, and let everything do what time asks for."""
        received: list[Received] = []
        for item in items:
            if isinstance(item, Received):
                received.append(item)
                continue
            self._messages(received)
            received = []
            if isinstance(item, Opened):
                self._open(item)
            else:
                self._close(item)
        self._messages(received)
        self._recover()
        self._outbox.poll()
        if self._recorder is not None:
            self._recorder.poll()
        if time.monotonic() >= self._told_at + FIGURES_S:
            self._figures()

    def _open(self, opened: Opened) -> None:
        self._watch = Watch(opened, stream_clock=settings().clock == "stream")
        if not self._opened_at:
            self._cpu_at = time.process_time()
        self._opened_at = time.monotonic()
        books = opened.products if BOOK in opened.channels else ()
        self._recovery = self._make_recovery(books, self._opened_at)
        self._report.sessions += 1
        self._put(self._watch.begin())

    def _close(self, closed: Closed) -> None:
        if closed.reason != "stopped":
            self._report.disconnects[closed.reason] += 1
        self._settle()
        self._watch = self._recovery = None

    def _messages(self, received: Sequence[Received]) -> None:
        watch = self._watch
        if watch is None or not received:
            return
        self._put(watch.take(received))
        now_ns = time.time_ns()
        self._report.delays.add((now_ns - np.array([m.recv_ns for m in received])) / 1e9)
        self._report.first_ns = self._report.first_ns or received[0].recv_ns
        self._report.last_ns = received[-1].recv_ns
        self._report.lags.add(watch.lags())
        self._heard |= watch.named
        complaints, watch.errors = watch.errors, []
        for complaint in complaints:
            self._connection.refused(complaint, self._heard)

    def _recover(self) -> None:
        watch, recovery = self._watch, self._recovery
        if watch is None or recovery is None:
            return
        now, now_ns = time.monotonic(), time.time_ns() // 1000 * 1000
        for product in self._outbox.take_lost():
            self._put(watch.lost(product, now_ns))
        actions = []
        for product in watch.opened.products:
            actions += recovery.observe(product, watch.detector.synced(product), now)
        for action in actions + recovery.tick(now):
            if isinstance(action, Resubscribe):
                self._connection.resubscribe(action.product_id)
                self._report.resyncs += 1
            else:
                self._report.stale += action.state == "stale"
                self._log.warning("book", product=action.product_id, state=action.state)
                self._put([watch.book(action.product_id, action.state, now_ns)])
        if not self._heard and now - self._opened_at > NAMED_S and watch.types:
            self._connection.fail(
                InputError(
                    f"no message of {','.join(watch.opened.products)} within {NAMED_S:g} s of subscribing; "
                    "check --pair and --channels"
                )
            )

    def _put(self, envelopes: Sequence[Envelope]) -> None:
        self._outbox.put(envelopes)
        if self._recorder is not None:
            self._recorder.put(envelopes)
        self._report.logged += len(envelopes)
        self._report.keyframes += sum(e.kind == "keyframe" for e in envelopes)

    def _settle(self) -> None:
        """Add what the connection counted to the figures of those before."""
        self._past = self._counted()
        self._watch = None

    def _counted(self) -> Counter[str]:
        total = Counter(self._past)
        if self._watch is not None:
            total.update({f"type {name}": n for name, n in self._watch.types.items()})
            total.update({f"gap {name}": n for name, n in self._watch.gaps.items()})
            counts = self._watch.detector.counts
            total.update({"malformed": counts.get("malformed", 0), "future": counts.get("future", 0)})
        return total

    def _figures(self) -> None:
        self._told_at = time.monotonic()
        report, outbox = self._report, self._outbox
        counted = self._counted()
        report.types = Counter({k.removeprefix("type "): n for k, n in counted.items() if k.startswith("type ")})
        report.gaps = Counter({k.removeprefix("gap "): n for k, n in counted.items() if k.startswith("gap ")})
        report.malformed, report.future = counted["malformed"], counted["future"]
        report.acknowledged, report.spilled = outbox.counters.acknowledged, outbox.counters.spilled
        report.left, report.producers = outbox.counters.left, outbox.counters.producers
        report.dropped = outbox.dropped.count
        report.deepest = self._inbox.deepest
        report.cpu_s = time.process_time() - self._cpu_at if self._opened_at else 0.0
        report.seconds = time.monotonic() - report.began
        if self._recorder is not None:
            report.tapes = [str(path) for path in self._recorder.tapes]
            report.tape_lines, report.tape_dropped = self._recorder.lines, self._recorder.dropped.count

    def finish(self, flush_s: float) -> None:
        """Close tapes and outbox, and complete the figures."""
        if self._recorder is not None:
            self._recorder.close()
        self._outbox.close(flush_s)
        self._figures()
