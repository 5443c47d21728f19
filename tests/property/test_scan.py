"""The scanner of plain tickers is a short cut only: what it takes, the general decoder would have given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.kernel import Featurizer, reading
from ingestion.kernel.decode import Decoder
from ingestion.kernel.events import Batch
from ingestion.kernel.scan import count_lines, scan_tickers

NOW = 1_762_932_020_000_000_000
PLAIN = (
    b'{"type":"ticker","sequence":115498669093,"product_id":"BTC-USD","price":"103472.28","open_24h":"104763.2",'
    b'"volume_24h":"5461.74127717","low_24h":"102422.43","high_24h":"105504.83","volume_30d":"222137.61075405",'
    b'"best_bid":"103472.27","best_bid_size":"0.04145138","best_ask":"103472.28","best_ask_size":"0.02560996",'
    b'"side":"buy","time":"2025-11-12T07:20:11.615272Z","trade_id":900701309,"last_size":"0.00068754"}'
)
FIELDS = PLAIN[1:-1].split(b",")
BEAT = b'{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD","time":"2025-11-12T07:20:12Z"}'
VALUES = [
    b'""', b'"0"', b'"00"', b'"0.0"', b'"1."', b'".5"', b'"-1"', b'"+1"', b'"1e5"', b'"1E-3"', b"1", b"1.5", b"-0",
    b"01", b"null", b"true", b"[]", b"{}", b'"NaN"', b'"inf"', b'"999999999999999"', b'"9999999999999999"',
    b'"0.1234567890123456"', b'"123456789012345.1"', b'"0.30000000000000004"', b'"1 "', b'" 1"',
    b"9223372036854775807", b"9223372036854775808",
    b"999999999999999999", b'"ticker"', b'"Ticker"', b'"tick\\u0065r"', b'"sell"', b'"BUY"', b'"BTC\\u002dUSD"',
    b'"ETH-USD"', b'"\xc3\xa4"', b'"..."', b'"a/b"', b'"' + b"A" * 65 + b'"', b'"2025-11-12T07:20:11Z"',
    b'"2025-11-12 07:20:11.1+01:00"', b'"2025-11-12T07:20:11"', b'"2025-02-29T07:20:11Z"', b'"2030-01-01T00:00:00Z"',
    b'"1969-12-31T23:59:59Z"', b'"\x01"', b'"\x7f"', b'"a\\"b"', b'"12345678"', b'"1234567890123456789"', b'"\xff"',
]  # fmt: skip

numbers = st.from_regex(re.compile(rb"(0|[1-9][0-9]{0,10})(\.[0-9]{1,12})?"), fullmatch=True).map(lambda n: b'"%s"' % n)
values = st.one_of(st.sampled_from(VALUES), numbers, st.binary(max_size=12).map(lambda b: b'"%s"' % b))


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A ticker, whole or changed: other values, order, missing, doubled and unknown keys, or bytes struck at random."""
    fields = list(FIELDS)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(fields) - 1))
        key = fields[at].split(b":", 1)[0]
        change = draw(st.sampled_from(["value", "drop", "double", "move", "unknown"]))
        if change == "value":
            fields[at] = key + b":" + draw(values)
        elif change == "drop" and len(fields) > 1:
            del fields[at]
        elif change == "double":
            fields.insert(draw(st.integers(0, len(fields))), key + b":" + draw(values))
        elif change == "move":
            fields.insert(draw(st.integers(0, len(fields) - 1)), fields.pop(at))
        else:
            fields.insert(
                at, draw(st.sampled_from([b'"x":1', b'"raw":null', b'"n":3', b'"channel":"ticker"', b' "x":1']))
            )
    line = b"{" + b",".join(fields) + b"}"
    if draw(st.booleans()) and draw(st.booleans()):
        at = draw(st.integers(0, len(line) - 1))
        struck = draw(st.sampled_from([b"", b" ", b'"', b"\\", b"\r", b"\x00", b"}", b",", b"\xc3\xa4", b"9"]))
        line = line[:at] + struck + line[at + draw(st.integers(0, 1)) :]
    return line


