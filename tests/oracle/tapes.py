"""Adversarial tapes: lists (or generators) of lines, each built to break one thing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

START_NS = 1_700_000_000_123_456_789
S = 1_000_000_000
MS = 1_000_000
PRODUCT = "BTC-USD"


def iso(t_ns: int, digits: int = 9) -> str:
    """RFC 3339 with a fraction of that many digits."""
    whole, part = divmod(t_ns, S)
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{part:09d}"[:digits] + "Z"


def line(message: dict[str, Any]) -> bytes:
    """One bare line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def ticker(t: int, price: float | str = 100.0, *, bid: Any = None, ask: Any = None, product: str = PRODUCT,
           sizes: tuple[Any, Any] | None = None, trade: tuple[int, Any, str] | None = None,
           **more: Any) -> dict[str, Any]:  # fmt: skip
    """Exchange ticker; ``trade`` is (id, size, taker side)."""
    message: dict[str, Any] = {"type": "ticker", "product_id": product, "price": str(price), "time": iso(t)}
    if bid is not None:
        message["best_bid"] = str(bid)
    if ask is not None:
        message["best_ask"] = str(ask)
    if sizes is not None:
        message |= {"best_bid_size": str(sizes[0]), "best_ask_size": str(sizes[1])}
    if trade is not None:
        message |= {"trade_id": trade[0], "last_size": str(trade[1]), "side": trade[2]}
    return message | more


def quoted(t: int, price: float, *, half: float = 0.01, **more: Any) -> dict[str, Any]:
    """Ticker whose best prices lie ``half`` around its price."""
    return ticker(t, price, bid=price - half, ask=price + half, **more)


def match(t: int, trade_id: int, price: Any = 100.0, size: Any = 1.0, maker: str = "buy",
          product: str = PRODUCT, kind: str = "match") -> dict[str, Any]:  # fmt: skip
    """Exchange match (or last_match)."""
    return {"type": kind, "trade_id": trade_id, "side": maker, "size": str(size), "price": str(price),
            "product_id": product, "time": iso(t)}  # fmt: skip


def heartbeat(t: int, last_id: int = 0, product: str = PRODUCT) -> dict[str, Any]:
    """Exchange heartbeat."""
    return {"type": "heartbeat", "last_trade_id": last_id, "product_id": product, "sequence": 1, "time": iso(t)}


def snapshot(bids: Iterable[tuple[Any, Any]], asks: Iterable[tuple[Any, Any]],
             product: str = PRODUCT) -> dict[str, Any]:  # fmt: skip
    """Exchange snapshot."""
    return {"type": "snapshot", "product_id": product, "bids": [[str(p), str(q)] for p, q in bids],
            "asks": [[str(p), str(q)] for p, q in asks]}  # fmt: skip


def update(t: int, *changes: tuple[str, Any, Any], product: str = PRODUCT) -> dict[str, Any]:
    """Exchange l2update."""
    return {"type": "l2update", "product_id": product, "changes": [[s, str(p), str(q)] for s, p, q in changes],
            "time": iso(t)}  # fmt: skip


def subscriptions(*channels: str, products: tuple[str, ...] = (PRODUCT,)) -> dict[str, Any]:
    """Exchange answer to a subscription."""
    return {"type": "subscriptions", "channels": [{"name": c, "product_ids": list(products)} for c in channels]}


def wrapped(message: dict[str, Any], recv_ns: int) -> bytes:
    """Wrap as the seeds do: ``ts`` in seconds."""
    raw = json.dumps(message, separators=(",", ":"))
    return line({"ts": round(recv_ns / S, 6), "pair": message.get("product_id"), "raw": raw})


def envelope(message: dict[str, Any], recv_ns: int, session: str, n: int, dialect: str = "exchange") -> bytes:
    """One line of our own tape."""
    raw = json.dumps(message, separators=(",", ":"))
    return line({"ts": round(recv_ns / S, 6), "pair": message.get("product_id"), "session": session, "n": n,
                 "kind": "feed", "dialect": dialect, "raw": raw})  # fmt: skip


def _event_ns(message: dict[str, Any]) -> int | None:
    if "time" not in message:
        return None
    whole = datetime.fromisoformat(message["time"][:19] + "+00:00")
    return int(whole.timestamp()) * S + int(message["time"][20:-1])


