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
def _message(draw: st.DrawFn, t: int, kinds: tuple[str, ...], always: tuple[str, ...]) -> dict[str, Any]:
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
        return snapshot(bids, asks, product=product)
    if kind == "l2update":
        change = st.tuples(SIDES, LEVELS, st.sampled_from([0, 0, 1, 2.5]))
        return update(t, *draw(st.lists(change, max_size=3)), product=product)
    listed = draw(st.lists(st.sampled_from(["level2", "matches", "ticker"]), max_size=3, unique=True))
    return subscriptions(*dict.fromkeys((*always, *listed)), products=(PRODUCT, "ETH-USD"))


ALL = ("ticker", "ticker", "match", "heartbeat", "l2update", "l2update", "snapshot", "last_match", "subscriptions")
MIXES = (("ticker",), ("ticker", "heartbeat"), ("snapshot", "l2update", "l2update", "l2update"), ALL, ALL)


@st.composite
def streams(draw: st.DrawFn, max_size: int = 40) -> list[bytes]:
    """Draw the lines of a stream, bare or wrapped throughout.

    Left to tapes of their own, so that what remains to be found isn't hidden behind what is known: refused
    snapshots, a first heartbeat after a long silence, and snapshots without a time beside tickers as the source.
    """
    kinds, with_receipt, t = draw(st.sampled_from(MIXES)), draw(st.booleans()), START_NS
    always = ("heartbeat",) * ("heartbeat" in kinds) + ("level2",) * (kinds is ALL and not with_receipt)
    messages = [(subscriptions(*always, products=(PRODUCT, "ETH-USD")), t)] if always else []
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=max_size)):
        messages.append((draw(_message(t + step, kinds, always)), t := max(t, t + step)))
    if not with_receipt:
        return [line(message) for message, _ in messages]
    delays = st.sampled_from([0, 30 * MS, 30 * MS, -S, -3 * S])
    return [wrapped(message, when + draw(delays)) for message, when in messages]


def damage(text: bytes) -> bytes:
    """Change a line's content: another price, another size, or no message at all."""
    try:
        body = json.loads(text)
    except ValueError:
        return b"{}\n"
    if not isinstance(body, dict):
        return b"{}\n"
    try:
        inner = json.loads(body["raw"]) if "raw" in body else body
    except ValueError:
        return b"{}\n"
    for name in ("price", "size", "best_bid"):
        if name in inner:
            inner[name] = "777.5"
    return line(body | {"raw": json.dumps(inner)}) if "raw" in body else line(inner)
