"""The raw log read in partitions, in batches, or from the middle gives the rows that the whole tape gives."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow.compute as pc
import pytest

from feature_repo.contract import FEATURE_NAMES
from ingestion.kernel import Featurizer, LogRows, Rows
from ingestion.kernel.book import ASKS, BIDS, side_levels
from ingestion.market import generate
from ingestion.topics import Envelope, partition_of, tape_line
from tests.property.test_stream_invariance import bits

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
SESSION = "00f1a2b3c4d5e6f7"
S = 1_000_000_000


def record(session: str, recv_ns: int, product: str, kind: str, **said: object) -> Envelope:
    if product:
        said["product_id"] = product
    return Envelope(session, 0, recv_ns, product, kind, "exchange", json.dumps(said).encode())  # type: ignore[arg-type]


def numbered(log: Sequence[Envelope]) -> list[Envelope]:
    counts: dict[str, int] = defaultdict(int)
    out = []
    for e in log:
        counts[e.session] += 1
        out.append(e._replace(n=counts[e.session]))
    return out


def market(seed: int, seconds: int, products: Sequence[str] = PRODUCTS, session: str = SESSION) -> list[Envelope]:
    made = generate(seed=seed, seconds=seconds, products=products)
    log = [Envelope(session, 0, t // 1000 * 1000, p, "feed", "exchange", raw) for t, p, raw in made]
    said = {"products": list(products), "channels": ["ticker", "matches", "level2_batch", "heartbeat"]}
    return [record(session, log[0].recv_ns, "", "state", type="session", feed="exchange", **said), *log]


def with_keyframes(log: list[Envelope], every_s: int = 60) -> list[Envelope]:
    """Put in what the ingestor does: status and keyframe of each product, as its own book stands."""
    watch, out, due, watched = Featurizer(), [], log[0].recv_ns + every_s * S, 0
    for i, e in enumerate(log):
        if e.recv_ns >= due:
            due += every_s * S
            watch.push_log([m._replace(n=j + 1) for j, m in enumerate(log[watched:i], start=watched)])
            watched = i
            for product in PRODUCTS:
                book = watch.state(product).book
                sides = {"bids": side_levels(book, BIDS, 1000).tolist(), "asks": side_levels(book, ASKS, 1000).tolist()}
                channels = ["ticker", "matches", "level2_batch", "heartbeat"]
                out.append(record(e.session, e.recv_ns, product, "state", type="status", channels=channels, trade_id=1))
                out.append(record(e.session, e.recv_ns, product, "keyframe", type="keyframe", **sides))
        out.append(e)
    return numbered(out)


def joined(pushed: Sequence[LogRows]) -> Rows:
    return LogRows([part for rows in pushed for part in rows.parts]).tables()


def in_partitions(log: Sequence[Envelope], partitions: int, cut: Callable[[], int]) -> Rows:
    """Read as that many workers would, each its own partition, in batches."""
    pushed = []
    for index in range(partitions):
        mine = [e for e in log if not e.product_id or partition_of(e.product_id, partitions) == index]
        worker = Featurizer(keeps=lambda p, index=index: partition_of(p, partitions) == index)  # type: ignore[misc]
        at = 0
        while at < len(mine):
            step = cut()
            pushed.append(worker.push_log(mine[at : at + step]))
            at += step
    return joined(pushed)


def from_tape(log: Sequence[Envelope]) -> Rows:
    return Featurizer().push_lines(b"".join(map(tape_line, log)))


def by_product(rows: Rows) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    return bits(rows.features), bits(rows.quotes)


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_partitions_and_batches_give_the_rows_of_the_tape(partitions: int) -> None:
    draw = random.Random(partitions)
    log = with_keyframes(market(3, 75))
    wanted = from_tape(log)
    assert wanted.features.num_rows > 500
    assert by_product(in_partitions(log, partitions, lambda: draw.choice([1, 40, 500]))) == by_product(wanted)


def test_records_change_nothing_on_a_clean_log() -> None:
    log = market(4, 75)
    plain = from_tape(numbered([e for e in log if e.kind == "feed"]))
    told = from_tape(with_keyframes(log))
    kept = [n for n in plain.features.column_names if n not in ("n", "created_timestamp")]
    assert bits(told.features.select(kept)) == bits(plain.features.select(kept))


def test_a_warm_reader_agrees_with_every_keyframe() -> None:
    reader = Featurizer()
    reader.push_log(with_keyframes(market(5, 130)))
    assert reader.counts["record: keyframe"] == 6
    assert reader.counts["keyframe_differs"] == 0


def test_a_reader_with_another_book_tells_so() -> None:
    log = with_keyframes(market(5, 130))
    at = next(i for i, e in enumerate(log) if e.kind == "keyframe")
    wrong = json.loads(log[at].raw)
    wrong["bids"][0][1] += 1
    log[at] = log[at]._replace(raw=json.dumps(wrong).encode())
    reader = Featurizer()
    reader.push_log(log)
    assert reader.counts["keyframe_differs"] == 1


def test_a_told_session_has_the_gaps_that_are_recorded_and_no_others() -> None:
    log = market(6, 60, ["BTC-USD"])
    third = len(log) // 3
    trade = (b'{"type":"match"', b'{"type":"ticker"')
    lossy = [e for i, e in enumerate(log) if not (third < i <= third + 80 and e.raw.startswith(trade))]  # ids jump
    assert Featurizer().push_log(numbered(lossy[1:])).tables().quotes["kind"].to_pylist().count("gap_start") == 1
    silent = Featurizer()
    rows = silent.push_log(numbered(lossy)).tables()
    assert silent.counts["gaps"] == 0
    assert "gap_start" not in rows.quotes["kind"].to_pylist()

    gap = record(SESSION, lossy[third + 1].recv_ns, "BTC-USD", "state", type="gap", reason="trades")
    told = Featurizer()
    rows = told.push_log(numbered([*lossy[: third + 1], gap, *lossy[third + 1 :]])).tables()
    assert told.counts["gaps"] == told.counts["gap_recorded"] == 1
    assert rows.quotes["kind"].to_pylist().count("gap_start") == 1
    assert told.state("BTC-USD").s["book_state"][0] == 2  # only the exchange's next snapshot would end it


def test_a_reader_that_enters_by_a_keyframe_agrees_after_960_s() -> None:
    log = with_keyframes(market(8, 1100))
    entry = next(i for i, e in enumerate(log) if e.raw.startswith(b'{"type": "status"'))
    reader = Featurizer()
    late = joined([reader.push_log(log[entry:])]).features
    whole = from_tape(log).features
    assert reader.counts["gaps"] == 0
    since = log[entry].recv_ns + 961 * S
    compared = 0
    for product in PRODUCTS:
        mine = (pc.field("product_id") == product) & (pc.field("event_time_ns") > since)
        a, b = late.filter(mine), whole.filter(mine)
        ids = ["session", "n", "k", "row_time", "event_time_ns"]
        assert a.select(ids).equals(b.select(ids))
        for name in FEATURE_NAMES:
            x, y = (t[name].to_numpy(zero_copy_only=False).astype(float) for t in (a, b))
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15, err_msg=f"{product} {name}")
        compared += a.num_rows
    assert compared > 500


def test_a_restart_between_any_two_batches_changes_no_bit() -> None:
    log = with_keyframes(market(9, 70))
    worker, pushed = Featurizer(), []
    for at in range(0, len(log), 997):
        pushed.append(worker.push_log(log[at : at + 997]))
        worker = Featurizer.restore(worker.save())
    assert by_product(joined(pushed)) == by_product(from_tape(log))


def test_messages_seen_before_are_dropped() -> None:
    log = numbered(market(10, 30))
    reader = Featurizer()
    pushed = [reader.push_log(log[lo:hi]) for lo, hi in ((0, 200), (100, 250), (240, len(log)))]
    assert by_product(joined(pushed)) == by_product(from_tape(log))
    assert reader.counts["duplicate"] == 110