# prices ---------------------------------------------------------------------------------------------------


def constant(n: int = 400) -> list[bytes]:
    """One price, one quote, all through."""
    return [line(quoted(START_NS + i * 777 * MS, 30_000.1, sizes=(2, 3), trade=(i + 1, "0.1", "buy")))
            for i in range(n)]  # fmt: skip


def one_tick() -> list[bytes]:
    """A single ticker, then nothing."""
    return [line(quoted(START_NS, 99.5, sizes=(1, 2), trade=(7, 3, "sell")))]


def on_the_second() -> list[bytes]:
    """Times that are whole seconds, and windows whose edges fall on ticks."""
    start = START_NS // S * S
    return [line(quoted(start + i * 5 * S, 100 + i % 7)) for i in range(200)]


def equal_times(n: int = 300) -> list[bytes]:
    """Runs of tickers that share a time, up to 50 long."""
    rng, t, out = random.Random(1), START_NS, list[bytes]()
    while len(out) < n:
        t += rng.randrange(1, 3 * S)
        for _ in range(rng.choice((1, 1, 2, 50))):
            out.append(line(quoted(t, 100 + rng.randrange(-5, 6) / 100)))
    return out


def silent_day() -> list[bytes]:
    """A minute of ticks, a day of nothing, another minute."""
    times = [START_NS + i * 950 * MS for i in range(60)]
    times += [t + 86_400 * S for t in times]
    return [line(quoted(t, 100 + i % 9 / 10, sizes=(1 + i % 4, 2))) for i, t in enumerate(times)]


def quiet_minutes() -> list[bytes]:
    """Silences of 50 s (no gap), so that whole windows run empty, and two over 60 s (gaps)."""
    steps = (0, 1, 50, 50, 1, 61, 2, 50, 50, 50, 300, 1, 40, 1)
    times = START_NS + np.cumsum(steps) * S + np.arange(len(steps)) * 1234
    return [line(quoted(int(t), 100 + i % 3, sizes=(i + 1, 2))) for i, t in enumerate(times)]


def jumps(n: int = 600) -> list[bytes]:
    """Price times ten and back again, with returns of 1e-7 before and long after, beyond the short windows."""
    rng, out = random.Random(2), []
    for i in range(n):
        level = 100_000 if i in range(100, 103) else 10_000
        price = level + rng.randrange(-3, 4) / 1000
        out.append(line(quoted(START_NS + i * 400 * MS, price, half=0.001, sizes=(1, 1 + i % 2))))
    return out


