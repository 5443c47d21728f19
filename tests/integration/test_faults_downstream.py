"""Each fault of the simulated exchange, and what stands in the log and in its readers afterwards."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from websockets.sync.client import connect

from feature_repo.errors import InputError
from ingestion.exchange import Entry, Exchange, Synthetic, Taped, read_ledger
from ingestion.feed import Order
from ingestion.feed.pipeline import ingest
from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels
from ingestion.topics import Envelope
from tests import live_kit
from tests.ingest_kit import CHANNELS, PRODUCTS, Running, exchange, ingesting, log_of

Until = Callable[..., bool]
SPEED = 12.0
S = live_kit.S


class Scene:
    """An exchange, an ingestion of it, and afterwards what was sent and what was logged."""

    def __init__(
        self, server: Exchange, running: Running, servers: str, topic: str, ledger: Path, until: Until
    ) -> None:
        self.server, self.running, self.until = server, running, until
        self._servers, self._topic, self._ledger = servers, topic, ledger
        self.log: list[Envelope] = []

    @property
    def sent(self) -> list[Entry]:
        return [e for e in read_ledger(self._ledger) if e.sent]

    def faulty(self, fault: str) -> list[Entry]:
        return [e for e in read_ledger(self._ledger) if e.fault == fault and not e.event]

    def events(self, event: str) -> list[Entry]:
        return [e for e in read_ledger(self._ledger) if e.event == event]

    def inject(self, fault: str, **what: object) -> None:
        with connect(f"{self.server.url.removesuffix('/advanced')}/control") as control:
            control.send(json.dumps({"type": "inject", "fault": fault, **what}))
            assert json.loads(control.recv(5)) == {"type": "injected"}

    def finish(self) -> None:
        """Wait for the feed's end, stop, and read the log."""
        assert self.until(self.server.ended.is_set, 30)
        assert self.until(lambda: self.running.report.messages >= len(self.sent), 20)
        self.running.end()
        self.log = log_of(self._servers, self._topic)

    def read(self) -> tuple[Featurizer, pl.DataFrame, pl.DataFrame]:
        """Return a reader of the whole log, its rows and its quotes."""
        reader = Featurizer()
        made = reader.push_log(self.log).tables()
        return reader, pl.DataFrame(pl.from_arrow(made.features)), pl.DataFrame(pl.from_arrow(made.quotes))

    def records(self, kind: str) -> list[dict[str, object]]:
        return [r for r in (json.loads(e.raw) for e in self.log if e.kind != "feed") if r["type"] == kind]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    live_kit.warm()


@pytest.fixture
def scene(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., object]:
    # A feed that has ended is silent, and looks like a dead connection after five seconds.
    monkeypatch.setattr("ingestion.feed.client.QUIET_HEARTBEAT_S", 60.0)

    @contextmanager
    def build(
        topic: str, *, feed: object = None, seconds: int = 30, path: str = "", products: Sequence[str] = PRODUCTS,
        speed: float = SPEED, faults: str = "",
    ) -> Iterator[Scene]:  # fmt: skip
        ledger = tmp_path / "sent.ndjson"
        feed = feed or Synthetic(seed=9, seconds=seconds)
        with (
            exchange(feed, speed=speed, times="squeeze", ledger=ledger, faults=faults) as server,  # type: ignore[arg-type]
            ingesting(f"{server.url}{path}", kafka_embedded, topic, products=products) as running,
        ):
            yield Scene(server, running, kafka_embedded, topic, ledger, until)

    return build


def trade_ids(log: Sequence[Envelope], product: str, kind: str) -> Counter[int]:
    wanted = f'{{"type":"{kind}"'.encode()
    return Counter(
        int(json.loads(e.raw)["trade_id"]) for e in log if e.product_id == product and e.raw.startswith(wanted)
    )


