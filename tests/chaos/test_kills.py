"""kill -9 of ingestion, featurizer and broker at random moments: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import msgspec
import polars as pl
import pytest

from feature_repo.contract import FEATURE_NAMES, VIEW
from infra.embedded import EmbeddedRedis
from infra.kafka_server import RealKafka
from infra.settings import settings
from ingestion import cluster, tables
from ingestion.exchange import Entry, read_ledger
from ingestion.online import OnlineTable
from ingestion.tapes import find_tapes, read_lines
from ingestion.topics import RAW, TOPICS, tape_line
from tests import live_kit as kit
from tests.conftest import free_port, require_programs, until

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
PARTITIONS = 4
KILLS = 50
SPEED = 12
"""Of the generated market: about 350 messages a second."""
SEED = 20_261_121
GAP_S = 5.0
YOUNG_S = 3.0
"""What a killed ingestion may lose is younger than a second, or came while it loaded its kernel, another; the third is
the machine's, which is busy."""

pytestmark = pytest.mark.chaos


class Victim:
    """Something that is killed at random moments, and started again at once.

    Parameters
    ----------
    kill, start
        How.
    alive
        Whether it runs; one that ended by itself is started again too.
    progress
        A number that has risen when it does its work after a start.
    mean_s
        Mean time from then to its death; one in five dies earlier, while it starts.
    """

    def __init__(
        self,
        name: str,
        kill: Callable[[], None],
        start: Callable[[], None],
        alive: Callable[[], bool],
        progress: Callable[[], int],
        mean_s: float,
        rng: random.Random,
    ) -> None:
        self.name, self.kills, self.early = name, 0, 0
        self.error: BaseException | None = None
        self._kill, self._start, self._alive, self._progress = kill, start, alive, progress
        self._mean_s, self._rng = mean_s, rng
        self._done = threading.Event()

    def run(self, count: int, abort: threading.Event) -> None:
        """Kill it ``count`` times."""
        try:
            before = -1
            while self.kills < count and not abort.is_set():
                early = self._rng.random() < 0.2
                if not early:
                    self._wait(lambda before=before: self._progress() > before, 60.0, abort)  # type: ignore[misc]
                self._wait(lambda: False, self._rng.uniform(0.1, 2 * self._mean_s), abort)
                before = self._progress()
                self._kill()
                self.kills += 1
                self.early += early
                self._start()
        except BaseException as error:
            self.error = error
            abort.set()
        finally:
            self._done.set()

    def _wait(self, condition: Callable[[], bool], seconds: float, abort: threading.Event) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline and not abort.wait(0.05):
            if not self._alive():
                self._start()

    def wait(self, seconds: float) -> None:
        assert self._done.wait(seconds), f"{self.name} was killed only {self.kills} times"
        if self.error is not None:
            raise self.error


@pytest.fixture
def environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require_programs("java", "mvn")
    for name, value in {
        "PARTITIONS": PARTITIONS,
        "COMMIT_EVERY_S": 0.5,
        "CHECKPOINT_EVERY_S": 1.0,
        "TAPE_MINUTES": 0.5,
        "GROUP": "chaos",
    }.items():
        monkeypatch.setenv(f"VOLSPIKE_{name}", str(value))
    return data_dir


