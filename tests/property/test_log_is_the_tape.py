"""The raw log read in partitions, in batches, or from the middle gives the rows that the whole tape gives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow.compute as pc
import pytest

from feature_repo.contract import FEATURE_NAMES
from ingestion.kernel import Featurizer, LogRows, Rows
from ingestion.topics import Envelope, partition_of, tape_line
from tests.log_kit import PRODUCTS, SESSION, S, market, numbered, record, with_keyframes
from tests.property.test_stream_invariance import bits


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