def test_what_can_t_be_believed_is_set_aside_and_moves_nothing(scene: Callable[..., object]) -> None:
    faults = "late=0.2:12s@ticker/BTC-USD,future=0.2:60s@ticker/ETH-USD,truncate=0.2@ticker/SOL-USD,garbage=0.03"
    with scene("faults-aside", faults=faults) as play:
        play.finish()
    late, future = play.faulty("late"), play.faulty("future")
    broken = len(play.faulty("truncate")) + len(play.faulty("garbage"))
    assert min(len(late), len(future), broken) > 2, (len(late), len(future), broken)
    report = play.running.report
    assert (report.future, report.malformed) == (len(future), broken)
    assert not play.records("gap") and report.sessions == 1
    assert [zlib.crc32(e.raw) for e in play.log if e.kind == "feed"] == [e.crc for e in play.sent], "all of it is kept"
    reader, rows, _ = play.read()
    assert reader.counts["future"] == len(future)
    assert reader.counts["malformed"] == broken
    ahead_s = (rows["event_time_ns"] - rows["created_timestamp"].dt.epoch("ns")) / S
    assert ahead_s.max() < 2
    # A held-back ticker that is older than the grace makes no row; those that the end of the feed released may.
    numbers = {zlib.crc32(e.raw): e.n for e in play.log}
    tickers = set(rows.filter(trigger="ticker", product_id="BTC-USD")["n"])
    overtaken = [numbers[e.crc] for e in late if e.crc in numbers and numbers[e.crc] not in tickers]
    assert reader.counts["late"] == len(overtaken) > 2
    assert all(int(reader.state(p).s["book_state"][0]) == 1 for p in PRODUCTS)


def test_doubled_and_swapped_messages_stand_in_the_log_as_they_came(scene: Callable[..., object]) -> None:
    faults = "double=0.1@ticker+l2update/BTC-USD,swap=0.05@ticker/ETH-USD,drop=0.1@ticker/SOL-USD"
    with scene("faults-doubled", faults=faults) as play:
        play.finish()
        books = {product: play.server.book(product) for product in PRODUCTS}
    assert min(len(play.faulty(f)) for f in ("double", "swap", "drop")) > 2
    assert [zlib.crc32(e.raw) for e in play.log if e.kind == "feed"] == [e.crc for e in play.sent]
    reader, rows, _ = play.read()
    assert reader.counts["late"] == 0
    ids = rows.select("product_id", "session", "n", "k")
    assert not ids.is_duplicated().any()
    assert rows["row_time"].n_unique() >= rows.filter(product_id="BTC-USD").height
    # Doubled levels are the same levels: the book is the exchange's own.
    for product in ("BTC-USD", "SOL-USD"):
        for side, levels in zip((BIDS, ASKS), books[product], strict=True):
            held = side_levels(reader.state(product).book, side, 100).tolist()
            assert held == [[float(p), float(q)] for p, q in levels[:100]], product
    assert not [r for r in play.records("gap") if r["product_id"] != "ETH-USD"]


def test_a_lost_trade_takes_one_book_down_and_two_seconds_bring_it_back(scene: Callable[..., object]) -> None:
    with scene("faults-resync", seconds=36, speed=10.0) as play:
        assert play.until(lambda: play.running.report.messages > 300, 20)
        play.inject("drop", kind="match", product="SOL-USD", count=1)
        play.finish()
    (lost,) = play.faulty("drop")
    assert trade_ids(play.log, "SOL-USD", "match")[int(lost.key)] == 0
    gaps = [(i, json.loads(e.raw)) for i, e in enumerate(play.log) if e.kind == "state" and b'"gap"' in e.raw[:20]]
    ((at, gap),) = gaps
    assert (gap["product_id"], gap["reason"]) == ("SOL-USD", "trades")
    shown_ns = play.log[at].recv_ns
    again = next(e for e in play.log[at:] if e.raw.startswith(b'{"type":"snapshot"'))
    assert again.product_id == "SOL-USD"
    assert (again.recv_ns - shown_ns) / S < live_kit.patience(2.0)
    for product in ("BTC-USD", "ETH-USD"):
        during = [e for e in play.log[at:] if e.product_id == product and e.recv_ns <= again.recv_ns + S]
        assert len(during) > 5
    _, _, quotes = play.read()
    assert set(quotes.filter(pl.col("kind") != "quote")["product_id"]) == {"SOL-USD"}
    ((_, start_ns, end_ns, _),) = live_kit.gaps_of(quotes)
    assert 0 < end_ns - start_ns < live_kit.patience(2.0) * S