def test_kills_at_random_moments_lose_and_double_nothing(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = max(2, round(KILLS * kit.scale()))
    kit.warm()
    ledger, abort = tmp_path / "sent.ndjson", threading.Event()
    with ExitStack() as stack:
        broker = stack.enter_context(RealKafka(port=free_port()))
        redis = stack.enter_context(EmbeddedRedis(port=free_port(), data=tmp_path / "redis"))
        monkeypatch.setenv("VOLSPIKE_KAFKA_SERVERS", broker.address)
        monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis.address)
        settings.cache_clear()
        cluster.require_topics(broker.address, TOPICS, PARTITIONS)
        port = free_port()
        exchange = stack.enter_context(
            kit.Command(
                tmp_path, "exchange", "--port", str(port), "--speed", str(SPEED), "--times", "squeeze",
                "--seed", "5", "--ledger", str(ledger),
            )
        )  # fmt: skip
        assert until(lambda: "exchange: ws://" in exchange.said(), 60), exchange.said()
        feed = f"ws://127.0.0.1:{port}"
        ingest = stack.enter_context(
            kit.Command(tmp_path, "ingest", "--feed", feed, "--pair", ",".join(PRODUCTS), "--save-raw", "--json")
        )
        featurize = stack.enter_context(kit.Command(tmp_path, "featurize", "--instance-id", "one", "--json"))
        observer = kit.Observer(broker.address, RAW, PARTITIONS)
        stack.callback(observer.end)
        assert until(lambda: observer.messages > 500, 180), ingest.said()
        assert until(lambda: tables.last_n(VIEW) != {}, 180), featurize.said()

        rng = random.Random(SEED)
        victims = [
            Victim(name, kill, start, alive, progress, mean_s, random.Random(rng.random()))
            for name, kill, start, alive, progress, mean_s in (
                ("ingest", ingest.kill, ingest.start, lambda: ingest.running, lambda: observer.sessions, 3.0),
                ("featurize", featurize.kill, featurize.start, lambda: featurize.running,
                 lambda: featurize.said().count('"event": "partition"'), 3.0),
                ("broker", broker.kill, broker.restart, lambda: True, lambda: observer.messages, 6.0),
            )
        ]  # fmt: skip
        began = time.monotonic()
        for victim in victims:
            kit.in_background(lambda v=victim: v.run(count, abort))  # type: ignore[misc]
        for victim in victims:
            victim.wait(60 + count * 40)
        lasted = time.monotonic() - began

        def flowing() -> bool:
            for command in (ingest, featurize):
                if not command.running:
                    command.start()
            return observer.messages > before + 1000

        def drained() -> bool:
            if not featurize.running:
                featurize.start()
            return kit.lag(broker.address, "chaos", RAW, PARTITIONS) == 0

        before = observer.messages
        assert until(flowing, 120), ingest.said()[-3000:]
        assert ingest.end() == 0, ingest.said()[-3000:]
        exchange.end()
        assert until(drained, 120), featurize.said()[-3000:]
        assert featurize.end() == 0, featurize.said()[-3000:]
        seen = {p: dict(found) for p, found in observer.seen.items()}
        topic = kit.read_topic(broker.address, RAW)
        online = OnlineTable().read(PRODUCTS)

    lost = [s for p, found in seen.items() for offset, s in found.items() if topic.stored[p].get(offset) != s]
    sent = read_ledger(ledger)
    rows, quotes = kit.replayed(topic)
    gaps = kit.gaps_of(quotes)
    missing = kit.missing_of(sent, topic)
    longest = max((g.end_ns - g.start_ns for g in gaps if g.session), default=0) / kit.S
    with capsys.disabled():
        print(
            f"\nkills {', '.join(f'{v.name} {v.kills} ({v.early} early)' for v in victims)} in {lasted:.0f} s; "
            f"ended by themselves: ingest {ingest.codes}, featurize {featurize.codes}; "
            f"sent {sum(e.sent for e in sent)}, sessions {len(topic.sessions)}, "
            f"in the topic {sum(topic.crcs.values())}, "
            f"seen {observer.messages}, acknowledged and lost {len(lost)}, missing {len(missing)}, "
            f"gaps {len(gaps)}, longest {longest:.2f} s, rows {rows.height}, quotes {quotes.height}"
        )
    assert not lost, lost[:5]
    assert_numbers_have_no_holes(topic, environment)
    differing = kit.assert_same(VIEW, rows, rtol=1e-12)
    kit.assert_same("quotes", quotes)
    stray = kit.uncovered(missing, gaps, 0.25)
    assert not stray, (len(stray), stray[:5])
    for product in PRODUCTS:
        newest = rows.filter(pl.col("product_id") == product).sort("row_time").row(-1, named=True)
        row = online[product]
        assert row is not None
        assert row.row_time == newest["row_time"]
        if not differing:
            assert row.values == {name: newest[name] for name in FEATURE_NAMES}
    if longest > GAP_S:
        # All that must never happen was asserted above. This is a goal, and where it is missed the run says so.
        start_s = fastest_start_s(ingest, sent)
        pytest.xfail(f"longest gap {longest:.1f} s, the goal is {GAP_S:g} s; a start took {start_s:.1f} s at best")


def fastest_start_s(ingest: kit.Command, ledger: Sequence[Entry]) -> float:
    """What a start takes here, up to the connection: under a second and a half where the machine is ours alone."""
    opened = [e.time_ns for e in ledger if e.event == "open"]
    return min(min((o - at for o in opened if o > at), default=1 << 62) for at in ingest.started_ns) / kit.S


class Head(msgspec.Struct):
    """What a tape's line says of itself."""

    session: str
    n: int
    ts: float


def assert_numbers_have_no_holes(topic: kit.Topic, data: Path) -> None:
    """What the tapes hold is in the topic, but for the last moments of a killed session."""
    sessions = topic.sessions
    tape: dict[str, list[tuple[Head, bytes]]] = {}
    for path in find_tapes([data / "raw"]):
        for line in b"".join(read_lines(path)).splitlines(keepends=True):
            head = msgspec.json.decode(line, type=Head)
            tape.setdefault(head.session, []).append((head, line))
    assert len(tape) > 2
    for session, lines in tape.items():
        records, last = sessions.get(session, {}), lines[-1][0]
        for head, line in lines:
            if head.n in records:
                assert tape_line(records[head.n]) == line
            else:
                assert last.ts - head.ts < YOUNG_S, f"session {session}: {head.n} of {last.n} is not in the topic"
    for session, records in sessions.items():
        numbers = sorted(records)
        newest = records[numbers[-1]].recv_ns
        for before, after in pairwise([0, *numbers]):
            if after - before > 1:
                assert newest - records[after].recv_ns < YOUNG_S * kit.S, f"session {session} lacks {before + 1}"
