"""The parts of the simulated exchange, one by one: times, faults, ledger, requests, books, batches, pace."""

from __future__ import annotations

import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import InputError, UsageError
from ingestion.exchange import Faults, Item, Synthetic, Taped, preloaded, read_ledger
from ingestion.exchange.faults import Draw, order
from ingestion.exchange.ledger import Ledger, Record
from ingestion.exchange.market import Book, Market
from ingestion.exchange.messages import as_recorded
from ingestion.exchange.pace import Pace
from ingestion.exchange.requests import Refused, read_request
from ingestion.exchange.taped import batched
from ingestion.exchange.times import Shift, event_ns
from tests import exchange_kit as kit

MS = 1_000_000
START = datetime(2025, 12, 1, tzinfo=UTC)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


# Times


@given(when=moments, shift_ms=st.integers(-(10**12), 10**12), digits=st.integers(3, 6))
def test_shifted_time_is_that_of_datetime(when: datetime, shift_ms: int, digits: int) -> None:
    shift = Shift(shift_ms * MS + 999_999)  # what is no whole millisecond is left
    text = when.isoformat(timespec="microseconds")[: -6 - (6 - digits)] + "Z"
    kept = when.replace(microsecond=when.microsecond - when.microsecond % 10 ** (6 - digits))
    wanted = (kept + timedelta(milliseconds=shift_ms)).isoformat(timespec="microseconds")[: -6 - (6 - digits)] + "Z"
    for _ in range(2):  # the second time from memory
        assert shift.text(text.encode()).decode() == wanted


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("2025-12-01T00:00:00Z", "2025-12-01T00:00:01.500Z"),
        ("2025-12-01T00:00:00.5Z", "2025-12-01T00:00:02.000Z"),
        ("2025-12-01T00:00:00.50436Z", "2025-12-01T00:00:02.00436Z"),
        ("2025-12-01T00:00:00.228568804Z", "2025-12-01T00:00:01.728568804Z"),
        ("2025-12-01T00:00:00.250000+00:00", "2025-12-01T00:00:01.750000+00:00"),
        ("2025-12-01T00:00:00.000000", "2025-12-01T00:00:01.500000"),
        ("yesterday", "yesterday"),
        ("", ""),
    ],
)
def test_form_of_a_time_is_kept(text: str, moved: str) -> None:
    shift = Shift(1_500 * MS)
    assert [shift.text(text.encode()).decode() for _ in range(2)] == [moved, moved]


def test_squeezed_distances() -> None:
    shift = Shift(1_000 * MS, origin_ns=event_ns("2025-12-01T00:00:00Z") or 0, squeeze=10.0)
    assert shift.text(b"2025-12-01T00:00:05.123456Z") == b"2025-12-01T00:00:01.512345Z"
    assert shift.text(b"2025-11-30T23:59:50Z") == b"2025-12-01T00:00:00.000000Z"


def test_every_time_of_an_advanced_message_moves_and_its_number_is_cut_out() -> None:
    raw = (
        b'{"channel":"l2_data","timestamp":"2026-08-09T21:05:48.228568804Z","sequence_num":12,"events":[{"type":'
        b'"update","product_id":"A","updates":[{"side":"bid","event_time":"2026-08-09T21:05:48.17032Z",'
        b'"price_level":"1","new_quantity":"2"}]}]}'
    )
    head, tail = as_recorded(raw, Shift(1_000 * MS))
    assert head.endswith(b'"sequence_num":')
    said = json.loads(head + b"7" + tail)
    assert said["sequence_num"] == 7 and said["timestamp"] == "2026-08-09T21:05:49.228568804Z"
    assert said["events"][0]["updates"][0]["event_time"] == "2026-08-09T21:05:49.17032Z"


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_speed_must_be_positive(speed: float) -> None:
    with pytest.raises(UsageError, match="speed must be > 0"):
        Pace(0, speed)


def test_a_feed_that_began_some_time_ago_bears_the_times_of_then() -> None:
    pace = Pace(0, 90.0, ago_s=1_980.0)
    before = time.time_ns()
    pace.start()
    assert before - 1_980 * 10**9 - MS <= pace.shift.ns(0) <= time.time_ns() - 1_980 * 10**9


def test_nothing_can_be_squeezed_without_pace() -> None:
    with pytest.raises(UsageError, match="finite"):
        Pace(0, float("inf"), "squeeze")


# Faults


def test_specification_is_read() -> None:
    rules = Faults.parse(
        "drop=0.001, late=0.01:3s@match+ticker/BTC-USD+ETH-USD,stall=every:20s:2.5s,refuse=level2_batch,"
        "half_open=every:60s"
    ).rules
    drop, late, stall, refuse, half_open = rules
    assert (drop.chance, drop.kinds) == (0.001, {"ticker", "match", "l2update"})
    assert (late.chance, late.length_s, late.kinds) == (0.01, 3.0, {"match", "ticker"})
    assert late.products == {"BTC-USD", "ETH-USD"}
    assert (stall.every_s, stall.length_s) == (20.0, 2.5)
    assert (refuse.channel, refuse.chance) == ("level2_batch", 1.0)
    assert half_open.every_s == 60.0
    assert not late.meets("match", "SOL-USD") and not late.meets("heartbeat", "BTC-USD")


