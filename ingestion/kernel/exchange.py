"""The Exchange dialect: flat messages with ``type``, decoded type by type, a whole chunk at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.names import is_name
from ingestion.kernel.assemble import Assembler, floats
from ingestion.kernel.chunk import Chunk, channel_flag, reason_of
from ingestion.kernel.events import (
    BOOK_SNAPSHOT,
    BOOK_UPDATE,
    HEARTBEAT,
    LAST_TRADE,
    NO_ID,
    NO_TIME,
    TICKER,
    TRADE,
)
from ingestion.kernel.messages import CHANNELS, parse_times

_MAKER = {"buy": -1, "sell": 1}


class ExchangeDecoder:
    """Decode the Exchange messages of one chunk; a message that fails a check is refused, the rest is used."""

    def __init__(
        self, out: Assembler, chunk: Chunk, refuse: Callable[[Chunk, int, str], None], bound: NDArray[np.int64]
    ) -> None:
        self.out = out
        self.chunk = chunk
        self.refuse = refuse
        self.bound = bound
        """int64[m]: latest event time that is not in the future, per message."""
        self.types = {
            "ticker": self._tickers,
            "match": self._matches,
            "last_match": self._last_matches,
            "heartbeat": self._heartbeats,
            "l2update": self._updates,
            "snapshot": self._snapshots,
            "subscriptions": self._subscriptions,
        }

    def take(self, name: str, at: NDArray[np.int64]) -> bool:
        """Decode the messages ``at``, all of one type; False where nobody reads that type."""
        decode = self.types.get(name)
        if decode is not None:
            decode(at)
        return decode is not None

    def _times(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return parse_times([self.chunk.messages[i].time or "" for i in at])

    def _usable(self, at: NDArray[np.int64], checks: Iterable[tuple[str, NDArray[np.bool_]]]) -> NDArray[np.bool_]:
        """Reject the messages that fail a check, each for its first failure."""
        good = np.ones(len(at), bool)
        for reason, bad in checks:
            for j in np.flatnonzero(bad & good):
                self.refuse(self.chunk, int(at[j]), reason)
            good &= ~bad
        return good

    def _no_product(self, at: NDArray[np.int64]) -> tuple[str, NDArray[np.bool_]]:
        return "product_id is missing or no name", _unnamed([self.chunk.messages[i].product_id or "" for i in at])

    def _ahead(self, at: NDArray[np.int64], t: NDArray[np.int64]) -> tuple[str, NDArray[np.bool_]]:
        return "future", t > self.bound[at]

    def _tickers(self, at: NDArray[np.int64]) -> None:
        ms = self.chunk.messages if len(at) == len(self.chunk.messages) else [self.chunk.messages[i] for i in at]
        products = [m.product_id or "" for m in ms]
        t = parse_times([m.time or "" for m in ms])
        price = floats([m.price for m in ms])
        optional = {
            "bid": [m.best_bid for m in ms],
            "ask": [m.best_ask for m in ms],
            "bid_size": [m.best_bid_size for m in ms],
            "ask_size": [m.best_ask_size for m in ms],
            "size": [m.last_size for m in ms],
        }
        columns = {name: floats(values) for name, values in optional.items()}
        bad = [
            ("product_id is missing or no name", _unnamed(products)),
            ("price is not a number > 0", ~((price > 0) & np.isfinite(price))),
            ("time is missing, unreadable or without a zone", t < 0),
        ]
        for name, values in optional.items():
            column = columns[name]
            wrong = ~(column > 0 if name in ("bid", "ask") else column >= 0) | np.isinf(column)
            if wrong.any():
                there = np.array([v is not None for v in values], bool)
                bad.append((f"{name} is not a number in range", wrong & there))
        good = self._usable(at, [*bad, self._ahead(at, t)])
        events = self.out.events(self.chunk, at, TICKER)
        events["t_ns"] = t
        events["price"] = price
        for name, column in columns.items():
            events[name] = column
        events["side"] = [1 if m.side == "buy" else -1 if m.side == "sell" else 0 for m in ms]
        events["trade_id"] = [-1 if m.trade_id is None else m.trade_id for m in ms]
        self.out.add(events, at, products, good)

    def _matches(self, at: NDArray[np.int64], kind: int = TRADE) -> None:
        ms = [self.chunk.messages[i] for i in at]
        t = self._times(at)
        price = floats([m.price for m in ms])
        size = floats([m.size for m in ms])
        trade_id = np.array([NO_ID if m.trade_id is None else m.trade_id for m in ms], np.int64)
        checks = [self._no_product(at), ("trade_id is missing", trade_id < 0)]
        if kind == TRADE:
            checks += [
                ("price is not a number > 0", ~((price > 0) & np.isfinite(price))),
                ("size is not a number >= 0", ~((size >= 0) & np.isfinite(size))),
                ("side is neither buy nor sell", np.array([m.side not in _MAKER for m in ms], bool)),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(at, t),
            ]
        good = self._usable(at, checks)
        events = self.out.events(self.chunk, at, kind)
        events["t_ns"] = t if kind == TRADE else NO_TIME
        events["price"] = price
        events["size"] = size
        events["side"] = [_MAKER.get(m.side or "", 0) for m in ms]
        events["trade_id"] = trade_id
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _last_matches(self, at: NDArray[np.int64]) -> None:
        self._matches(at, LAST_TRADE)

    def _heartbeats(self, at: NDArray[np.int64]) -> None:
        ms = [self.chunk.messages[i] for i in at]
        t = self._times(at)
        good = self._usable(
            at,
            [
                self._no_product(at),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(at, t),
            ],
        )
        events = self.out.events(self.chunk, at, HEARTBEAT)
        events["t_ns"] = t
        events["trade_id"] = [NO_ID if m.last_trade_id is None else m.last_trade_id for m in ms]
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _updates(self, at: NDArray[np.int64]) -> None:
        ms = [self.chunk.messages[i] for i in at]
        t = self._times(at)
        counts = np.array([len(m.changes or ()) for m in ms], np.int64)
        changes = [c for m in ms for c in m.changes or ()]
        sides = np.array([{"buy": 0, "sell": 1}.get(c[0], -1) for c in changes], np.int64)
        price = floats([c[1] for c in changes])
        size = floats([c[2] for c in changes])
        wrong = (sides < 0) | ~((price > 0) & np.isfinite(price)) | ~((size >= 0) & np.isfinite(size))
        ends = np.cumsum(counts)
        starts = ends - counts
        wrongs = np.concatenate(([0], np.cumsum(wrong)))
        good = self._usable(
            at,
            [
                self._no_product(at),
                ("changes are missing", np.array([m.changes is None for m in ms], bool)),
                ("a change has a bad side, price or size", wrongs[ends] > wrongs[starts]),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(at, t),
            ],
        )
        base = self.out.levels(sides, price, size)
        events = self.out.events(self.chunk, at, BOOK_UPDATE)
        events["t_ns"] = t
        events["lo"] = base + starts
        events["hi"] = base + ends
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _snapshots(self, at: NDArray[np.int64]) -> None:
        for i in at:
            m = self.chunk.messages[i]
            one = np.array([i])
            bids, asks = m.bids, m.asks
            level = np.array([*(bids or ()), *(asks or ())], float).reshape(-1, 2)
            sides = np.repeat([0, 1], [len(bids or ()), len(asks or ())])
            wrong = ~((level[:, 0] > 0) & (level[:, 1] >= 0) & np.isfinite(level).all(axis=1))
            good = self._usable(
                one,
                [
                    self._no_product(one),
                    ("bids or asks are missing", np.array([bids is None or asks is None])),
                    ("a level has a bad price or size", np.array([bool(wrong.any())])),
                ],
            )
            base = self.out.levels(sides, level[:, 0], level[:, 1])
            events = self.out.events(self.chunk, one, BOOK_SNAPSHOT)
            events["t_ns"] = self.chunk.recv_ns[i]
            events["lo"] = base
            events["hi"] = base + len(level)
            self.out.add(events, one, [m.product_id or ""], good)

    def _subscriptions(self, at: NDArray[np.int64]) -> None:
        for i in at:
            raw = self.chunk.messages[i].channels
            try:
                channels = CHANNELS.decode(raw) if raw else []
            except msgspec.MsgspecError as error:
                self.refuse(self.chunk, int(i), reason_of(error))
                continue
            flags: dict[str, int] = defaultdict(int)
            for channel in channels:
                if not isinstance(channel, str):
                    for product in channel.product_ids:
                        flags[product] |= channel_flag(channel.name)
            self.out.subscribe(self.chunk, int(i), flags)


def _unnamed(products: list[str]) -> NDArray[np.bool_]:
    bad = {product for product in set(products) if not is_name(product)}
    return np.array([product in bad for product in products], bool) if bad else np.zeros(len(products), bool)
