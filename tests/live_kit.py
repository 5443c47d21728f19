"""The live path in processes of its own, and what its log, its tables and its Redis hold, read independently of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl

from feature_repo.contract import FEATURE_NAMES, VIEW
from infra.settings import ROOT, child_environment
from ingestion import kafka, tables
from ingestion.exchange import Entry
from ingestion.kernel import Featurizer
from ingestion.kernel.rows import LogRows
from ingestion.topics import Envelope, partition_of, read, tape_line
from tests import log_kit

ROW_ID = ["product_id", "session", "n", "k"]
ORDER = [*ROW_ID, "event_time_ns"]
S = 1_000_000_000


def scale() -> float:
    """Share of the full length at which long tests run."""
    return float(os.environ.get("VOLSPIKE_TEST_SCALE", "1.0"))


def patience(seconds: float) -> float:
    """Bound on a time of the wall clock: as it stands on a machine of our own, longer on one that is shared."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Command:
    """One ``volspike`` command, started again as often as wanted; all that it says goes to one file.

    Parameters
    ----------
    folder
        Where its log goes.
    name
        The command.
    more
        Its arguments.
    environment
        Settings beside those of this process.
    """

    def __init__(self, folder: Path, name: str, *more: str, **environment: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._arguments, self._environment = [sys.executable, "-m", "infra.cli", name, *more], environment
        self._process: subprocess.Popen[bytes] | None = None
        self.started_ns: list[int] = []
        self.codes: list[int] = []
        """Exit codes of those that ended by themselves."""

    def __enter__(self) -> Command:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def start(self) -> None:
        """Start it; one that has ended by itself is counted."""
        if self._process is not None and self._process.poll() is not None and self._process.returncode >= 0:
            self.codes.append(self._process.returncode)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=ROOT,
                env=child_environment(**self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started_ns.append(time.time_ns())

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)

    def end(self, seconds: float = 60) -> int:
        """End it as a user would; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} doesn't end; it said: {self.said()[-2000:]}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Stored(NamedTuple):
    """One Kafka message of the raw log."""

    offset: int
    session: str
    n: int
    part: int
    crc: int


class Observer:
    """Reads a topic while it grows: what a reader has seen was acknowledged, and must stay where it is."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        from confluent_kafka import TopicPartition

        self.seen: dict[int, dict[int, Stored]] = defaultdict(dict)
        self._sessions: set[str] = set()
        self._stop = threading.Event()
        self._reader = kafka.consumer("observer", servers)
        self._reader.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for message in self._reader.consume(1000, 0.2):
                if message.error() is None:
                    found = self.seen[message.partition()][message.offset()] = _stored(message)
                    self._sessions.add(found.session)

    @property
    def messages(self) -> int:
        return sum(len(found) for found in list(self.seen.values()))

    @property
    def sessions(self) -> int:
        """How many sessions it has met."""
        return len(self._sessions)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._reader.close()


def _stored(message: object) -> Stored:
    envelope, part, _ = read(message.key(), message.value(), message.headers())  # type: ignore[attr-defined]
    return Stored(message.offset(), envelope.session, envelope.n, part, zlib.crc32(envelope.raw))  # type: ignore[attr-defined]


class Topic(NamedTuple):
    """A whole topic: its Kafka messages as stored, and what a reader keeps of each partition."""

    stored: list[dict[int, Stored]]
    kept: list[list[Envelope]]

    @property
    def sessions(self) -> dict[str, dict[int, Envelope]]:
        """Session -> its records by number, in the order in which sessions began."""
        found: dict[str, dict[int, Envelope]] = {}
        for records in self.kept:
            for e in records:
                found.setdefault(e.session, {})[e.n] = e
        began = {s: min(e.recv_ns for e in records.values()) for s, records in found.items()}
        return {s: found[s] for s in sorted(found, key=lambda s: began[s])}

    @property
    def crcs(self) -> Counter[int]:
        """Checksums of the exchange's own messages."""
        return Counter(
            zlib.crc32(e.raw) for records in self.sessions.values() for e in records.values() if e.kind == "feed"
        )


def read_topic(servers: str, topic: str) -> Topic:
    """Read a topic from where it begins to where it ends now."""
    from confluent_kafka import TopicPartition

    reader = kafka.consumer("reader", servers)
    try:
        count = len(reader.list_topics(topic, timeout=10).topics[topic].partitions)
        ends = [reader.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in range(count)]
        stored: list[dict[int, Stored]] = [{} for _ in range(count)]
        raw: list[list[tuple[Envelope, int, int]]] = [[] for _ in range(count)]
        reader.assign([TopicPartition(topic, p, low) for p, (low, high) in enumerate(ends) if high > low])
        left = sum(high - low for low, high in ends)
        deadline = time.monotonic() + 60
        while left > 0:
            assert time.monotonic() < deadline, f"{left} messages of {topic} don't come"
            for message in reader.consume(1000, 0.5):
                assert message.error() is None, message.error()
                p = message.partition()
                if message.offset() < ends[p][1]:
                    left -= 1
                    stored[p][message.offset()] = _stored(message)
                    raw[p].append(read(message.key(), message.value(), message.headers()))
        return Topic(stored, [log_kit.kept(messages) for messages in raw])
    finally:
        reader.close()


def replayed(topic: Topic) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and quotes that the kernel makes of a topic, partition by partition, without a break."""
    count = len(topic.kept)
    rows, quotes = [], []
    for index, log in enumerate(topic.kept):
        reader = Featurizer(keeps=lambda product, index=index: partition_of(product, count) == index)  # type: ignore[misc]
        parts = [part for at in range(0, len(log), 5000) for part in reader.push_log(log[at : at + 5000]).parts]
        made = LogRows(parts).tables()
        rows.append(pl.DataFrame(pl.from_arrow(made.features)))
        quotes.append(pl.DataFrame(pl.from_arrow(made.quotes)))
    return pl.concat(rows), pl.concat(quotes)


def assert_same(name: str, want: pl.DataFrame, rtol: float = 0.0) -> int:
    """A table holds these rows, each once; features to the bit, or to ``rtol``. Return how many differ in a bit."""
    got = tables.scan(name).collect()
    ids = got.select(ROW_ID if name == VIEW else [*ROW_ID, "kind", "event_time_ns"])
    doubled = ids.filter(ids.is_duplicated())
    allowed = want.select(ids.columns)
    assert doubled.height == allowed.filter(allowed.is_duplicated()).height, f"{name}: {doubled.height} doubled"
    lost = allowed.join(ids, on=ids.columns, how="anti")
    added = ids.join(allowed, on=ids.columns, how="anti")
    assert not lost.height, f"{name}: {lost.height} of {allowed.height} rows lost, such as {lost.head(5).rows()}"
    assert not added.height, f"{name}: {added.height} rows too many, such as {added.head(5).rows()}"
    got, want = got.sort(ORDER, maintain_order=True), want.sort(ORDER, maintain_order=True).select(got.columns)
    if got.equals(want):
        return 0
    values = [c for c in got.columns if c in FEATURE_NAMES]
    exact = [c for c in got.columns if c not in values]
    for column in exact:
        assert got[column].equals(want[column]), f"{name}.{column} differs"
    differing = 0
    for column in values:
        a, b = (t[column].cast(pl.Float64).fill_null(np.nan).to_numpy() for t in (got, want))
        differing += int((~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15 if rtol else 0, err_msg=f"{name}.{column}")
    return differing


class Gap(NamedTuple):
    """A recorded gap of a product; open ones end late."""

    product: str
    start_ns: int
    end_ns: int
    session: str


def gaps_of(quotes: pl.DataFrame) -> list[Gap]:
    """Pairs of gap rows, in log order."""
    found: list[Gap] = []
    open_at: dict[str, int] = {}
    edges = quotes.filter(pl.col("kind") != "quote").select("product_id", "kind", "event_time_ns", "session")
    for product, kind, at, session in edges.iter_rows():
        if kind == "gap_start":
            open_at.setdefault(product, at)
        elif product in open_at:
            found.append(Gap(product, open_at.pop(product), at, session))
    return found + [Gap(p, at, 1 << 62, "") for p, at in open_at.items()]


def missing_of(ledger: Sequence[Entry], topic: Topic) -> list[Entry]:
    """What the exchange sent and the topic lacks, at the time that it bears (that of the update before it).

    Gaps are told in the times that messages bear; where the exchange itself is late, it sends them after these.
    """
    there = topic.crcs
    missing = []
    time_ns = 0
    for entry in ledger:
        if entry.kind == "l2update":
            time_ns = int(np.datetime64(entry.key.removesuffix("Z"), "ns").astype(np.int64))
        if entry.sent and entry.crc is not None:
            if there[entry.crc] > 0:
                there[entry.crc] -= 1
            else:
                missing.append(msgspec.structs.replace(entry, time_ns=time_ns or entry.time_ns))
    return missing


def uncovered(missing: Iterable[Entry], gaps: Iterable[Gap], slack_s: float) -> list[Entry]:
    """Of what is missing, what lies in no recorded gap of its product."""
    by_product: dict[str, list[Gap]] = defaultdict(list)
    for gap in gaps:
        by_product[gap.product].append(gap)
    slack = int(slack_s * S)
    return [
        e
        for e in missing
        if e.product and not any(g.start_ns - slack <= e.time_ns <= g.end_ns + slack for g in by_product[e.product])
    ]


def lag(servers: str, group: str, topic: str, partitions: int) -> int:
    """Messages of a topic that a group hasn't committed."""
    from confluent_kafka import TopicPartition

    reader = kafka.consumer(group, servers)
    try:
        committed = reader.committed([TopicPartition(topic, p) for p in range(partitions)], timeout=10)
        ends = [reader.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in range(partitions)]
        return sum(end - max(0, c.offset) for end, c in zip(ends, committed, strict=True))
    finally:
        reader.close()


def warm() -> None:
    """Have the kernel compiled, so that no process of a test has to."""
    log = log_kit.numbered(log_kit.market(1, 5))
    Featurizer().push_log(log)
    Featurizer().push_lines(b"".join(map(tape_line, log)))


def in_background(work: Callable[[], None]) -> threading.Thread:
    """Start a thread that never keeps a test run alive."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