def test_every_lost_number_of_an_advanced_connection_is_found(scene: Callable[..., object]) -> None:
    with scene("faults-numbers", path="/advanced", seconds=36, speed=10.0) as play:
        for product in PRODUCTS:
            assert play.until(lambda: play.running.report.messages > 200, 20)
            before = play.running.report.gaps.get("sequence", 0)
            play.inject("drop", product=product, count=1)
            assert play.until(lambda b=before: play.running.report.gaps.get("sequence", 0) > b, 5)  # type: ignore[misc]
        play.finish()
    assert len(play.faulty("drop")) == 3
    numbers = [json.loads(e.raw).get("sequence_num") for e in play.log if e.kind == "feed"]
    holes = [n for before, n in pairwise(numbers) if n is not None and n != before + 1]
    assert len(holes) == 3
    shown = {json.loads(e.raw)["sequence_num"]: i for i, e in enumerate(play.log) if e.kind == "feed"}
    for n in holes:
        before = play.log[max(0, shown[n] - len(PRODUCTS)) : shown[n]]
        said = [json.loads(e.raw) for e in before if e.kind == "state"]
        assert said and all(r["type"] == "gap" and r["reason"] == "sequence" for r in said), n
    reader, _, quotes = play.read()
    assert all(int(reader.state(p).s["book_state"][0]) == 1 for p in PRODUCTS)
    lengths = [(g.end_ns - g.start_ns) / S for g in live_kit.gaps_of(quotes) if g.session]
    assert max(lengths) < live_kit.patience(2.0)


def test_a_connection_cut_stalled_or_dead_is_one_gap_and_a_new_session(
    scene: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.feed.client.QUIET_HEARTBEAT_S", 1.2)
    with scene("faults-connections", seconds=150, speed=10.0) as play:
        report = lambda: play.running.report  # noqa: E731
        assert play.until(lambda: report().messages > 100, 20)
        play.inject("stall", seconds=0.6)
        for sessions, fault in enumerate(("cut", "half_open", "disconnect"), start=1):
            before = report().messages
            assert play.until(lambda b=before: report().messages > b + 60, 20)  # type: ignore[misc]
            assert report().sessions == sessions
            if fault == "cut":
                play.inject("reject", count=1)
            play.inject(fault)
            assert play.until(lambda s=sessions: report().sessions == s + 1, 20), fault  # type: ignore[misc]
        before = report().messages
        assert play.until(lambda: report().messages > before + 60, 20)
        play.running.end()
        play.log = log_of(play._servers, play._topic)
    assert len(play.events("stall")) == len(play.events("reject")) == 1
    _, _, quotes = play.read()
    gaps = live_kit.gaps_of(quotes)
    assert Counter(g.product for g in gaps) == dict.fromkeys(PRODUCTS, 3)
    stopped_ns = play.log[-1].recv_ns
    there = Counter(zlib.crc32(e.raw) for e in play.log)
    missing = [e for e in play.sent if e.crc not in there and e.time_ns < stopped_ns]
    assert not live_kit.uncovered(missing, gaps, 0.1)
    assert all(g.end_ns - g.start_ns <= live_kit.patience(5.0) * S for g in gaps)


def test_a_refused_channel_ends_it_with_what_the_exchange_said(data_dir: Path, kafka_embedded: str) -> None:
    with (
        exchange(Synthetic(seed=9), faults="refuse=level2_batch") as server,
        pytest.raises(InputError, match=r"refused to subscribe .*level2_batch.*correct --pair or --channels"),
    ):
        ingest(Order(server.url, PRODUCTS, CHANNELS, "faults-refused", minutes=0.5), kafka_embedded)


@pytest.mark.parametrize(
    ("tape", "speed"),
    [("exchange_10products_20210417_31s", 12.0), ("advanced_BTC-ETH_20260809_24s", 10.0)],
)
def test_a_clean_tape_by_wire_raises_no_alarm(
    scene: Callable[..., object], shared_data: Path, tape: str, speed: float
) -> None:
    feed = Taped([shared_data / f"{tape}.ndjson.gz"], None, 50)
    path = "/advanced" if feed.dialect == "advanced" else ""
    with scene(f"clean-{tape[:8]}", feed=feed, products=feed.products, speed=speed, path="") as play:
        assert path in play.server.url
        play.finish()
    report = play.running.report
    assert report.messages > 500
    assert (dict(report.gaps), report.malformed, report.future) == ({}, 0, 0)
    assert report.sessions == 1
    _, _, quotes = play.read()
    assert set(quotes["kind"]) == {"quote"}
