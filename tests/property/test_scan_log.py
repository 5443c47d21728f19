"""The scanner of the log's plain messages is a short cut only: what it takes, the general decoder would have given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.kernel import reading
from ingestion.kernel.decode import Decoder
from ingestion.kernel.events import BOOK_UPDATE, Batch
from ingestion.kernel.scan import ScannedLog, scan_log
from ingestion.topics import Envelope
from tests.log_kit import numbered
from tests.property.test_scan import PLAIN, VALUES, numbers

NOW = 1_762_932_020_000_000_000
TIME = b'"time":"2025-11-12T07:20:11.615272Z"'
MATCH = (
    b'{"type":"match","trade_id":900701309,"maker_order_id":"35a4eb1f-0000-4000-8000-000861c47548","taker_order_id":'
    b'"35a4eb1f-0000-4000-8000-000861c47549","side":"buy","size":"0.00391463","price":"103472.28","product_id":'
    b'"BTC-USD","sequence":36000003400,' + TIME + b"}"
)
UPDATE = (
    b'{"type":"l2update","product_id":"ETH-USD","changes":[["buy","3400.01","0.5"],["sell","3400.02","0.00000000"]],'
    + TIME
    + b"}"
)
BEAT = b'{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD",' + TIME + b"}"
SHAPES = (PLAIN, MATCH, UPDATE, BEAT)
OTHERS = (
    b'{"type":"last_match","trade_id":7,"side":"buy","size":"1","price":"2","product_id":"BTC-USD",' + TIME + b"}",
    b'{"type":"snapshot","product_id":"ETH-USD","bids":[["3400.00","1"]],"asks":[["3400.02","2"]]}',
    b'{"type":"gap","product_id":"BTC-USD","reason":"silence"}',
    b'{"type":"match","trade_id":7',
    b"",
)
CHANGES = [
    b"[]", b"[[]]", b"null", b'[["buy","1","2"]]', b'[["buy","1","2"],]', b'[["buy","1"]]', b'[["buy","1","2","3"]]',
    b'[["hold","1","2"]]', b'[["buy","0","2"]]', b'[["buy","-1","2"]]', b'[["sell",1,2]]', b'[["sell","1","0"]]',
    b'[["sell","1","1e-3"]]', b'[ ["sell","1","2"]]', b'[["sell","0.1234567890123456","2"]]', b'[["buy","1","2"]}',
    b'[["buy","1","2"],["sell","5","6"],["buy","7","0.25"]]', b'["buy","1","2"]', b'[["Buy","1","2"]]',
]  # fmt: skip


def fields_of(raw: bytes) -> list[bytes]:
    """The members of an object, the list of changes as one."""
    body, out, depth, start = raw[1:-1], [], 0, 0
    for i, c in enumerate(body):
        depth += (c == ord("[")) - (c == ord("]"))
        if c == ord(",") and depth == 0:
            out.append(body[start:i])
            start = i + 1
    return [*out, body[start:]]


@st.composite
def raws(draw: st.DrawFn) -> bytes:
    """A message, whole or changed: values, order, missing, doubled and unknown keys, or bytes struck at random."""
    fields = fields_of(draw(st.sampled_from(SHAPES)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(fields) - 1))
        key = fields[at].split(b":", 1)[0]
        change = draw(st.sampled_from(["value", "value", "drop", "double", "move", "unknown"]))
        if change == "value":
            known = CHANGES if key == b'"changes"' else [*VALUES, b'"match"', b'"l2update"', b'"heartbeat"']
            value = draw(st.one_of(st.sampled_from(known), numbers))
            fields[at] = key + b":" + value
        elif change == "drop" and len(fields) > 1:
            del fields[at]
        elif change == "double":
            fields.insert(draw(st.integers(0, len(fields))), key + b":" + draw(st.sampled_from(VALUES)))
        elif change == "move":
            fields.insert(draw(st.integers(0, len(fields) - 1)), fields.pop(at))
        else:
            unknown = [b'"x":1', b'"raw":null', b'"n":3', b'"bids":[]', b' "x":1', b'"maker_order_ix":"1"']
            fields.insert(at, draw(st.sampled_from(unknown)))
    raw = b"{" + b",".join(fields) + b"}"
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        struck = draw(st.sampled_from([b"", b" ", b'"', b"\\", b"\n", b"\x00", b"}", b",", b"]", b"\xc3\xa4", b"9"]))
        raw = raw[:at] + struck + raw[at + draw(st.integers(0, 1)) :]
    return raw


def envelope(session: str, n: int, late_s: int, kind: Any, raw: bytes) -> Envelope:
    return Envelope(session, n, NOW - late_s * 1_000_000_000, "", kind, "exchange", raw)


envelopes = st.builds(
    envelope,
    st.sampled_from(["a1", "a1", "a1", "b2"]),
    st.integers(1, 12),
    st.sampled_from([0, 0, 0, 15, 3 * 10**9]),
    st.sampled_from(["feed", "feed", "feed", "state", "keyframe"]),
    st.one_of(raws(), st.sampled_from(SHAPES), st.sampled_from(OTHERS)),
)
logs = st.one_of(
    st.lists(envelopes, min_size=1, max_size=8), st.lists(envelopes, min_size=1, max_size=12).map(numbered)
)


def nothing(raws: list[bytes], feed: Any, latest_ns: Any) -> ScannedLog:
    return scan_log([], np.zeros(0, bool), np.zeros(0, np.int64))


def decoded(pushes: list[list[Envelope]], *, scanned: bool) -> tuple[list[Batch], dict[str, Any]]:
    d = Decoder()
    with pytest.MonkeyPatch.context() as patch:
        if not scanned:
            patch.setattr(reading, "scan_log", nothing)
        batches = [d.decode_log(log, NOW) for log in pushes]
    return batches, {"last_n": d.last_n, "seen": dict(d.seen), "sessions": d.sessions, "told": d.told}


def assert_same(fast: Batch, slow: Batch) -> None:
    assert fast.counts == slow.counts
    assert sorted((r.n, r.reason, r.line) for r in fast.rejects) == sorted(
        (r.n, r.reason, r.line) for r in slow.rejects
    )
    assert fast.events.keys() == slow.events.keys()
    for product, events in fast.events.items():
        want = slow.events[product]
        for name in (name for name in events.dtype.names or () if name not in ("lo", "hi")):
            assert events[name].tobytes() == want[name].tobytes(), name
        for got, expected in zip(events, want, strict=True):
            levels = fast.levels[got["lo"] : got["hi"]]
            assert levels.tolist() == slow.levels[expected["lo"] : expected["hi"]].tolist()


PUSHES = st.lists(logs, min_size=1, max_size=2)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(PUSHES)
def test_scanned_messages_give_the_same_events(pushes: list[list[Envelope]]) -> None:
    assert_same_decoded(pushes)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(PUSHES)
def test_more_scanned_messages_give_the_same_events(pushes: list[list[Envelope]]) -> None:
    assert_same_decoded(pushes)


def assert_same_decoded(pushes: list[list[Envelope]]) -> None:
    fast, state = decoded(pushes, scanned=True)
    slow, expected = decoded(pushes, scanned=False)
    assert state == expected
    for one, other in zip(fast, slow, strict=True):
        assert_same(one, other)


def test_plain_messages_are_taken_and_others_left() -> None:
    messages = [PLAIN, OTHERS[0], MATCH, UPDATE, OTHERS[3], BEAT, BEAT.replace(b",", b", "), PLAIN]
    feed = np.ones(len(messages), bool)
    feed[-1] = False
    found = scan_log(messages, feed, np.full(len(messages), NOW))
    assert found.taken.tolist() == [0, 2, 3, 5]
    assert [found.products[c] for c in found.codes] == ["BTC-USD", "BTC-USD", "ETH-USD", "BTC-USD"]
    assert found.events["side"].tolist() == [1, -1, 0, 0]
    book = found.events[found.events["kind"] == BOOK_UPDATE]
    assert (book["lo"].tolist(), book["hi"].tolist()) == ([0], [2])
    assert found.levels.tolist() == [(3400.01, 0.5, 0), (3400.02, 0.0, 1)]
