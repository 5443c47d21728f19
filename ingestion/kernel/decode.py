"""From lines of a tape to arrays of events, bad input counted and kept.

Both dialects; bare, wrapped and envelope forms. A chunk of lines is decoded at once; only when a line in it is
malformed is the chunk taken line by line, so that the one bad line is found and the rest is used. Nothing here stops
on bad input.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import FUTURE_NS
from ingestion.kernel.advanced import AdvancedDecoder
from ingestion.kernel.assemble import Assembler, floats
from ingestion.kernel.events import (
    BOOK_SNAPSHOT,
    BOOK_UPDATE,
    HEARTBEAT,
    LAST_TRADE,
    NO_ID,
    NO_TIME,
    SUB_BOOK,
    SUB_HEARTBEAT,
    SUB_TRADES,
    TICKER,
    TRADE,
    Batch,
    Reject,
)
from ingestion.kernel.keys import repeats_a_key
from ingestion.kernel.messages import CHANNELS, DECODER, HEAD, Message, parse_times

_BOOK_CHANNELS = {"level2", "level2_batch", "level2_50", "l2_data"}
_TRADE_CHANNELS = {"matches", "market_trades"}
_HEARTBEAT_CHANNELS = {"heartbeat", "heartbeats"}
_MAKER = {"buy": -1, "sell": 1}
_LOG_KINDS = {"feed", None}
_READ_TYPES = (
    "ticker match last_match heartbeat l2update snapshot subscriptions error market_trades l2_data heartbeats"
).split()


def channel_flag(name: str) -> int:
    """Return the SUBSCRIBED flag of a channel, 0 where it bears neither quotes, trades nor heartbeats."""
    if name in _BOOK_CHANNELS:
        return SUB_BOOK
    if name in _TRADE_CHANNELS:
        return SUB_TRADES
    return SUB_HEARTBEAT if name in _HEARTBEAT_CHANNELS else 0


@dataclass(slots=True)
class Chunk:
    """Decoded messages of a chunk beside what the log says of each.

    Attributes
    ----------
    messages
        The inner messages.
    n
        int64[m], message numbers.
    session
        int64[m], index into the decoder's sessions.
    recv_ns
        int64[m], NO_TIME where unknown.
    lines
        Index of each message's line in the chunk.
    """

    messages: list[Message]
    n: NDArray[np.int64]
    session: NDArray[np.int64]
    recv_ns: NDArray[np.int64]
    lines: NDArray[np.int64]


@dataclass(slots=True)
class Decoder:
    """Decode chunks of one stream; remembers what spans chunks.

    Attributes
    ----------
    session
        Session of bare and wrapped lines (16 hex digits); their n is the line number.
    products
        Products to keep; None keeps all.
    sessions
        Session ids seen, in order.
    last_n
        Greatest n seen per session.
    sequence
        Last Advanced ``sequence_num`` per session.
    seen
        Products seen per session.
    """

    session: str = "0" * 16
    products: frozenset[str] | None = None
    sessions: list[str] = field(default_factory=list)
    last_n: dict[int, int] = field(default_factory=dict)
    sequence: dict[int, int] = field(default_factory=dict)
    seen: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    line: int = 0

    def decode(self, data: bytes, now_ns: int) -> Batch:
        """Decode complete lines.

        Parameters
        ----------
        data
            Newline-delimited messages; the last line may lack its newline.
        now_ns
            Bound of event times where no receive time is known, ns.

        Returns
        -------
        Batch
            Events by product, in log order.
        """
        work = _Work(self, data, now_ns)
        chunk = work.read()
        work.assemble(chunk)
        return work.finish()

    def session_index(self, session: str) -> int:
        """Return the index of a session, a new one where it hasn't been seen."""
        try:
            return self.sessions.index(session)
        except ValueError:
            self.sessions.append(session)
            return len(self.sessions) - 1


