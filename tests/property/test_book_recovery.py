"""The book that ingest watches, driven by chance, against one that a child could write."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.feed.inbox import Opened, Received
from ingestion.feed.recovery import Book, Recovery, Resubscribe
from ingestion.feed.watch import KEYFRAME_NS, Watch
from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels
from ingestion.topics import Envelope

PRODUCTS = ("BTC-USD", "ETH-USD")
START = 1_760_000_000_000_000_000
STEP = 10_000_000

PRICES = st.integers(1, 12)
SIDES = st.sampled_from(["buy", "sell"])
CHANGES = st.lists(st.tuples(SIDES, PRICES, st.integers(0, 3)), min_size=1, max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("snapshot"), st.integers(3, 10), st.integers(1, 3)),
    st.tuples(st.just("update"), CHANGES, st.just(0)),
    st.tuples(st.just("trade"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("crossed snapshot"), st.just(0), st.just(0)),
    st.tuples(st.just("duplicate"), st.just(0), st.just(0)),
    st.tuples(st.just("reorder"), CHANGES, st.integers(1, 40)),
    st.tuples(st.just("silence"), st.just(0), st.just(0)),
    st.tuples(st.just("reconnect"), st.just(0), st.just(0)),
    st.tuples(st.just("keyframe"), st.just(0), st.just(0)),
)


@dataclass
class Naive:
    """A book as the documentation tells it: a dict a side, good from a snapshot to the next doubt."""

    synced: bool = False
    sides: dict[str, dict[float, float]] = field(default_factory=lambda: {"buy": {}, "sell": {}})
    trade_id: int | None = None
    gaps: int = 0

    def doubt(self) -> None:
        self.gaps += self.synced
        self.synced = False

    def snapshot(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]]) -> None:
        if bids and asks and max(p for p, _ in bids) >= min(p for p, _ in asks):
            self.doubt()
            return
        self.sides = {"buy": dict(bids), "sell": dict(asks)}
        self.synced = True

    def update(self, changes: list[tuple[str, float, float]]) -> None:
        if not self.synced:
            return
        for side, price, size in changes:
            self.sides[side].pop(price, None)
            if size:
                self.sides[side][price] = size
        bids, asks = self.sides["buy"], self.sides["sell"]
        if bids and asks and max(bids) >= min(asks):
            self.doubt()

    def trade(self, trade_id: int) -> None:
        if self.trade_id is not None and trade_id > self.trade_id + 1:
            self.doubt()
        self.trade_id = max(trade_id, self.trade_id or 0)


class Scene:
    """One connection after another, with both books beside it."""

    def __init__(self) -> None:
        self.now = START
        self.log: list[Envelope] = []
        self.sessions = 0
        self.last: dict[str, bytes] = {}
        self.ids = dict.fromkeys(PRODUCTS, 100)
        self.connect()

    def connect(self) -> None:
        self.sessions += 1
        self.watch = Watch(
            Opened(f"{self.sessions:016x}", self.now, "exchange", PRODUCTS, ("matches", "level2_batch", "heartbeat"))
        )
        self.naive = {p: Naive() for p in PRODUCTS}
        self.recovery = Recovery(PRODUCTS, 0.0)
        self.log += self.watch.begin()
        for product in PRODUCTS:
            self.send(
                product, {"type": "last_match", "trade_id": self.ids[product], "price": "5", "size": "1", "side": "buy"}
            )
            self.naive[product].trade_id = self.ids[product]
            self.beat(product)

    def beat(self, product: str) -> None:
        self.send(product, {"type": "heartbeat", "sequence": 1, "last_trade_id": self.ids[product]})
        if self.naive[product].trade_id != self.ids[product]:
            self.naive[product].doubt()
            self.naive[product].trade_id = self.ids[product]

    def send(self, product: str, message: dict[str, object], behind_ns: int = 0) -> None:
        self.now += STEP
        at = self.now - behind_ns
        seconds, rest = divmod(at // 1000, 1_000_000)
        stamp = f"{_clock(seconds)}.{rest:06d}Z"
        raw = json.dumps({**message, "product_id": product, "time": stamp}).encode()
        self.deliver(product, raw)

    def deliver(self, product: str, raw: bytes) -> None:
        self.last[product] = raw
        self.log += self.watch.take([Received(self.now, raw)])


def _clock(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def play(scene: Scene, product: str, step: tuple[str, object, object]) -> None:
    kind, a, b = step
    naive = scene.naive[product]
    if kind == "snapshot":
        assert isinstance(a, int)
        assert isinstance(b, int)
        bids = [(float(p), float(b)) for p in range(1, a)]
        asks = [(float(p), float(b)) for p in range(a, 13)]
        scene.send(product, {"type": "snapshot", "bids": _text(bids), "asks": _text(asks)})
        naive.snapshot(bids, asks)
    elif kind == "crossed snapshot":
        bids, asks = [(7.0, 1.0)], [(6.0, 1.0)]
        scene.send(product, {"type": "snapshot", "bids": _text(bids), "asks": _text(asks)})
        naive.snapshot(bids, asks)
    elif kind in ("update", "reorder"):
        assert isinstance(a, list)
        assert isinstance(b, int)
        changes = [(side, float(p), float(size)) for side, p, size in a]
        update = {"type": "l2update", "changes": [[s, str(p), str(z)] for s, p, z in changes]}
        scene.send(product, update, behind_ns=b * STEP)
        naive.update(changes)
    elif kind == "trade":
        assert isinstance(a, int)
        scene.ids[product] += a
        scene.send(
            product,
            {"type": "match", "trade_id": scene.ids[product], "price": "5", "size": "1", "side": "buy"},
        )
        naive.trade(scene.ids[product])
    elif kind == "duplicate":
        raw = scene.last[product]
        scene.deliver(product, raw)
        message = json.loads(raw)
        if message["type"] == "l2update":
            naive.update([(s, float(p), float(z)) for s, p, z in message["changes"]])
        elif message["type"] == "snapshot":
            naive.snapshot(*([(float(p), float(z)) for p, z in message[side]] for side in ("bids", "asks")))
    elif kind == "silence":
        scene.now += 6_000_000_000
        for p in PRODUCTS:
            scene.naive[p].doubt()
            scene.beat(p)
    elif kind == "reconnect":
        scene.connect()
    else:  # a minute of heartbeats, then records are due
        until = scene.now + KEYFRAME_NS
        while scene.now < until:
            scene.now += 4_000_000_000
            for p in PRODUCTS:
                scene.beat(p)


def _text(levels: list[tuple[float, float]]) -> list[list[str]]:
    return [[str(p), str(z)] for p, z in levels]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PRODUCTS), STEPS), min_size=1, max_size=25))
def test_the_watched_book_is_the_naive_one(steps: list[tuple[str, tuple[str, object, object]]]) -> None:
    scene = Scene()
    clock = 0.0
    for product, step in steps:
        before = {p: scene.recovery.state(p) for p in PRODUCTS}
        session, seen = scene.sessions, len(scene.log)
        play(scene, product, step)
        clock += 0.01
        for p in PRODUCTS:
            naive = scene.naive[p]
            synced = scene.watch.detector.synced(p)
            assert synced == naive.synced, (p, step)
            state = scene.watch.detector.state(p)
            assert state is not None
            if synced:
                best_first = sorted(naive.sides["buy"].items(), reverse=True), sorted(naive.sides["sell"].items())
                assert side_levels(state.book, BIDS).tolist() == [list(level) for level in best_first[0]]
                assert side_levels(state.book, ASKS).tolist() == [list(level) for level in best_first[1]]
            actions = scene.recovery.observe(p, synced, clock)
            fell = before[p] is Book.SYNCED and not synced and scene.sessions == session
            assert actions == ([Resubscribe(p)] if fell else [])
            assert (scene.recovery.state(p) is Book.SYNCED) == naive.synced
        frames = {e.product_id: json.loads(e.raw) for e in scene.log[seen:] if e.kind == "keyframe"}
        for p, frame in frames.items():
            naive = scene.naive[p]
            assert naive.synced, "a keyframe of a book in doubt"
            assert frame["bids"] == [list(level) for level in sorted(naive.sides["buy"].items(), reverse=True)]
    told = [json.loads(e.raw) for e in scene.log if e.session == f"{scene.sessions:016x}" and e.kind == "state"]
    for p in PRODUCTS:
        assert sum(r["type"] == "gap" and r["product_id"] == p for r in told) >= scene.naive[p].gaps
    reader = Featurizer()
    reader.push_log(scene.log)
    for p in PRODUCTS:  # whoever reads the log comes to the same book
        state = reader.state(p)
        assert (int(state.s["book_state"][0]) == 1) == scene.naive[p].synced
        if scene.naive[p].synced:
            assert side_levels(state.book, BIDS)[:, 0].tolist() == sorted(scene.naive[p].sides["buy"], reverse=True)