chunks = st.lists(st.one_of(lines(), st.just(PLAIN), st.just(BEAT), st.just(b"")), min_size=1, max_size=8)


def decoded(data: bytes, *, scanned: bool) -> tuple[Batch, dict[str, Any]]:
    d = Decoder()
    with pytest.MonkeyPatch.context() as patch:
        if not scanned:
            patch.setattr(reading, "_LOOK_AHEAD", 0)
        batch = d.decode(data, NOW)
    return batch, {"last_n": d.last_n, "seen": dict(d.seen), "sessions": d.sessions, "line": d.line}


@settings(max_examples=800, deadline=None, derandomize=True)
@given(chunks, st.booleans())
def test_scanned_lines_give_the_same_events(chunk: list[bytes], ends: bool) -> None:
    data = b"\n".join(chunk) + (b"\n" if ends else b"")
    fast, state = decoded(data, scanned=True)
    slow, expected = decoded(data, scanned=False)
    assert state == expected
    assert fast.counts == slow.counts
    assert [(r.n, r.reason, r.line) for r in fast.rejects] == [(r.n, r.reason, r.line) for r in slow.rejects]
    assert fast.events.keys() == slow.events.keys()
    for product, events in fast.events.items():
        for name in events.dtype.names or ():
            assert events[name].tobytes() == slow.events[product][name].tobytes(), name


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 10**15 - 1), st.integers(0, 15))
def test_numbers_are_rounded_correctly(digits: int, places: int) -> None:
    whole = str(digits).rjust(places + 1, "0")
    text = f"{whole[: len(whole) - places]}.{whole[len(whole) - places :]}".rstrip(".")
    data = PLAIN.replace(b'"103472.28"', f'"{text}"'.encode(), 1) + b"\n"
    scanned = scan_tickers(data, 1, 1, NOW)
    if len(scanned.events):
        assert scanned.events["price"][0] == float(text)
    assert len(scanned.events) == (len(text.replace(".", "")) <= 15)


def test_the_plain_line_is_taken_and_others_are_left() -> None:
    data = b"\n".join([PLAIN, BEAT, PLAIN.replace(b'"buy"', b'"buy" '), PLAIN, b""]) + b"\n"
    scanned = scan_tickers(data, count_lines(data), 5, NOW)
    assert scanned.lines.tolist() == [0, 3]
    assert scanned.events["n"].tolist() == [5, 8]
    assert scanned.products == ["BTC-USD"]
    assert scanned.codes.tolist() == [0, 0]
    assert [data[lo:hi].count(b"\n") for _, lo, hi in scanned.left] == [0, 0, 0]
    assert scanned.left[:, 0].tolist() == [1, 2, 4]


def test_rows_stay_as_they_were_while_their_memory_would_be_taken_again() -> None:
    rng = np.random.default_rng(7)

    def push(featurizer: Featurizer, first: int) -> Any:
        made = []
        for i in range(first, first + 50):
            price = b'"price":"%d.%02d"' % (rng.integers(100_000, 100_100), rng.integers(0, 100))
            stamp = b"2025-11-12T07:%02d:%02d.615272Z" % (20 + i // 60, i % 60)
            line = PLAIN.replace(b'"price":"103472.28"', price).replace(b"2025-11-12T07:20:11.615272Z", stamp)
            made.append(line.replace(b"900701309", str(900701309 + i).encode()))
        return featurizer.push_lines(b"\n".join(made) + b"\n")

    featurizer = Featurizer()
    held = [push(featurizer, 0)]
    before = [held[0].features.to_pylist(), held[0].quotes.to_pylist()]
    for i in range(1, 12):
        rows = push(featurizer, 50 * i)
        if i % 3 == 0:
            held.append(rows)
            before += [rows.features.to_pylist(), rows.quotes.to_pylist()]
    after = [table for rows in held for table in (rows.features.to_pylist(), rows.quotes.to_pylist())]
    assert after == before