class _Work:
    """One chunk on its way through the decoder."""

    def __init__(self, decoder: Decoder, data: bytes, now_ns: int) -> None:
        self.decoder = decoder
        self.data = data
        self.now_ns = now_ns
        self.counts: Counter[str] = Counter()
        self.rejects: list[Reject] = []
        self.out = Assembler()
        self._lines: list[bytes] | None = None

    # Reading

    def lines(self) -> list[bytes]:
        if self._lines is None:
            self._lines = self.data.split(b"\n")
            if not self._lines[-1]:
                self._lines.pop()
        return self._lines

    def reject(self, line: int, n: int, reason: str) -> None:
        self.counts[f"malformed: {reason}" if reason != "future" else "future"] += 1
        self.counts["malformed" if reason != "future" else "dead_lettered_future"] += 1
        self.rejects.append(Reject(n, reason, self.lines()[line]))

    def read(self) -> Chunk:
        """Decode, unwrap, number, and drop what was seen before."""
        decoder = self.decoder
        start = decoder.line
        n_lines = self.data.count(b"\n") + (not self.data.endswith(b"\n") and len(self.data) > 0)
        decoder.line += n_lines
        messages: list[Message] | None = None
        if not repeats_a_key(self.data):
            try:
                messages = DECODER.decode_lines(self.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                messages = None
        if messages is None or len(messages) != n_lines:
            messages, lines = self._one_by_one(start)
        else:
            lines = np.arange(n_lines)
        n = lines + (start + 1)
        recv = np.full(len(messages), NO_TIME)
        session = np.zeros(len(messages), np.int64)
        if b'"raw"' in self.data and any(m.raw is not None for m in messages):
            messages, keep, n, session, recv = self._unwrap(messages, lines, n)
            lines = lines[keep]
        elif messages:
            session[:] = decoder.session_index(decoder.session)
        return self._unseen(Chunk(messages, n, session, recv, lines))

    def _one_by_one(self, start: int) -> tuple[list[Message], NDArray[np.int64]]:
        messages: list[Message] = []
        lines: list[int] = []
        for i, line in enumerate(self.lines()):
            if not line.strip():
                self.counts["empty_line"] += 1
                continue
            try:
                message = _decode_one(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                unread = _unread_type(line)
                if unread:
                    self.counts.update((unread, "unknown_type"))
                else:
                    self.reject(i, start + 1 + i, _reason(error))
                continue
            messages.append(message)
            lines.append(i)
        return messages, np.array(lines, np.int64)

    def _unwrap(
        self, outer: list[Message], lines: NDArray[np.int64], n: NDArray[np.int64]
    ) -> tuple[list[Message], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        decoder = self.decoder
        texts = [m.raw for m in outer if m.raw is not None]
        inner: list[Message] | None = None
        joined = "\n".join(texts).encode()
        if joined.count(b"\n") == len(texts) - 1 and not repeats_a_key(joined):
            try:
                inner = DECODER.decode_lines(joined)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                inner = None
            if inner is not None and len(inner) != len(texts):
                inner = None
        messages: list[Message] = []
        keep: list[int] = []
        recv: list[int] = []
        sessions: list[int] = []
        numbers: list[int] = []
        at = -1
        for i, m in enumerate(outer):
            number = m.n if m.n is not None else int(n[i])
            if m.raw is None:
                message = m
            else:
                at += 1
                if m.kind not in _LOG_KINDS:
                    self.counts[str(m.kind)] += 1
                    continue
                if inner is not None:
                    message = inner[at]
                else:
                    try:
                        message = _decode_one(m.raw.encode())
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                        self.reject(int(lines[i]), number, _reason(error))
                        continue
                if message.raw is not None:
                    self.reject(int(lines[i]), number, "wrapped twice")
                    continue
                if m.ts is not None and not 0 <= m.ts < 9.2e9:
                    self.reject(int(lines[i]), number, "ts is no time in seconds")
                    continue
            messages.append(message)
            keep.append(i)
            numbers.append(number)
            # Microseconds are all that a float of today's seconds can hold.
            recv.append(int(NO_TIME) if m.ts is None else round(m.ts * 1e6) * 1000)
            sessions.append(decoder.session_index(m.session if m.session is not None else decoder.session))
        as_int = (np.array(x, np.int64) for x in (keep, numbers, sessions, recv))
        keep_, numbers_, sessions_, recv_ = as_int
        return messages, keep_, numbers_, sessions_, recv_

    def _unseen(self, chunk: Chunk) -> Chunk:
        """Drop messages whose number was seen in their session."""
        last = self.decoder.last_n
        fresh = np.ones(len(chunk.n), bool)
        for index in np.unique(chunk.session):
            mine = np.flatnonzero(chunk.session == index)
            numbers = chunk.n[mine]
            before = last.get(int(index), 0)
            highest = np.maximum.accumulate(np.concatenate(([before], numbers)))
            fresh[mine] = numbers > highest[:-1]
            last[int(index)] = int(highest[-1])
        if fresh.all():
            return chunk
        self.counts["duplicate"] += int((~fresh).sum())
        kept = np.flatnonzero(fresh)
        return Chunk(
            [chunk.messages[i] for i in kept],
            chunk.n[kept],
            chunk.session[kept],
            chunk.recv_ns[kept],
            chunk.lines[kept],
        )

    # Sorting by type

    def assemble(self, chunk: Chunk) -> None:
        """Turn the messages of a chunk into events, type by type."""
        groups: dict[str, list[int]] = defaultdict(list)
        advanced: list[int] = []
        types = [m.type for m in chunk.messages]
        if types and types[0] is not None and types.count(types[0]) == len(types):
            groups[types[0]] = list(range(len(types)))
            types.clear()
        for i, kind in enumerate(types):
            if kind is not None:
                groups[kind].append(i)
            elif chunk.messages[i].channel is not None:
                advanced.append(i)
            else:
                self.reject(int(chunk.lines[i]), int(chunk.n[i]), "no type or channel")
        exchange = {
            "ticker": self._tickers,
            "match": self._matches,
            "last_match": self._last_matches,
            "heartbeat": self._heartbeats,
            "l2update": self._updates,
            "snapshot": self._snapshots,
            "subscriptions": self._subscriptions,
        }
        for name, indexes in groups.items():
            self.counts[name] += len(indexes)
            take = exchange.get(name)
            if take is not None:
                take(chunk, np.array(indexes))
            elif name != "error":
                self.counts["unknown_type"] += len(indexes)
        if advanced:
            bound = np.where(chunk.recv_ns >= 0, chunk.recv_ns, self.now_ns) + FUTURE_NS
            decoder = AdvancedDecoder(self.out, chunk, self.decoder.sequence, self.counts, self.refuse, bound)
            decoder.take(advanced, channel_flag)

    def refuse(self, chunk: Chunk, i: int, reason: str) -> None:
        """Reject message i of the chunk."""
        self.reject(int(chunk.lines[i]), int(chunk.n[i]), reason)

    def _times(self, chunk: Chunk, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return parse_times([chunk.messages[i].time or "" for i in at])

    def _usable(
        self, chunk: Chunk, at: NDArray[np.int64], checks: Iterable[tuple[str, NDArray[np.bool_]]]
    ) -> NDArray[np.bool_]:
        """Reject the messages that fail a check, each for its first failure."""
        good = np.ones(len(at), bool)
        for reason, bad in checks:
            for j in np.flatnonzero(bad & good):
                self.refuse(chunk, int(at[j]), reason)
            good &= ~bad
        return good

    def _no_product(self, chunk: Chunk, at: NDArray[np.int64]) -> tuple[str, NDArray[np.bool_]]:
        return "product_id is missing", _empty([chunk.messages[i].product_id or "" for i in at])

    def _ahead(self, chunk: Chunk, at: NDArray[np.int64], t: NDArray[np.int64]) -> tuple[str, NDArray[np.bool_]]:
        bound = np.where(chunk.recv_ns[at] >= 0, chunk.recv_ns[at], self.now_ns) + FUTURE_NS
        return "future", t > bound

    def _tickers(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        ms = chunk.messages if len(at) == len(chunk.messages) else [chunk.messages[i] for i in at]
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
            ("product_id is missing", _empty(products)),
            ("price is not a number > 0", ~((price > 0) & np.isfinite(price))),
            ("time is missing, unreadable or without a zone", t < 0),
        ]
        for name, values in optional.items():
            column = columns[name]
            wrong = ~(column > 0 if name in ("bid", "ask") else column >= 0) | np.isinf(column)
            if wrong.any():
                there = np.array([v is not None for v in values], bool)
                bad.append((f"{name} is not a number in range", wrong & there))
        good = self._usable(chunk, at, [*bad, self._ahead(chunk, at, t)])
        events = self.out.events(chunk, at, TICKER)
        events["t_ns"] = t
        events["price"] = price
        for name, column in columns.items():
            events[name] = column
        events["side"] = [1 if m.side == "buy" else -1 if m.side == "sell" else 0 for m in ms]
        events["trade_id"] = [-1 if m.trade_id is None else m.trade_id for m in ms]
        self.out.add(events, at, products, good)

    def _matches(self, chunk: Chunk, at: NDArray[np.int64], kind: int = TRADE) -> None:
        ms = [chunk.messages[i] for i in at]
        t = self._times(chunk, at)
        price = floats([m.price for m in ms])
        size = floats([m.size for m in ms])
        trade_id = np.array([NO_ID if m.trade_id is None else m.trade_id for m in ms], np.int64)
        checks = [self._no_product(chunk, at), ("trade_id is missing", trade_id < 0)]
        if kind == TRADE:
            checks += [
                ("price is not a number > 0", ~((price > 0) & np.isfinite(price))),
                ("size is not a number >= 0", ~((size >= 0) & np.isfinite(size))),
                ("side is neither buy nor sell", np.array([m.side not in _MAKER for m in ms], bool)),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(chunk, at, t),
            ]
        good = self._usable(chunk, at, checks)
        events = self.out.events(chunk, at, kind)
        events["t_ns"] = t if kind == TRADE else NO_TIME
        events["price"] = price
        events["size"] = size
        events["side"] = [_MAKER.get(m.side or "", 0) for m in ms]
        events["trade_id"] = trade_id
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _last_matches(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        self._matches(chunk, at, LAST_TRADE)

    def _heartbeats(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        ms = [chunk.messages[i] for i in at]
        t = self._times(chunk, at)
        good = self._usable(
            chunk,
            at,
            [
                self._no_product(chunk, at),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(chunk, at, t),
            ],
        )
        events = self.out.events(chunk, at, HEARTBEAT)
        events["t_ns"] = t
        events["trade_id"] = [NO_ID if m.last_trade_id is None else m.last_trade_id for m in ms]
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _updates(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        ms = [chunk.messages[i] for i in at]
        t = self._times(chunk, at)
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
            chunk,
            at,
            [
                self._no_product(chunk, at),
                ("changes are missing", np.array([m.changes is None for m in ms], bool)),
                ("a change has a bad side, price or size", wrongs[ends] > wrongs[starts]),
                ("time is missing, unreadable or without a zone", t < 0),
                self._ahead(chunk, at, t),
            ],
        )
        base = self.out.levels(sides, price, size)
        events = self.out.events(chunk, at, BOOK_UPDATE)
        events["t_ns"] = t
        events["lo"] = base + starts
        events["hi"] = base + ends
        self.out.add(events, at, [m.product_id or "" for m in ms], good)

    def _snapshots(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        for i in at:
            m = chunk.messages[i]
            one = np.array([i])
            bids, asks = m.bids, m.asks
            level = np.array([*(bids or ()), *(asks or ())], float).reshape(-1, 2)
            sides = np.repeat([0, 1], [len(bids or ()), len(asks or ())])
            wrong = ~((level[:, 0] > 0) & (level[:, 1] >= 0) & np.isfinite(level).all(axis=1))
            good = self._usable(
                chunk,
                one,
                [
                    self._no_product(chunk, one),
                    ("bids or asks are missing", np.array([bids is None or asks is None])),
                    ("a level has a bad price or size", np.array([bool(wrong.any())])),
                ],
            )
            base = self.out.levels(sides, level[:, 0], level[:, 1])
            events = self.out.events(chunk, one, BOOK_SNAPSHOT)
            events["t_ns"] = chunk.recv_ns[i]
            events["lo"] = base
            events["hi"] = base + len(level)
            self.out.add(events, one, [m.product_id or ""], good)

    def _subscriptions(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        for i in at:
            raw = chunk.messages[i].channels
            try:
                channels = CHANNELS.decode(raw) if raw else []
            except msgspec.MsgspecError as error:
                self.refuse(chunk, int(i), _reason(error))
                continue
            flags: dict[str, int] = defaultdict(int)
            for channel in channels:
                if not isinstance(channel, str):
                    for product in channel.product_ids:
                        flags[product] |= channel_flag(channel.name)
            self.out.subscribe(chunk, int(i), flags)

    def finish(self) -> Batch:
        """Put the events into log order, product by product."""
        decoder = self.decoder
        events = self.out.by_product(decoder.seen)
        if decoder.products is not None:
            other = [p for p in events if p not in decoder.products]
            for product in other:
                self.counts["other_product"] += len(events.pop(product))
        return Batch(
            events=events,
            levels=self.out.all_levels(),
            sessions=decoder.sessions,
            counts=dict(self.counts),
            rejects=self.rejects,
        )


def _empty(texts: list[str]) -> NDArray[np.bool_]:
    return np.zeros(len(texts), bool) if "" not in texts else np.array([not text for text in texts], bool)


def _unread_type(line: bytes) -> str:
    """Return the type of a line that nobody reads, whatever its fields hold; empty where it is one that is read."""
    try:
        head = HEAD.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    name = head.type or head.channel or ""
    return "" if name in _READ_TYPES or head.raw is not msgspec.UNSET else name


def _reason(error: Exception) -> str:
    """Return why a line can't be decoded, without the position that would make each reason its own."""
    return re.sub(r" \(byte \d+\)", "", str(error)).split(" - at ")[0][:120]


def _decode_one(line: bytes) -> Message:
    """Decode one message, and refuse one that names a key twice."""
    message = DECODER.decode(line)
    if repeats_a_key(line):
        raise msgspec.ValidationError("a key stands twice")
    return message


__all__: Sequence[str] = ["Chunk", "Decoder", "channel_flag"]
