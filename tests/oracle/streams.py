"""Random small streams for hypothesis: any mix of messages, prices on a grid, times that jump and fall back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.oracle.tapes import (
    MS,
    PRODUCT,
    START_NS,
    S,
    heartbeat,
    line,
    match,
    snapshot,
    subscriptions,
    ticker,
    update,
    wrapped,
)

STEPS = (0, 0, 0, 1, 777, 3 * MS, 250 * MS, 251 * MS, S - 1, S, 1_500_000_001, 4 * S + 7, 5 * S + 1, 29 * S + 5,
         61 * S, 300 * S + 1, 899 * S, -1, -20 * MS, -250 * MS, -250 * MS - 1, -40 * S)  # fmt: skip
PRICES = st.sampled_from([100.0, 100.01, 100.02, 99.5, 100.0, 1000.0, 10.01, 100.0000001])
SIZES = st.sampled_from([0.5, 1, 2, 1e-8, 12345.678])
LEVELS = st.sampled_from([97, 98, 99, 99.5, 100, 100.5, 101, 102])
SIDES = st.sampled_from(["buy", "sell"])
PRODUCTS = st.sampled_from([PRODUCT, PRODUCT, "ETH-USD"])


@st.composite
def _message(draw: st.DrawFn, t: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    kind, product = draw(st.sampled_from(kinds)), draw(PRODUCTS)
    if kind == "ticker":
        price = draw(PRICES)
        more: dict[str, Any] = {}
        if draw(st.integers(0, 5)):
            more = {"bid": price - draw(st.sampled_from([0.01, 0.01, 0.02, -0.05])), "ask": price + 0.01}
            if draw(st.booleans()):
                more["sizes"] = (draw(SIZES), draw(SIZES))
        if draw(st.booleans()):
            more["trade"] = (draw(st.integers(1, 6)), draw(SIZES), draw(SIDES))
        return ticker(t, price, product=product, **more)
    if kind in ("match", "last_match"):
        trade_id = draw(st.integers(1, 6))
        return match(t, trade_id, draw(PRICES), draw(SIZES), draw(SIDES), product=product, kind=kind)
    if kind == "heartbeat":
        return heartbeat(t, draw(st.integers(1, 6)), product=product)
    if kind == "snapshot":
        bids = draw(st.lists(st.tuples(st.sampled_from([97, 98, 99]), SIZES), max_size=3))
        asks = draw(st.lists(st.tuples(st.sampled_from([100, 101, 102]), SIZES), max_size=12))
        if draw(st.integers(0, 6)) == 0:
            bids.append((101, 1))
        return snapshot(bids, asks, product=product)
    if kind == "l2update":
        change = st.tuples(SIDES, LEVELS, st.sampled_from([0, 0, 1, 2.5]))
        return update(t, *draw(st.lists(change, max_size=3)), product=product)
    return subscriptions(*draw(st.lists(st.sampled_from(["level2", "matches", "ticker", "heartbeat"]), max_size=3)),
                         products=(PRODUCT, "ETH-USD"))  # fmt: skip


ALL = ("ticker", "ticker", "match", "heartbeat", "l2update", "l2update", "snapshot", "last_match", "subscriptions")
MIXES = (("ticker",), ("ticker", "heartbeat"), ("snapshot", "l2update", "l2update", "l2update"), ALL, ALL)


@st.composite
def streams(draw: st.DrawFn, max_size: int = 40) -> list[bytes]:
    """Draw the lines of a stream, bare or wrapped throughout."""
    kinds, with_receipt, t = draw(st.sampled_from(MIXES)), draw(st.booleans()), START_NS
    out = list[bytes]()
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=max_size)):
        message = draw(_message(t + step, kinds))
        t = max(t, t + step)
        receipt = t + draw(st.sampled_from([0, 30 * MS, 30 * MS, -S, -3 * S]))
        out.append(wrapped(message, receipt) if with_receipt else line(message))
    return out


def damage(text: bytes) -> bytes:
    """Change a line's content: another price, another size, or no message at all."""
    try:
        body = json.loads(text)
    except ValueError:
        return b"{}\n"
    inner = json.loads(body["raw"]) if "raw" in body else body
    for name in ("price", "size", "best_bid"):
        if name in inner:
            inner[name] = str(float(inner[name]) * 7)
    return line(body | {"raw": json.dumps(inner)}) if "raw" in body else line(inner)