@pytest.mark.parametrize(
    "text",
    ["rain=0.1", "drop", "drop=", "drop=2", "drop=-0.1", "drop=often", "drop=every:", "drop=every:xs", "drop=0.1:2s:3s",
     "late=0.1:xs", "drop=0.1@weather", "no_snapshot=every:3s", "stall=every:0s"],
)  # fmt: skip
def test_wrong_specification_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"faults|kinds"):
        Faults.parse(text)


def test_chances_meet_as_often_as_asked_and_repeat_by_seed() -> None:
    faults = Faults.parse("drop=0.1,double=0.02", seed=5)
    draws = [
        [rule.fault if rule else "" for rule in (draw.message("ticker", "A", 0.0) for _ in range(20_000))]
        for draw in (Draw(faults, 1, 0.0), Draw(faults, 1, 0.0), Draw(faults, 2, 0.0))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert abs(draws[0].count("drop") - 2_000) < 5 * 42  # five standard deviations
    assert abs(draws[0].count("double") - 0.9 * 400) < 5 * 19


def test_repeated_fault_comes_by_the_clock() -> None:
    draw = Draw(Faults.parse("drop=every:10s,stall=every:4s"), 1, 100.0)
    met = [t for t in range(100, 141) if draw.message("ticker", "A", t)]
    assert met == [110, 120, 130, 140]
    assert [t for t in range(100, 113) if draw.due(t)] == [104, 108, 112]


def test_orders_are_checked() -> None:
    with pytest.raises(UsageError, match="fault must be one of"):
        order("rain")
    with pytest.raises(UsageError, match="count must be >= 1"):
        order("drop", count=0)
    with pytest.raises(UsageError, match="kinds"):
        order("drop", kind="weather")


# Ledger


def test_ledger_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sent.ndjson"
    with Ledger(path) as ledger:
        ledger.event(1, "open", 5, "/")
        ledger.add(
            [Record(1, 1, "match", "BTC-USD", "9", 77, -1, ""), Record(1, 0, "ticker", "A", "", 0, 3, "drop")], 6
        )
    opened, sent, dropped = read_ledger(path)
    assert (opened.event, opened.why, opened.time_ns, opened.sent) == ("open", "/", 5, False)
    assert (sent.index, sent.kind, sent.product, sent.key, sent.crc, sent.seq) == (1, "match", "BTC-USD", "9", 77, None)
    assert sent.sent and not dropped.sent
    assert (dropped.index, dropped.seq, dropped.fault, dropped.time_ns) == (None, 3, "drop", 6)


def test_ledger_cut_short_is_read_to_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "sent.ndjson"
    with Ledger(path) as ledger:
        ledger.add([Record(1, i, "match", "A", str(i), i, -1, "") for i in range(1, 11)], 6)
    whole = path.read_bytes()
    for cut in range(len(whole) - 90, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e.index for e in read_ledger(path)] == list(range(1, whole[:cut].count(b"\n") + 1))
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match="damaged"):
        read_ledger(path)


# Requests


def test_one_request_may_mix_forms_and_repeat_itself() -> None:
    request = read_request(
        '{"type":"subscribe","product_ids":["A"],"channels":["ticker",{"name":"matches","product_ids":["B","A"]},"ticker"]}',
        None,
        ("A", "B"),
    )
    assert request.topics == (("ticker", "A"), ("trades", "A"), ("trades", "B"))
    assert request.dialect == "exchange"


def test_advanced_heartbeats_need_no_product() -> None:
    request = read_request('{"type":"subscribe","channel":"heartbeats"}', "advanced", ("A",))
    assert request.topics == (("beats", ""),)


def test_channels_may_be_left_without_naming_products() -> None:
    request = read_request('{"type":"unsubscribe","channels":["level2_batch"]}', "exchange", ("A",))
    assert (request.action, request.topics) == ("unsubscribe", (("book", ""),))


def test_form_of_the_other_dialect_is_refused() -> None:
    with pytest.raises(Refused, match="channels is required"):
        read_request('{"type":"subscribe","product_ids":["A"],"channel":"ticker"}', "exchange", ("A",))


# Books and batches

levels = st.dictionaries(st.integers(1, 8), st.integers(0, 3), max_size=8)


@given(before=st.tuples(levels, levels), after=st.tuples(levels, levels))
def test_changes_between_books_make_one_the_other(
    before: tuple[dict[int, int], ...], after: tuple[dict[int, int], ...]
) -> None:
    books = []
    for bids, asks in (before, after):
        book = Book()
        for side, side_levels in (("buy", bids), ("sell", asks)):
            for price, size in side_levels.items():
                book.set(side, str(price), str(size))
        books.append(book)
    one, other = books
    changes = one.changes_to(other)
    for change in changes:
        one.set(*change)
    assert one.sides() == other.sides()
    assert len(changes) <= 16


