"""Tapes of the Advanced Trade dialect, whole and with losses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.oracle.tapes import MS, START_NS, S, iso, line


class Feed:
    """Writes envelopes with a rising ``sequence_num``."""

    def __init__(self) -> None:
        self.sequence, self.lines = 0, list[bytes]()

    def send(self, channel: str, t: int, events: list[dict[str, Any]], *, skip: int = 0) -> None:
        """Append one envelope; ``skip`` loses so many before it."""
        self.sequence += skip
        head = {"channel": channel, "timestamp": iso(t), "sequence_num": self.sequence}
        self.lines.append(line({**head, "events": events}))
        self.sequence += 1


def ticker_entry(product: str, price: float, half: float = 0.5) -> dict[str, Any]:
    """One entry of a ticker event."""
    return {"type": "ticker", "product_id": product, "price": str(price), "best_bid": str(price - half),
            "best_ask": str(price + half), "best_bid_quantity": "1.5", "best_ask_quantity": "2"}  # fmt: skip


def trade_entry(product: str, trade_id: int, t: int, size: float, maker: str) -> dict[str, Any]:
    """One entry of a market_trades event."""
    return {"product_id": product, "trade_id": str(trade_id), "price": "100", "size": str(size), "time": iso(t, 6),
            "side": maker}  # fmt: skip


def book_event(product: str, kind: str, t: int, *changes: tuple[str, float, float]) -> dict[str, Any]:
    """One event of l2_data; the last change carries the latest time."""
    updates = [
        {"side": side, "event_time": iso(t - (len(changes) - 1 - i) * MS, 6), "price_level": str(price),
         "new_quantity": str(size)}
        for i, (side, price, size) in enumerate(changes)
    ]  # fmt: skip
    return {"type": kind, "product_id": product, "updates": updates}


def feed(*, losses: bool, book: bool, n: int = 240, seed: int = 11) -> list[bytes]:
    """Two products; with ``book`` the book is their source of quotes, with ``losses`` sequence numbers go missing."""
    rng, f, t = random.Random(seed), Feed(), START_NS
    products = ("AAA-USD", "BBB-USD")
    ids = dict.fromkeys(products, 500)
    channels = ["market_trades", "ticker", "heartbeats"] + ["level2"] * book
    f.send("subscriptions", t, [{"subscriptions": {key: list(products) for key in channels}}])
    f.send("market_trades", t, [{"type": "snapshot", "trades": [
        trade_entry(p, 500 - i, t - i * S, 1, "BUY") for p in products for i in range(3)]}])  # fmt: skip
    if not book:  # the first quote-bearing message fixes the source
        f.send("ticker", t, [{"type": "snapshot", "tickers": [ticker_entry(p, 100) for p in products]}])
    fresh = [("bid", 99.0, 2.0), ("bid", 98.0, 3.0), ("offer", 101.0, 4.0), ("offer", 102.5, 5.0)]
    for p in products:
        f.send("l2_data", t, [book_event(p, "snapshot", t, *fresh)])
    for i in range(n):
        t += rng.randrange(20, 400) * MS
        product, skip = rng.choice(products), 2 if losses and i in (80, 160) else 0
        kind = rng.randrange(5)
        if losses and i in (100, 190):
            for p in products:
                f.send("l2_data", t, [book_event(p, "snapshot", t, *fresh[: 4 if i == 100 else 3])])
        elif kind == 0:
            f.send("heartbeats", t, [{"current_time": "x", "heartbeat_counter": i}], skip=skip)
        elif kind == 1:
            entries = [ticker_entry(p, 100 + rng.randrange(8) / 4) for p in products[: rng.choice((1, 2))]]
            f.send("ticker", t, [{"type": "update", "tickers": entries}], skip=skip)
        elif kind == 2:
            trades = []
            for j in range(rng.choice((1, 3))):
                ids[product] += 1
                trades.append(trade_entry(product, ids[product], t + j * MS, rng.randrange(1, 9), "SELL"))
            f.send("market_trades", t + 5 * MS, [{"type": "update", "trades": trades}], skip=skip)
        else:
            side, price = rng.choice((("bid", 98.5 + rng.randrange(6) / 4), ("offer", 100.5 + rng.randrange(9) / 4)))
            events = [book_event(product, "update", t, (side, price, rng.randrange(4)), ("bid", 97, i + 1.0))]
            f.send("l2_data", t + 10 * MS, events, skip=skip)
    f.send("candles", t, [{"type": "update", "candles": []}])
    return f.lines


def newest_first() -> list[bytes]:
    """Trades of one update listed newest first, as the feed does."""
    f, t = Feed(), START_NS
    f.send("market_trades", t, [{"type": "snapshot", "trades": [trade_entry("AAA-USD", 10, t, 1, "BUY")]}])
    f.send("ticker", t, [{"type": "snapshot", "tickers": [ticker_entry("AAA-USD", 100)]}])
    trades = [trade_entry("AAA-USD", i, t + i * 100 * MS, i, "BUY") for i in (13, 12, 11)]
    f.send("market_trades", t + 2 * S, [{"type": "update", "trades": trades}])
    f.send("ticker", t + 4 * S, [{"type": "update", "tickers": [ticker_entry("AAA-USD", 101)]}])
    return f.lines


TAPES: dict[str, Callable[[], list[bytes]]] = {
    "advanced": lambda: feed(losses=False, book=True), "advanced_losses": lambda: feed(losses=True, book=True),
    "advanced_tickers": lambda: feed(losses=True, book=False), "advanced_newest_first": newest_first,
}  # fmt: skip
