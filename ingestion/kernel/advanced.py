"""The Advanced Trade dialect: envelopes with ``channel``, ``sequence_num`` and a list of events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from feature_repo.names import is_name
from ingestion.kernel.assemble import EVERY_PRODUCT, Assembler, floats
from ingestion.kernel.chunk import Chunk, channel_flag
from ingestion.kernel.events import (
    BOOK_SNAPSHOT,
    BOOK_UPDATE,
    HEARTBEAT,
    LAST_TRADE,
    SEQUENCE_LOSS,
    TICKER,
    TRADE,
)
from ingestion.kernel.messages import AdvancedEvent, parse_times

_SIDES = {"bid": 0, "offer": 1}
_MAKER = {"BUY": -1, "SELL": 1}


class _Refusal(Exception):
    """Why a message can't be used."""


class AdvancedDecoder:
    """Decode the Advanced messages of one chunk, one by one: they are few and nested."""

    def __init__(
        self,
        out: Assembler,
        chunk: Chunk,
        sequence: dict[int, int] | None,
        told: set[int],
        counts: Counter[str],
        refuse: Callable[[Chunk, int, str], None],
        bound: NDArray[np.int64],
    ) -> None:
        self.out = out
        self.chunk = chunk
        self.sequence = sequence
        """Last sequence number per session; None where the chunk is no whole connection."""
        self.told = told
        self.counts = counts
        self.refuse = refuse
        self.bound = bound
        """int64[m]: latest event time that is not in the future, per message."""
        self.held: list[tuple[NDArray[np.void], NDArray[np.int64], list[str]]] = []
        """Events of the message at hand: used whole or not at all."""

    def take(self, indexes: list[int]) -> None:
        """Decode the messages at ``indexes``."""
        stamps = parse_times([self.chunk.messages[i].timestamp or "" for i in indexes])
        for i, stamp in zip(indexes, stamps, strict=True):
            message = self.chunk.messages[i]
            channel = message.channel or ""
            self.counts[channel] += 1
            self._check_sequence(i)
            events = message.events or []
            self.held.clear()
            try:
                if channel == "subscriptions":
                    flags: dict[str, int] = defaultdict(int)
                    for event in events:
                        for name, products in (event.subscriptions or {}).items():
                            for product in products:
                                flags[product] |= channel_flag(name)
                    self.out.subscribe(self.chunk, i, flags)
                elif channel == "heartbeats":
                    self._heartbeat(i, int(stamp))
                elif channel == "ticker":
                    self._tickers(i, int(stamp), events)
                elif channel == "market_trades":
                    self._trades(i, events)
                elif channel == "l2_data":
                    self._books(i, events)
                else:
                    self.counts["unknown_type"] += 1
            except _Refusal as refusal:
                self.refuse(self.chunk, i, str(refusal))
                continue
            for held in self.held:
                self.out.add(*held)

    def _check_sequence(self, i: int) -> None:
        number = self.chunk.messages[i].sequence_num
        session = int(self.chunk.session[i])
        if number is None or self.sequence is None or session in self.told:
            return
        before = self.sequence.get(session)
        if before is not None and number > before + 1:
            self.counts["sequence_loss"] += 1
            at = np.array([i])
            self.out.add(self.out.events(self.chunk, at, SEQUENCE_LOSS), at, [EVERY_PRODUCT])
        self.sequence[session] = number if before is None else max(before, number)

    def _hold(self, events: NDArray[np.void], at: NDArray[np.int64], products: list[str]) -> None:
        if not all(product == EVERY_PRODUCT or is_name(product) for product in products):
            raise _Refusal("product_id is missing or no name")
        self.held.append((events, at, products))

    def _timely(self, i: int, t: NDArray[np.int64]) -> None:
        if (t < 0).any():
            raise _Refusal("time is missing, unreadable or without a zone")
        if (t > self.bound[i]).any():
            raise _Refusal("future")

    def _heartbeat(self, i: int, stamp: int) -> None:
        self._timely(i, np.array([stamp]))
        at = np.array([i])
        events = self.out.events(self.chunk, at, HEARTBEAT)
        events["t_ns"] = stamp
        self._hold(events, at, [EVERY_PRODUCT])

    def _tickers(self, i: int, stamp: int, entries: list[AdvancedEvent]) -> None:
        tickers = [ticker for event in entries for ticker in event.tickers or ()]
        self._timely(i, np.array([stamp]))
        price = floats([t.price for t in tickers])
        if not ((price > 0) & np.isfinite(price)).all():
            raise _Refusal("price is not a number > 0")
        at = np.full(len(tickers), i)
        events = self.out.events(self.chunk, at, TICKER)
        events["t_ns"] = stamp
        events["price"] = price
        events["k"] = np.arange(len(tickers))
        for name, values in (
            ("bid", [t.best_bid for t in tickers]),
            ("ask", [t.best_ask for t in tickers]),
            ("bid_size", [t.best_bid_quantity for t in tickers]),
            ("ask_size", [t.best_ask_quantity for t in tickers]),
        ):
            column = floats(values)
            there = np.array([v is not None for v in values], bool)
            wrong = ~(column > 0 if name in ("bid", "ask") else column >= 0) | np.isinf(column)
            if (wrong & there).any():
                raise _Refusal(f"{name} is not a number in range")
            events[name] = column
        self._hold(events, at, [t.product_id for t in tickers])

    def _trades(self, i: int, entries: list[AdvancedEvent]) -> None:
        k = 0
        for event in entries:
            trades = event.trades or []
            number = {id(trade): k + j for j, trade in enumerate(trades)}
            k += len(trades)
            if event.type == "snapshot":
                last: dict[str, int] = {}
                for trade in trades:
                    last[trade.product_id] = max(trade.trade_id, last.get(trade.product_id, -1))
                at = np.full(len(last), i)
                events = self.out.events(self.chunk, at, LAST_TRADE)
                events["trade_id"] = list(last.values())
                self._hold(events, at, list(last))
                continue
            # Newest first on the wire; entered in rising id, so that a clean feed shows no gap.
            trades = sorted(trades, key=lambda trade: trade.trade_id)
            t = parse_times([trade.time for trade in trades]) if trades else np.zeros(0, np.int64)
            self._timely(i, t)
            price = floats([trade.price for trade in trades])
            size = floats([trade.size for trade in trades])
            if not ((price > 0) & np.isfinite(price) & (size >= 0) & np.isfinite(size)).all():
                raise _Refusal("price or size is not a number in range")
            if any(trade.side not in _MAKER for trade in trades):
                raise _Refusal("side is neither BUY nor SELL")
            at = np.full(len(trades), i)
            events = self.out.events(self.chunk, at, TRADE)
            events["t_ns"] = t
            events["k"] = [number[id(trade)] for trade in trades]
            events["price"] = price
            events["size"] = size
            events["side"] = [_MAKER[trade.side] for trade in trades]
            events["trade_id"] = [trade.trade_id for trade in trades]
            self._hold(events, at, [trade.product_id for trade in trades])

    def _books(self, i: int, entries: list[AdvancedEvent]) -> None:
        for k, event in enumerate(entries):
            updates = event.updates
            if updates is None or not event.product_id:
                raise _Refusal("product_id or updates are missing")
            if not updates:
                continue
            t = parse_times([u.event_time for u in updates])
            self._timely(i, t)
            sides = np.array([_SIDES.get(u.side, -1) for u in updates], np.int64)
            price = floats([u.price_level for u in updates])
            size = floats([u.new_quantity for u in updates])
            if not ((sides >= 0) & (price > 0) & np.isfinite(price) & (size >= 0) & np.isfinite(size)).all():
                raise _Refusal("a change has a bad side, price or size")
            at = np.array([i])
            base = self.out.levels(sides, price, size)
            events = self.out.events(self.chunk, at, BOOK_SNAPSHOT if event.type == "snapshot" else BOOK_UPDATE)
            events["t_ns"] = t.max()
            events["k"] = k
            events["lo"] = base
            events["hi"] = base + len(updates)
            self._hold(events, at, [event.product_id])
