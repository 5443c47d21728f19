"""The naive oracle: what a tape must give, by DESIGN and ADR 1 to the letter.

Lines go in, rows, quotes and counts come out. All history is kept in lists, and each row is computed from the
whole of it. Where it and the kernel differ, one of them misreads the design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from feature_repo.contract import FUTURE_NS, GRACE_NS, SILENCE_HEARTBEAT_NS, SILENCE_NS, WINDOWS
from tests.oracle.book import Book
from tests.oracle.parse import Line, Message, read
from tests.oracle.state import (
    BOOK_CHANNELS,
    HEARTBEAT_CHANNELS,
    NONE,
    RESYNCING,
    SYNCED,
    TRADE_CHANNELS,
    Product,
    Result,
    Session,
)
from tests.oracle.stats import S, row_features


class Oracle:
    """State of a replay; :func:`replay` drives it."""

    def __init__(
        self, every_s: int | None, compute_every_n: int, windows: Sequence[int],
        only_rows: Callable[[int], bool] | None, now_ns: int | None,
    ) -> None:  # fmt: skip
        self.every_s, self.compute_every_n, self.windows = every_s, compute_every_n, windows
        self.only_rows, self.now_ns = only_rows, now_ns
        self.sessions: dict[str, Session] = {}
        self.products: dict[str, Product] = {}
        self.out = Result()

    # one line -------------------------------------------------------------------------------------

    def push(self, line: Line) -> None:
        """Take one line in log order."""
        count = self.out.counts
        count["lines"] += 1
        session = self.sessions.setdefault(line.session, Session())
        if line.n <= session.last_n:
            count["duplicate"] += 1
            return
        session.last_n = line.n
        count[f"type:{line.name}"] += 1
        if line.reason is not None:
            count["malformed"] += 1
            self.out.malformed.append((line.n, line.reason))
            return
        if line.sequence is not None:
            if session.sequence is not None and line.sequence > session.sequence + 1:
                count["sequence_loss"] += 1
                for name in session.products:
                    self.products[name].lost = True
            session.sequence = max(line.sequence, session.sequence or 0)
        if line.channels is not None:
            session.channels = line.channels
        for message in line.messages:
            if self._is_future(line, message):
                count["future"] += 1
            elif message.product is None:
                for name in session.products:
                    self._message(line, session, self.products[name], message)
            else:
                product = self.products.setdefault(message.product, Product(message.product))
                if product.name not in session.products:
                    session.products.append(product.name)
                self._message(line, session, product, message)

    def _is_future(self, line: Line, message: Message) -> bool:
        known = self.now_ns if line.recv_ns is None else line.recv_ns
        return known is not None and message.time_ns is not None and message.time_ns > known + FUTURE_NS

    # one message of one product -------------------------------------------------------------------

    def _message(self, line: Line, session: Session, p: Product, m: Message) -> None:
        if p.session != line.session:
            p.reconnected = p.session is not None
            p.session = line.session
            p.quote_source = p.trade_source = p.last_id = p.pending = None
            p.heartbeat_seen = p.alone = False
        self._fix_sources(session, p, m)
        if m.kind == "continuity":
            p.last_id = m.trade_id
            return
        if m.kind == "update" and m.time_ns is None:
            return
        when = line.recv_ns if m.kind == "snapshot" and m.time_ns is None else m.time_ns
        if when is None:
            p.pending = m
            return
        late = p.watermark is not None and when < p.watermark - GRACE_NS
        if late:
            self.out.counts["late"] += 1
        elif p.watermark is not None and when < p.watermark:
            self.out.counts["reordered"] += 1
        t = when if p.watermark is None else max(when, p.watermark)
        created = t if line.recv_ns is None else line.recv_ns

        self._begin_again(session, p, t)
        gap = self._shows_gap(session, p, m, t) | self._moves_to_book(p, m)
        if p.watermark is None:
            p.coverage_start = t
            p.next_second = -(-t // S)
        self._grid(p, t, gap)
        if gap:
            assert p.watermark is not None
            self._gap(p, p.watermark, t, line.n, m.k, created)
        if p.open_gap is not None and p.quote_source == "tickers":  # of a new session (ADR 29)
            p.book_state = NONE
            self._end_gap(p, p.open_gap, t, line.n, m.k, created)
        p.watermark = t
        if p.last_message is None or p.last_message[:2] != (line.session, line.n):
            p.grid_k = 0
        p.last_message = (line.session, line.n, created)
        if m.kind == "heartbeat":
            p.heartbeat_seen = True
        if m.kind in ("update", "snapshot"):
            self._book_message(p, m, t, line.n, created)
        if late:
            return
        if m.kind == "trade" and p.trade_source == "matches":
            self._trade(p, m, t)
        if m.kind == "ticker":
            self._ticker(p, m, t, line, created)

    def _fix_sources(self, session: Session, p: Product, m: Message) -> None:
        if p.quote_source is None and m.kind in ("ticker", "snapshot", "update"):
            listed = session.lists(BOOK_CHANNELS, p.name)
            p.quote_source = "book" if listed or m.kind != "ticker" else "tickers"
        bears = m.kind in ("trade", "continuity") or (m.trade_id is not None and m.size is not None)
        if p.trade_source is None and bears:
            listed = session.lists(TRADE_CHANNELS, p.name)
            p.trade_source = "matches" if listed or m.kind in ("trade", "continuity") else "tickers"

    def _moves_to_book(self, p: Product, m: Message) -> bool:
        """Tell whether a snapshot takes effect that ends the tickers' time as source of quotes (ADR 6)."""
        taken = m if m.kind == "snapshot" else p.pending if p.pending and m.kind == "update" else None
        if taken is None or p.quote_source != "tickers" or Book(taken.changes).crossed:
            return False
        p.quote_source = "book"
        return p.watermark is not None

    # gaps -----------------------------------------------------------------------------------------

    def _silent(self, session: Session, p: Product, t: int) -> bool:
        beats = p.heartbeat_seen or session.lists(HEARTBEAT_CHANNELS, p.name)
        return p.watermark is not None and t - p.watermark > (SILENCE_HEARTBEAT_NS if beats else SILENCE_NS)

    def _begin_again(self, session: Session, p: Product, t: int) -> None:
        """Let the stream begin with the second message where the first was old news (ADR 36)."""
        if p.alone and self._silent(session, p, t) and p.open_gap is None:
            p.watermark = p.coverage_start = t
            p.next_second = -(-t // S)
        p.alone = p.watermark is None or p.reconnected

    def _shows_gap(self, session: Session, p: Product, m: Message, t: int) -> bool:
        shown = p.reconnected or p.lost
        p.reconnected = p.lost = False
        if p.watermark is None:
            shown = False
        else:
            shown |= self._silent(session, p, t)
        if m.trade_id is not None and (
            (p.trade_source == "matches" and m.kind in ("trade", "heartbeat"))
            or (p.trade_source == "tickers" and m.kind == "ticker" and m.size is not None)
        ):
            if p.last_id is not None and p.watermark is not None:
                shown |= m.trade_id > p.last_id + (0 if m.kind == "heartbeat" else 1)
            p.last_id = m.trade_id if p.last_id is None else max(p.last_id, m.trade_id)
        return shown

    def _gap(self, p: Product, start: int, end: int, n: int, k: int, created: int) -> None:
        """Record a gap: it stays open where a book has to be synced again, else it ends there and then."""
        if p.open_gap is not None:
            return
        self.out.counts["gaps"] += 1
        self._edge(p, "gap_start", start, n, k, created)
        if p.book_state == SYNCED:
            p.book_state, p.open_gap = RESYNCING, start
        else:
            self._end_gap(p, start, end, n, k, created)

    def _end_gap(self, p: Product, start: int, end: int, n: int, k: int, created: int) -> None:
        p.open_gap, p.last_gap, p.coverage_start = None, (start, end), end
        self._edge(p, "gap_end", end, n, k, created)

    def _edge(self, p: Product, kind: str, t: int, n: int, k: int, created: int) -> None:
        self.out.quotes.append(
            {"product_id": p.name, "session": p.session, "n": n, "k": k, "kind": kind, "event_time_ns": t,
             "created_us": created // 1000, "bid": None, "ask": None, "bid_size": None, "ask_size": None}
        )  # fmt: skip

    # series ---------------------------------------------------------------------------------------

    def _book_message(self, p: Product, m: Message, t: int, n: int, created: int) -> None:
        if p.quote_source != "book":
            self.out.counts["ignored"] += 1
            return
        if p.pending is not None and m.kind == "update":
            snapshot, p.pending = p.pending, None
            self._load(p, snapshot, t, n, created)
        if m.kind == "snapshot":
            p.pending = None
            self._load(p, m, t, n, created)
            return
        if p.book_state != SYNCED:
            self.out.counts["ignored"] += 1
            return
        known = p.book.unknown_deletes
        p.book.apply(m.changes)
        self.out.counts["unknown_deletes"] += p.book.unknown_deletes - known
        if p.book.crossed:
            self.out.counts["crossed_book"] += 1
            self._gap(p, t, t, n, m.k, created)
            return
        self._sample_book(p, t, n, m.k, created)

    def _load(self, p: Product, m: Message, t: int, n: int, created: int) -> None:
        book = Book(m.changes)
        if book.crossed:
            self.out.counts["crossed_snapshot"] += 1
            if p.book_state == SYNCED:
                self._gap(p, t, t, n, m.k, created)
            p.book_state = RESYNCING
            return
        p.book, p.book_state = book, SYNCED
        if p.open_gap is not None:
            self._end_gap(p, p.open_gap, t, n, m.k, created)
        self._sample_book(p, t, n, m.k, created)

    def _sample_book(self, p: Product, t: int, n: int, k: int, created: int) -> None:
        top = p.book.top()
        if top is None:
            self.out.counts["one_sided"] += 1
            return
        self._quote(p, top, t, n, k, created)
        p.sample_times.append(t)
        p.samples.append(top)

    def _quote(self, p: Product, top: dict[str, Any], t: int, n: int, k: int, created: int) -> None:
        new = {name: top[name] for name in ("bid", "ask", "bid_size", "ask_size")}
        if new == p.quote:
            return
        self.out.quotes.append(
            {"product_id": p.name, "session": p.session, "n": n, "k": k, "kind": "quote", "event_time_ns": t,
             "created_us": created // 1000, **new}
        )  # fmt: skip
        if p.quote is None or (new["bid"], new["ask"]) != (p.quote["bid"], p.quote["ask"]):
            mid = (new["bid"] + new["ask"]) / 2
            p.price_quote_times.append(t)
            p.mids.append(mid)
            p.spreads.append((new["ask"] - new["bid"]) / mid)
        p.quote = new

    def _trade(self, p: Product, m: Message, t: int) -> None:
        assert m.size is not None
        p.trade_times.append(t)
        p.trades.append((m.size, m.taker))

    def _ticker(self, p: Product, m: Message, t: int, line: Line, created: int) -> None:
        if p.quote_source == "tickers":
            if m.bid is None or m.ask is None:
                self.out.counts["one_sided"] += 1
            elif m.bid >= m.ask:
                self.out.counts["crossed"] += 1
            else:
                top = {"bid": m.bid, "ask": m.ask, "bid_size": m.bid_size, "ask_size": m.ask_size}
                self._quote(p, top, t, line.n, m.k, created)
                if m.bid_size and m.ask_size:
                    p.sample_times.append(t)
                    p.samples.append({**top, "bid_10": None, "ask_10": None})
        if p.trade_source == "tickers" and m.trade_id is not None and m.size is not None:
            self._trade(p, m, t)
        p.tick_times.append(t)
        p.prices.append(m.price or 0.0)
        p.tickers += 1
        if p.tickers % self.compute_every_n == 0:
            self._row(p, "ticker", t, line.session, line.n, m.k, created)

    # rows -----------------------------------------------------------------------------------------

    def _grid(self, p: Product, t: int, gap: bool) -> None:
        if p.next_second is None:
            return
        while p.next_second * S < t:
            second = p.next_second
            inside = p.open_gap is not None or (gap and p.watermark is not None and second * S > p.watermark)
            if inside:  # seconds up to t lie in it too
                p.next_second = -(-t // S)
                return
            p.next_second += 1
            if self.every_s is not None and second % self.every_s == 0:
                assert p.last_message is not None
                session, n, created = p.last_message
                p.grid_k -= 1
                self._row(p, "grid", second * S, session, n, p.grid_k, created)

    def _row(self, p: Product, trigger: str, t: int, session: str, n: int, k: int, created: int) -> None:
        micros = t // 1000
        p.row_time_us = micros if p.row_time_us is None else max(micros, p.row_time_us + 1)
        wanted = self.only_rows is None or self.only_rows(len(self.out.rows))
        features, scales = row_features(p, t, trigger, self.windows) if wanted else (None, None)
        self.out.rows.append(
            {"product_id": p.name, "session": session, "n": n, "k": k, "trigger": trigger,
             "event_time_ns": t, "row_time_us": p.row_time_us, "created_us": created // 1000,
             "features": features, "scales": scales}
        )  # fmt: skip


def replay(
    lines: Iterable[bytes], *, session: str = "0" * 16, every_s: int | None = 1, compute_every_n: int = 1,
    windows: Sequence[int] = WINDOWS, only_rows: Callable[[int], bool] | None = None,
    now_ns: int | None = None,
) -> Result:  # fmt: skip
    """Replay a tape naively.

    ``only_rows`` is asked with the index of each row whether its features are wanted; the others carry None
    there. The ``session`` is that of a foreign tape, ``now_ns`` the machine's clock (None: no bound).
    """
    oracle = Oracle(every_s, compute_every_n, windows, only_rows, now_ns)
    for line in read(lines, session):
        oracle.push(line)
    return oracle.out
