"""Tapes on which two readers of the design once came to different numbers, each with what decides."""

from __future__ import annotations

from typing import Any

from tests.oracle.tapes import (
    MS,
    START_NS,
    S,
    heartbeat,
    line,
    match,
    quoted,
    snapshot,
    subscriptions,
    ticker,
    update,
    wrapped,
)

CROSSED: dict[str, Any] = snapshot([(101, 1)], [(100, 1)])


def repeated_key() -> list[bytes]:
    """ADR 1 (22): a repeated key is malformed, also where every value by itself is good."""
    good = [line(quoted(START_NS + i * S, 100.0 + i)) for i in range(3)]
    return [good[0], line(ticker(START_NS + S // 2)).replace(b'"price"', b'"price":"3","price"', 1), *good[1:]]


def unknown_type_with_a_known_field() -> list[bytes]:
    """DESIGN §3: unknown types are counted and ignored, whatever their fields hold."""
    return [line({"type": "open", "product_id": "BTC-USD", "price": "x", "size": {}}), line(quoted(START_NS, 100.0))]


def trade_of_size_zero() -> list[bytes]:
    """ADR 1 (22) calls a negative size bad, not zero: a match and a ticker of size 0 are trades."""
    sizes = (1, 0, 2, 0)
    out = [line(match(START_NS + i * S, i + 1, size=q)) for i, q in enumerate(sizes)]
    sold = [(START_NS + 5 * S + i, (i + 1, q, "buy")) for i, q in enumerate(sizes)]
    out += [line(quoted(t, 50.0, product="X-USD", trade=trade)) for t, trade in sold]
    return [*out, line(quoted(START_NS + 5 * S, 100.0))]


def first_heartbeat_after_six_seconds() -> list[bytes]:
    """ADR 1 (19): 5 s count once a heartbeat *was* seen; before the first one it is 60 s."""
    beats = [heartbeat(START_NS + 6 * S), heartbeat(START_NS + 11 * S + 1)]
    return [line(m) for m in (quoted(START_NS, 100.0), *beats, quoted(START_NS + 12 * S, 101.0))]


def heartbeats_unsubscribed() -> list[bytes]:
    """ADR 1 (19): the limit is 5 s where the channel *is* subscribed; the last subscriptions doesn't list it."""
    feed = [subscriptions("heartbeat", "ticker"), quoted(START_NS, 100.0), subscriptions("ticker")]
    return [line(m) for m in (*feed, quoted(START_NS + 8 * S, 101.0), quoted(START_NS + 9 * S, 101.0))]


def first_snapshot_crossed() -> list[bytes]:
    """ADR 1 (23): after a crossed snapshot the book is RESYNCING, also where it never was SYNCED; that's no gap (9)."""
    feed = [heartbeat(START_NS), CROSSED, heartbeat(START_NS + 3 * S)]
    return [wrapped(m, START_NS + i * 1200 * MS) for i, m in enumerate(feed)]


def first_snapshot_crossed_untimed() -> list[bytes]:
    """The same without receive times: refused as it takes effect, with the next l2update (15)."""
    feed = [update(START_NS), CROSSED, update(START_NS + 3 * S, ("buy", 99, 1)), update(START_NS + 5 * S)]
    return [line(m) for m in feed]


def crossed_snapshot_after_tickers() -> list[bytes]:
    """ADR 1 (6, 23): a refused snapshot does not become the source of quotes; tickers go on."""
    feed = [quoted(START_NS, 100.0), CROSSED, quoted(START_NS + 2 * S, 101.0), quoted(START_NS + 4 * S, 102.0)]
    return [wrapped(m, START_NS + i * S) for i, m in enumerate(feed)]


def tickers_until_an_untimed_snapshot_counts() -> list[bytes]:
    """ADR 1 (6, 15): the source moves as the snapshot takes effect, with the next l2update; till then tickers quote."""
    feed = [
        quoted(START_NS, 100.0), snapshot([(99, 1)], [(101, 1)]), quoted(START_NS + 2 * S, 101.0),
        update(START_NS + 4 * S, ("buy", 99, 2)), quoted(START_NS + 6 * S, 103.0), update(START_NS + 7 * S),
    ]  # fmt: skip
    return [line(m) for m in feed]


TAPES = {
    tape.__name__: tape
    for tape in (
        repeated_key, unknown_type_with_a_known_field, trade_of_size_zero, first_heartbeat_after_six_seconds,
        heartbeats_unsubscribed, first_snapshot_crossed, first_snapshot_crossed_untimed,
        crossed_snapshot_after_tickers, tickers_until_an_untimed_snapshot_counts,
    )
}  # fmt: skip
