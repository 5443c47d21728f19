"""A featurizer in a thread of the test, over a topic of its own, and whether its tables hold a log."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import polars as pl

from feature_repo.contract import FEATURE_NAMES, VIEW
from infra.settings import settings
from ingestion import cluster, kafka, tables
from ingestion.featurize.checkpoint import Checkpoints
from ingestion.featurize.online_sink import OnlineSink
from ingestion.featurize.publisher import Publisher
from ingestion.featurize.worker import Worker
from ingestion.kernel import Featurizer, Part
from ingestion.online import OnlineTable
from ingestion.online_writer import default_writer
from ingestion.topics import FEATURES, QUOTES, Envelope, tape_line
from tests import live_kit, log_kit
from tests.conftest import until

PARTITIONS = 4


def log_of(seconds: int, seed: int = 1) -> list[Envelope]:
    """Return a log of a session of its own, with keyframes."""
    return log_kit.with_keyframes(log_kit.market(seed, seconds, session=uuid.uuid4().hex[:16]))


def worker_of(
    servers: str,
    topic: str,
    group: str,
    partitions: int,
    write: Callable[[list[Part]], int] | None,
    *,
    instance: str | None = None,
    **consumer: object,
) -> Worker:
    """Return a featurizer that commits often, not running yet."""
    there = cluster.require_topics(servers, [FEATURES, QUOTES], PARTITIONS)
    return Worker(
        partial(kafka.consumer, group, servers, instance=instance, **consumer),
        topic,
        partitions,
        publisher=Publisher(kafka.producer(servers), there),
        online=OnlineSink(write or default_writer().write),
        checkpoints=Checkpoints(settings().checkpoints, group, topic),
        commit_every_s=0.2,
        checkpoint_every_s=0.4,
    )


class Stage:
    """A topic and a consumer group of its own on a broker."""

    def __init__(self, servers: str, topic: str = "", partitions: int = PARTITIONS) -> None:
        self.servers, self.topic, self.partitions = servers, topic or uuid.uuid4().hex[:12], partitions
        self.group = self.topic
        cluster.require_topics(servers, [self.topic], partitions)

    def feed(self, log: Sequence[Envelope]) -> None:
        """Put more of a log into the topic."""
        log_kit.produce(self.servers, log, self.partitions, self.topic)

    def worker(
        self, write: Callable[[list[Part]], int] | None = None, *, instance: str | None = None, **consumer: object
    ) -> Worker:
        return worker_of(self.servers, self.topic, self.group, self.partitions, write, instance=instance, **consumer)


class Running:
    """A worker under way."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self._stop = worker, threading.Event()
        self.error: BaseException | None = None
        self._thread = live_kit.in_background(self._run)

    def _run(self) -> None:
        try:
            self.worker.run(self._stop.is_set)
        except BaseException as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> None:
        """Stop it; what it raised is raised here."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the featurizer doesn't end"
        if self.error is not None:
            raise self.error


@contextmanager
def running(worker: Worker) -> Iterator[Running]:
    """Run a worker in a thread for the time of the block."""
    run = Running(worker)
    try:
        yield run
    finally:
        if run.error is None:
            run.end()


def rows_of(log: Sequence[Envelope]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and quotes that the tape of a log gives."""
    made = Featurizer().push_lines(b"".join(map(tape_line, log)))
    return pl.DataFrame(pl.from_arrow(made.features)), pl.DataFrame(pl.from_arrow(made.quotes))


def assert_tables_hold(log: Sequence[Envelope], rtol: float = 0.0) -> None:
    """The tables hold each row of the tape once."""
    rows, quotes = rows_of(log)
    live_kit.assert_same(VIEW, rows, rtol)
    live_kit.assert_same("quotes", quotes)


def reached(log: Sequence[Envelope]) -> bool:
    """Whether the tables hold the log's last ticker of each product."""
    last = {e.product_id: e.n for e in log if e.raw.startswith(b'{"type":"ticker"')}
    held = tables.last_n(VIEW)
    return all(held.get((log[0].session, product), 0) >= n for product, n in last.items())


def assert_reached(log: Sequence[Envelope], seconds: float = 30) -> None:
    """The tables hold the log's last ticker of each product soon."""
    assert until(lambda: reached(log), seconds), f"the tables hold {tables.last_n(VIEW)}"


def newest_online(log: Sequence[Envelope], products: Sequence[str] = log_kit.PRODUCTS) -> bool:
    """Whether Redis holds, of each product, the newest row that the tape of a log gives."""
    rows, _ = rows_of(log)
    held = OnlineTable().read(products)
    for product in products:
        want = rows.filter(pl.col("product_id") == product).sort("row_time").row(-1, named=True)
        row = held[product]
        if row is None or row.row_time != want["row_time"]:
            return False
        assert row.values == {name: want[name] for name in FEATURE_NAMES}, product
    return True


def folder_size(folder: Path) -> int:
    """Bytes under a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