def l2update(at_ms: int, *changes: tuple[str, str, str], product: str = "A") -> Item:
    when = (START + timedelta(milliseconds=at_ms)).isoformat(timespec="microseconds")[:-6] + "Z"
    raw = {"type": "l2update", "product_id": product, "changes": list(changes), "time": when}
    return Item(at_ms * MS, "l2update", product, json.dumps(raw).encode())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from("AB"),
            st.sampled_from(("buy", "sell")),
            st.integers(1, 4),
            st.integers(0, 2),
        ),
        max_size=40,
    )
)
def test_batches_come_apart_and_leave_the_same_book(drawn: list[tuple[int, str, str, int, int]]) -> None:
    at, items = 0, []
    for wait, product, side, price, size in drawn:
        at += wait
        items.append(l2update(at, (side, str(price), str(size)), product=product))
    joined = list(batched(iter(items), 50 * MS))
    assert [i.recv_ns for i in joined] == sorted(i.recv_ns for i in joined)
    for product in ("A", "B"):
        told = [i for i in joined if i.product == product]
        assert all(b.recv_ns - a.recv_ns >= 50 * MS for a, b in pairwise(told))
        assert [end(told), times(told)] == [end([i for i in items if i.product == product]), sorted(times(told))]


def end(items: list[Item]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for item in items:
        for side, price, size in json.loads(item.raw)["changes"]:
            found[side, price] = size
    return found


def times(items: list[Item]) -> list[str]:
    return [json.loads(item.raw)["time"] for item in items]


def test_market_is_not_hurt_by_a_damaged_message() -> None:
    market = Market(("A",), "exchange", continuous=False)
    snapshot = b'{"type":"snapshot","product_id":"A","bids":[["1","1"]],"asks":[["2","1"]]}'
    market.apply(Item(0, "snapshot", "A", snapshot))
    with pytest.raises(msgspec.MsgspecError):
        market.apply(Item(1, "l2update", "A", b'{"type":"l2update","changes":[["buy","1"'))
    book = market.products["A"].book
    assert book is not None and book.sides() == ([("1", "1")], [("2", "1")])


# Feeds


def test_generated_feed_repeats_and_ends() -> None:
    feed = Synthetic(seed=2, products=("BTC-USD",), seconds=20)
    items = list(feed.items())
    assert items == list(feed.items()) == list(preloaded(feed).items())
    assert {item.product for item in items} == {"BTC-USD"}
    with pytest.raises(UsageError, match="products must be"):
        Synthetic(products=("DOGE-USD",))


@pytest.mark.parametrize("form", ["bare", "wrapped", "envelope"])
def test_tape_of_any_form_is_the_same_feed(tmp_path: Path, form: str) -> None:
    made = kit.tickers(30)
    path = tmp_path / "tape.ndjson.gz"
    with gzip.open(path, "wt") as tape:
        for n, item in enumerate(made, 1):
            raw = item.raw.decode()
            if form == "wrapped":
                raw = json.dumps({"ts": item.recv_ns / 1e9, "pair": item.product, "raw": raw})
            elif form == "envelope":
                head = {"ts": item.recv_ns / 1e9, "pair": item.product, "session": "a" * 16, "n": n}
                raw = json.dumps({**head, "kind": "feed", "dialect": "exchange", "raw": raw})
                tape.write(json.dumps({**head, "kind": "state", "dialect": "exchange", "raw": "{}"}) + "\n")
            tape.write(raw + "\n")
    feed = Taped([path])
    assert (feed.dialect, feed.products) == ("exchange", ("BTC-USD",))
    assert [(i.kind, i.raw) for i in feed.items()] == [("ticker", i.raw) for i in made]
    assert all(abs(a.recv_ns - b.recv_ns) < 1_000 for a, b in zip(feed.items(), made, strict=True))


def test_tapes_of_both_dialects_or_none_are_refused(tmp_path: Path) -> None:
    one, other, empty = (tmp_path / f"{name}.ndjson" for name in ("one", "other", "empty"))
    one.write_bytes(kit.ticker(0).raw + b"\n")
    trade = {
        "product_id": "A",
        "trade_id": "1",
        "price": "1",
        "size": "1",
        "time": "2025-12-01T00:00:00Z",
        "side": "BUY",
    }
    event = {"type": "update", "trades": [trade]}
    other.write_text(json.dumps({"channel": "market_trades", "timestamp": "2025-12-01T00:00:00Z", "events": [event]}))
    empty.write_text('{"greeting":"hello"}\n')
    with pytest.raises(InputError, match="both dialects"):
        Taped([one, other])
    with pytest.raises(InputError, match="no message"):
        Taped([empty])
    with pytest.raises(UsageError, match="DOGE-USD are not on the tape"):
        Taped([one], ["DOGE-USD"])
