"""What the naive oracle remembers: everything, in lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.book import Book
from tests.oracle.parse import Message

BOOK_CHANNELS = {"level2", "level2_batch", "level2_50", "l2_data"}
TRADE_CHANNELS = {"matches", "market_trades"}
HEARTBEAT_CHANNELS = {"heartbeat", "heartbeats"}
NONE, SYNCED, RESYNCING = 0, 1, 2


@dataclass
class Result:
    """What a tape gives: rows and quotes in the order they were made, and counts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quotes: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[str, int, int | None]] = field(default_factory=list)
    malformed: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Session:
    """One connection."""

    last_n: int = 0
    channels: dict[str, list[str]] = field(default_factory=dict)
    sequence: int | None = None
    products: list[str] = field(default_factory=list)

    def lists(self, names: set[str], product: str) -> bool:
        """Tell whether the last subscriptions lists one of the channels for the product."""
        for name in names & set(self.channels):
            products = self.channels[name]
            if not products or product in products or name == "heartbeats":
                return True
        return False


@dataclass
class Product:
    """All that was seen of a product."""

    name: str
    session: str | None = None
    watermark: int | None = None
    reconnected: bool = False
    lost: bool = False
    alone: bool = False  # the session has had one timed message of the product
    heartbeat_seen: bool = False
    quote_source: str | None = None
    trade_source: str | None = None
    last_id: int | None = None
    book: Book = field(default_factory=Book)
    book_state: int = NONE
    pending: Message | None = None
    coverage_start: int = 0
    open_gap: int | None = None
    last_gap: tuple[int, int] | None = None
    quote: dict[str, Any] | None = None
    tick_times: list[int] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)
    price_quote_times: list[int] = field(default_factory=list)
    mids: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    trade_times: list[int] = field(default_factory=list)
    trades: list[tuple[float, str | None]] = field(default_factory=list)
    sample_times: list[int] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    next_second: int | None = None
    last_message: tuple[str, int, int] | None = None  # session, n, created in ns
    grid_k: int = 0
    tickers: int = 0
    row_time_us: int | None = None