def identical_then_move(n: int = 1_000_000, per_s: int = 1200) -> Iterator[bytes]:
    """``n`` identical tickers, then one 1 % higher."""
    head, tail = b'{"type":"ticker","product_id":"BTC-USD","price":"', b'"}\n'
    for i in range(n + 1):
        price = b"50000.00" if i < n else b"50500.00"
        yield head + price + b'","time":"' + iso(START_NS + i * S // per_s).encode() + tail


def tiny_moves(n: int = 1_000_000, seed: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Times (ns) and prices of ``n`` events at 1e5 ± 1e-2."""
    rng = np.random.default_rng(seed)
    times = START_NS + np.cumsum(rng.integers(1, 2 * MS, n))
    return times, np.round(1e5 + rng.uniform(-1e-2, 1e-2, n), 4)


def tiny_moves_lines(n: int = 1200, seed: int = 3) -> list[bytes]:
    """The same as lines, slowed down so that the windows slide."""
    times, prices = tiny_moves(n, seed)
    return [
        line(ticker(START_NS + (t - START_NS) * 300, f"{p:.4f}", bid=f"{p - 0.005:.4f}", ask=f"{p + 0.005:.4f}"))
        for t, p in zip(times.tolist(), prices.tolist(), strict=True)
    ]


# order and time -------------------------------------------------------------------------------------------


def disordered(back_ms: int, n: int = 400) -> list[bytes]:
    """Tickers and matches of which every seventh lies up to ``back_ms`` behind."""
    rng, out = random.Random(back_ms), [line(match(START_NS - S, 1))]
    for i in range(n):
        t = START_NS + i * 110 * MS - (rng.randrange(back_ms * MS) if i % 7 == 3 else 0)
        if i % 3 == 0:
            out.append(line(match(t, i // 3 + 2, size=1 + i % 5, maker="sell" if i % 2 else "buy")))
        else:
            out.append(line(quoted(t, 100 + rng.randrange(9) / 100)))
    return out


def grace_edge() -> list[bytes]:
    """Exactly 250 ms behind (reordered) and 1 ns more (late)."""
    t = START_NS + 5 * S
    return [line(quoted(when, 100 + i)) for i, when in enumerate((START_NS, t, t - 250 * MS, t - 250 * MS - 1,
                                                                  t + 3 * S, t + 9 * S))]  # fmt: skip


def from_the_future(n: int = 120) -> list[bytes]:
    """Wrapped: every eleventh stamped over 2 s ahead of its receipt, every thirteenth just under."""
    out = []
    for i in range(n):
        t = START_NS + i * 800 * MS
        ahead = 3 * S if i % 11 == 5 else 1900 * MS if i % 13 == 5 else 0
        out.append(wrapped(quoted(t + ahead, 100 + i % 5, sizes=(1, 2)), t))
    return out


def repeated_numbers() -> list[bytes]:
    """Envelopes of one session whose n come twice, as after a producer's retry."""
    out = []
    for i in (1, 2, 3, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 4, 10):
        message = quoted(START_NS + i * 700 * MS, 100 + i, trade=(50 + i, i, "buy"))
        out.append(envelope(message, START_NS + i * 700 * MS + 30 * MS, "a" * 16, i))
    return out


def two_sessions() -> list[bytes]:
    """A reconnect between two sessions of a book, 3 s apart; the trade ids go on."""
    out: list[bytes] = []
    for part, session in enumerate(("a" * 16, "b" * 16)):
        t0 = START_NS + part * 43 * S
        messages: list[dict[str, Any]] = [
            subscriptions("level2", "matches", "heartbeat"),
            snapshot([(99, 1), (98, 2)], [(101, 3 + part), (102, 4)]),
        ]
        messages += [update(t0 + S + i * S, ("buy", 99.5 + part, i % 3)) for i in range(30)]
        messages += [match(t0 + 32 * S, 10 + part), quoted(t0 + 33 * S, 100.0), heartbeat(t0 + 37 * S, 10 + part)]
        messages += [update(t0 + 40 * S, ("sell", 101, 9))]
        for i, message in enumerate(messages):
            seen = _event_ns(message) or t0
            out.append(envelope(message, seen + 150 * MS, session, i + 1))
    return out


def changed_source(*, quiet_start: bool = False) -> list[bytes]:
    """A session of a book, then one of tickers alone (the open gap ends there), then a book again."""
    book = [snapshot([(99, 1)], [(101, 2)])]
    book += [update(START_NS + i * S, ("buy", 99 + i % 3 / 4, i % 4)) for i in range(1, 8)]
    alone = [quoted(START_NS + (12 + i) * S, 100 + i % 3, sizes=(1, 2)) for i in range(8)]
    again = [m | ({"time": iso(START_NS + (25 + i) * S)} if "time" in m else {}) for i, m in enumerate(book)]
    out = list[bytes]()
    for part, (session, messages) in enumerate((("a" * 16, book), ("b" * 16, alone), ("c" * 16, again))):
        start = START_NS + (0, 11, 24)[part] * S
        first = [heartbeat(start), heartbeat(start + 500 * MS)] if quiet_start else []
        for i, message in enumerate([*first, *messages]):
            out.append(envelope(message, (_event_ns(message) or start + 800 * MS) + 20 * MS, session, i + 1))
    return out


# feeds ----------------------------------------------------------------------------------------------------


def adversarial_book() -> list[bytes]:
    """A book with every awkward thing: deletes of unknown levels, empty sides, crossing, repeated snapshots."""
    rng, t, out = random.Random(5), START_NS, list[bytes]()

    def add(message: dict[str, Any]) -> None:
        nonlocal t
        t += rng.randrange(40, 900) * MS
        out.append(line(message))

    bids, asks = [(100 - i / 10, i + 1) for i in range(15)], [(100.1 + i / 10, i + 2) for i in range(12)]
    add(subscriptions("level2", "ticker"))
    add(update(t, ("buy", 1, 1)))  # before any snapshot
    add(snapshot(bids, asks))
    add(quoted(t, 100.0))
    add(update(t, ("buy", 100.0, 5)))
    add(update(t, ("buy", 55.5, 0), ("sell", 200, 0)))  # unknown
    add(update(t, ("buy", 100.0, 5), ("buy", 100.0, 5), ("buy", 100.0, 6)))  # repeated
    add(update(t, ("buy", 100.05, 1), ("buy", 100.05, 0)))  # there and gone
    add(update(t))  # nothing at all
    add(update(t, *(("sell", p, 0) for p, _ in asks)))  # one side empty
    add(quoted(t, 100.3))
    add(update(t, ("sell", 100.2, 1)))  # and back
    for _ in range(120):
        side, price = rng.choice((("buy", 99 + rng.randrange(11) / 10), ("sell", 100.2 + rng.randrange(20) / 10)))
        add(update(t, (side, price, rng.choice((0, 1, 2.5)))))
    add(update(t, ("buy", 100.0, 1), ("sell", 100.4, 1)))
    add(update(t, ("buy", 150, 1)))  # crossed
    add(quoted(t, 100.0))
    add(update(t, ("buy", 150, 0)))  # ignored until a snapshot
    add(quoted(t, 100.5))
    add(snapshot([(101, 1)], [(100, 1)]))  # crossed snapshot: refused
    add(update(t, ("buy", 99, 1)))
    add(snapshot([(99.9, 2), (99.9, 3), (99, 0)], [(100.1, 4)]))
    add(update(t, ("sell", 100.1, 4)))
    add(quoted(t, 99.9))
    for i in range(30):
        add(update(t, ("buy", 99.9, 1 + i % 3), ("sell", 100.1 + i % 2 / 10, 1)))
    add(snapshot([], [(100.1, 4)]))  # an empty side
    add(update(t, ("buy", 99.0, 2)))
    add(quoted(t, 99.9))
    return out


def book_after_tickers(*, timed: bool = False) -> list[bytes]:
    """Tickers first, changes that are ignored, then a snapshot: the book takes over as the source of quotes."""
    messages: list[dict[str, Any]] = [quoted(START_NS + i * 800 * MS, 100 + i % 3, sizes=(1, 2)) for i in range(9)]
    messages.insert(4, update(START_NS + 2500 * MS, ("buy", 99, 1)))
    messages.append(snapshot([(99, 1), (98, 2)], [(100, 4), (103, 1)]))
    for i in range(12):
        t = START_NS + (10 + i) * S
        messages += [update(t, ("buy", 99 + i % 2 / 2, 1 + i)), quoted(t + 5 * MS, 100 + i % 4, sizes=(3, 4))]
    out, t = list[bytes](), START_NS
    for message in messages:
        t = _event_ns(message) or t + 1200 * MS
        out.append(wrapped(message, t) if timed else line(message))
    return out


def timed_snapshots() -> list[bytes]:
    """The book with receive times: snapshots take effect as they come, changes trail them."""
    out, t = list[bytes](), START_NS
    for i, text in enumerate(adversarial_book()):
        message = json.loads(text)
        t = _event_ns(message) or t + 20 * MS
        out.append(wrapped(message, t + (70 * MS if i % 5 else -20 * MS)))
    return out


def matches_and_tickers(n: int = 300) -> list[bytes]:
    """Trades by their own channel beside tickers, one id missing, heartbeats naming the last."""
    rng, out, trade_id = random.Random(6), list[bytes](), 1000
    out.append(line(subscriptions("matches", "ticker", "heartbeat")))
    out.append(line(match(START_NS - S, trade_id, kind="last_match")))
    for i in range(n):
        t = START_NS + i * 210 * MS
        if i % 4:
            trade_id += 2 if i == 101 else 1
            size, side = rng.randrange(1, 900) / 1000, rng.choice(("buy", "sell"))
            out.append(line(match(t, trade_id, 100 + i % 5, size, side)))
        else:
            out.append(line(quoted(t, 100 + i % 5, sizes=(1 + i % 3, 2), trade=(trade_id, 1, "buy"))))
        if i % 5 == 4:
            out.append(line(heartbeat(t + MS, trade_id + (1 if i == 204 else 0))))
            trade_id += 1 if i == 204 else 0
    return out


def heartbeats_only() -> list[bytes]:
    """Two tickers, then heartbeats alone: the clock moves and the windows empty; then 6 s of nothing."""
    out = [line(quoted(START_NS, 100.0)), line(quoted(START_NS + S, 101.0))]
    out += [line(heartbeat(START_NS + (2 + i) * S)) for i in range(70)]
    return [*out, line(quoted(START_NS + 78 * S, 102.0)), line(quoted(START_NS + 79 * S, 102.5))]


def odd_tickers() -> list[bytes]:
    """Tickers locked, crossed, one-sided, without sizes, without a side: rows, but no quote."""
    cases: list[dict[str, Any]] = [
        {"bid": 99, "ask": 101}, {"bid": 101, "ask": 101}, {"bid": 102, "ask": 101}, {"bid": 99}, {"ask": 101}, {},
        {"bid": 99, "ask": 101, "sizes": (0, 1)}, {"bid": 99, "ask": 101, "sizes": (1, 1)},
        {"bid": 99, "ask": 101, "sizes": (1, 1)}, {"bid": 99, "ask": 101, "trade": (5, 1e-8, "buy")},
        {"bid": 99, "ask": 100, "trade": (6, 2, "sell")}, {"bid": 99, "ask": 101, "trade": (8, 2, "buy")},
        {"bid": 99, "ask": 101, "trade": (8, 2, "buy")}, {"bid": 99, "ask": 101, "trade": (3, 1, "buy")},
    ]  # fmt: skip
    return [line(ticker(START_NS + i * 1300 * MS, 100 + i, **case)) for i, case in enumerate(cases)]


def two_products(n: int = 200) -> list[bytes]:
    """Two products interleaved, one with a book and matches, one with tickers alone."""
    rng = random.Random(7)
    out = [line(snapshot([(99, 1), (98, 5)], [(101, 2), (103, 4)], "AAA-USD"))]
    for i in range(n):
        t = START_NS + i * 470 * MS + rng.randrange(-100, 100) * MS
        if i % 3 == 0:
            change = ("buy" if i % 2 else "sell", (99.5 if i % 2 else 100.5) + i % 4 / 10, i % 5)
            out.append(line(update(t, change, product="AAA-USD")))
        elif i % 3 == 1:
            out.append(line(match(t, i // 3 + 1, 100, 1 + i % 7, "buy" if i % 4 else "sell", "AAA-USD")))
        else:
            product = "AAA-USD" if i % 6 == 2 else "BBB-USD"
            out.append(line(quoted(t, 50 + i % 9 / 10, product=product, sizes=(i % 5 + 1, 2))))
    return out


def bursts(n: int = 12) -> list[bytes]:
    """Hundreds of tickers within milliseconds, seconds apart."""
    rng, out = random.Random(8), list[bytes]()
    for i in range(n):
        for j in range(40):
            t = START_NS + i * 3700 * MS + j * 100_000
            out.append(line(quoted(t, 100 + rng.gauss(0, 0.1), sizes=(rng.randrange(1, 9), 1))))
    return out


TAPES: dict[str, Callable[[], list[bytes]]] = {
    "constant": constant, "one_tick": one_tick, "on_the_second": on_the_second, "equal_times": equal_times,
    "silent_day": silent_day, "quiet_minutes": quiet_minutes, "jumps": jumps,
    "identical_then_move": lambda: list(identical_then_move(900, 30)), "tiny_moves": tiny_moves_lines,
    "reordered": lambda: disordered(250), "late": lambda: disordered(2000), "grace_edge": grace_edge,
    "future": from_the_future, "repeated_n": repeated_numbers, "two_sessions": two_sessions,
    "book": adversarial_book, "book_with_receive_times": timed_snapshots,
    "book_after_tickers": book_after_tickers, "book_after_tickers_timed": lambda: book_after_tickers(timed=True),
    "matches_and_tickers": matches_and_tickers, "heartbeats_only": heartbeats_only, "odd_tickers": odd_tickers,
    "two_products": two_products, "bursts": bursts,
}  # fmt: skip
"""Tapes by what is wrong with them."""
