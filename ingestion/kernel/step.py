"""The loop: one product's events in log order, rows and quotes out.

For each message: does it show a gap? Which whole seconds does it pass? Then the clock moves, then quote, book
sample and trade enter, then its ticker, then its row is made. A row is made at once and never revised.

::

    event time     ──●────●──────────●───────────────────────●──    silence, lost ids: a gap
    watermark        ●────●──────────●                       ●
    grid rows          |    |    |     (none inside the gap)     |
    coverage_s       0 ─────────────→                        0 ──→
"""

from __future__ import annotations

import math

import numpy as np

from feature_repo.contract import GRACE_NS, SILENCE_HEARTBEAT_NS, SILENCE_NS
from ingestion.kernel.book import ASKS, BIDS, TOP, best, clear_book, depth, set_level
from ingestion.kernel.compiled import entry, inlined, inner
from ingestion.kernel.emit import fill_row, keep_lag
from ingestion.kernel.events import (
    BOOK_NOTE,
    BOOK_SNAPSHOT,
    BOOK_UPDATE,
    GAP,
    HEARTBEAT,
    LAST_TRADE,
    SEQUENCE_LOSS,
    SESSION,
    STATUS,
    SUB_BOOK,
    SUB_HEARTBEAT,
    SUB_TRADES,
    SUBSCRIBED,
    TICKER,
    TRADE,
)
from ingestion.kernel.series import enter_mid, enter_sample, enter_tick, enter_trade, slot
from ingestion.kernel.state import BOOK, COUNTERS, MATCHES, OPEN, TICKERS

(
    C_REORDERED,
    C_LATE,
    C_GAPS,
    C_SESSION,
    C_SILENCE,
    C_TRADES,
    C_SEQUENCE,
    C_SOURCE,
    C_RECORDED,
    C_CROSSED_BOOK,
    C_UNKNOWN,
    C_CROSSED,
    C_ONE_SIDED,
    C_IGNORED,
    C_BAD_SNAPSHOT,
    C_TICKER_ROWS,
    C_GRID_ROWS,
    C_QUOTES,
    C_KEYFRAME_DIFFERS,
) = range(len(COUNTERS))

NONE, SYNCED, RESYNCING, STALE = 0, 1, 2, 3
QUOTE, GAP_START, GAP_END = 0, 1, 2
# A snapshot without a time awaits the next l2update.
NOTHING, LOADED, REFUSED = 0, 1, 2

# Columns of a row's (quote's) integers.
R_SESSION, R_N, R_K, R_TRIGGER, R_TIME_US, R_T, R_CREATED, R_CAUSE = range(8)
Q_SESSION, Q_N, Q_K, Q_KIND, Q_T, Q_CREATED, Q_CAUSE = range(7)

ROW_MARGIN = 80
"""Free rows a message may need: a grid row for each second of a silence that is no gap, and its own."""
QUOTE_MARGIN = 8
TILE = 16
"""Rows gathered before they go to their columns, a power of two: 146 columns lie on 146 pages, and so many rows share
the trip; twice as many would not fit the first-level cache."""


@inner
def _quote_row(st, q_int, q_num, nq, kind, t, e, created):
    s = st.s[0]
    q_int[Q_SESSION, nq] = e.session
    q_int[Q_N, nq] = e.n
    q_int[Q_K, nq] = e.k
    q_int[Q_KIND, nq] = kind
    q_int[Q_T, nq] = t
    q_int[Q_CREATED, nq] = created
    q_int[Q_CAUSE, nq] = e.n
    if kind == QUOTE:
        q_num[0, nq] = s.bid
        q_num[1, nq] = s.ask
        q_num[2, nq] = s.bid_size
        q_num[3, nq] = s.ask_size
        st.counts[C_QUOTES] += 1
    else:
        for j in range(4):
            q_num[j, nq] = math.nan
    return nq + 1


@inlined
def _flush(tile, r_num, first, count):
    """Copy rows first…first+count−1, which lie in the tile, to their columns."""
    for f in range(tile.shape[0]):
        for i in range(np.uint64(count)):
            r_num[f, np.uint64(first) + i] = tile[f, slot(first, tile[f]) + i]


@inlined
def _row(st, t, n, k, trigger, created, cause, session, wanted, r_int, r_num, tile, nr):
    s = st.s[0]
    at = slot(nr, tile[0])
    if at == 0:
        tile[:] = math.nan
    fill_row(st, t, trigger == 1, wanted, tile, at)
    if at == TILE - 1:
        _flush(tile, r_num, nr + 1 - TILE, TILE)
    time_us = max(t // 1000, s.row_time_us + 1)
    s.row_time_us = time_us
    r_int[R_SESSION, nr] = session
    r_int[R_N, nr] = n
    r_int[R_K, nr] = k
    r_int[R_TRIGGER, nr] = trigger
    r_int[R_TIME_US, nr] = time_us
    r_int[R_T, nr] = t
    r_int[R_CREATED, nr] = created
    r_int[R_CAUSE, nr] = cause
    return nr + 1


@inner
def _same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@inner
def _open_gap(st, t, e, created, q_int, q_num, nq):
    s = st.s[0]
    s.gap_open = 1
    s.gap_start = t
    if s.book_state == SYNCED:
        s.book_state = RESYNCING
    st.counts[C_GAPS] += 1
    return _quote_row(st, q_int, q_num, nq, GAP_START, t, e, created)


@inner
def _close_gap(st, t, e, created, q_int, q_num, nq):
    s = st.s[0]
    s.gap_open = 0
    s.gap_end = t
    s.gap_length = t - s.gap_start
    s.cover_start = t
    return _quote_row(st, q_int, q_num, nq, GAP_END, t, e, created)


@inner
def _crossed(e, levels):
    """Tell whether a snapshot's best bid is at or above its best ask."""
    high = -math.inf
    low = math.inf
    for i in range(e.lo, e.hi):
        if levels[i].size > 0.0:
            if levels[i].side == BIDS:
                high = max(high, levels[i].price)
            else:
                low = min(low, levels[i].price)
    return high >= low


@inner
def _load_snapshot(st, e, levels):
    """Replace the book by a snapshot."""
    clear_book(st.blocks)
    for i in range(e.lo, e.hi):
        if levels[i].size > 0.0:
            set_level(st.levels, st.first, st.blocks, levels[i].side, levels[i].price, levels[i].size)


@inner
def _choose_quotes(st, e, refused):
    """Fix the product's quote source at its first quote-bearing message of the session; True where it changes later.

    Acknowledgements come one by one: a snapshot that takes effect proves that level2 is subscribed after all.
    """
    s = st.s[0]
    if s.quote_source == OPEN:
        by_book = (s.subscribed >= 0 and s.subscribed & SUB_BOOK != 0) or e.kind != TICKER
        s.quote_source = BOOK if by_book else TICKERS
    elif s.quote_source == TICKERS and not refused:
        loaded = e.kind == BOOK_UPDATE and s.book_pending == LOADED
        if loaded or (e.kind == BOOK_SNAPSHOT and e.t_ns >= 0):
            s.quote_source = BOOK
            return True
    return False


@inner
def _choose_trades(st, e):
    """Fix the product's trade source at its first trade-bearing message of the session."""
    s = st.s[0]
    if s.trade_source == OPEN:
        by_match = (s.subscribed >= 0 and s.subscribed & SUB_TRADES != 0) or e.kind != TICKER
        s.trade_source = MATCHES if by_match else TICKERS


@inner
def _shows_lost_trades(st, e):
    """Check trade-id continuity and remember the id."""
    s = st.s[0]
    if e.trade_id < 0:
        return False
    if e.kind == TICKER:
        if not e.size >= 0.0:
            return False
        _choose_trades(st, e)
        if s.trade_source != TICKERS:
            return False
    elif e.kind == TRADE or e.kind == LAST_TRADE:
        _choose_trades(st, e)
        if s.trade_source != MATCHES:
            return False
    elif e.kind != HEARTBEAT or s.trade_source != MATCHES:
        return False
    lost = e.kind != LAST_TRADE and s.trade_id >= 0 and e.trade_id > s.trade_id + 1
    if e.kind == HEARTBEAT:
        lost = s.trade_id >= 0 and e.trade_id > s.trade_id
    s.trade_id = e.trade_id if e.kind == LAST_TRADE else max(s.trade_id, e.trade_id)
    return lost


@inner
def _begin_session(st, session):
    """Forget what holds for one connection only; its first timed message will tell the gap."""
    s = st.s[0]
    s.connection = session
    s.fresh = 1
    s.had_book = 1 if s.quote_source == BOOK and s.book_state != NONE else 0
    if s.book_state == SYNCED:
        s.book_state = RESYNCING
    s.book_pending = 0
    s.alone = 0
    s.told = 0
    s.subscribed = -1
    s.heartbeats = 0
    s.quote_source = OPEN
    s.trade_source = OPEN
    s.trade_id = -1
    s.lost = 0


@inner
def _same_top(st, e, levels):
    """Compare the book's top, and the depth of its ten best levels, with those of a keyframe."""
    for side in range(2):
        first = -1
        near = 0.0
        n = 0
        for i in range(e.lo, e.hi):
            if levels[i].side == side:
                if first < 0:
                    first = i
                if n < TOP:
                    near += levels[i].size
                    n += 1
        price, size = best(st.levels, st.blocks, side)
        if first < 0:
            if price > 0.0:
                return False
        elif price != levels[first].price or size != levels[first].size:
            return False
        elif depth(st.levels, st.blocks, side, TOP) != near:
            return False
    return True


@inner
def _obey_record(st, e, levels):
    """Obey the ingestor; see ``docs/architecture.md``, "The raw log"."""
    s = st.s[0]
    if e.kind == SESSION:
        s.told = 1
        s.subscribed = e.flags
    elif e.kind == STATUS:
        if s.told == 0:
            # The log was entered in mid-session: what was taken for the source by the first message may be wrong.
            s.trade_source = MATCHES if e.flags & SUB_TRADES != 0 else OPEN
            if e.flags & SUB_BOOK == 0 and s.quote_source == OPEN:
                s.quote_source = TICKERS
            s.trade_id = e.trade_id
        s.told = 1
        s.subscribed = e.flags
    elif e.kind == GAP:
        s.lost = 2
    elif e.kind == BOOK_NOTE:
        if s.book_state == RESYNCING or s.book_state == STALE:
            s.book_state = e.flags
    elif s.book_state == SYNCED:
        if s.quote_source == BOOK and s.book_pending == NOTHING and not _same_top(st, e, levels):
            st.counts[C_KEYFRAME_DIFFERS] += 1
    elif s.book_state == NONE and s.book_pending == NOTHING and s.subscribed >= 0 and s.subscribed & SUB_BOOK != 0:
        # As a snapshot without a time: it takes effect at the next update.
        _choose_quotes(st, e, False)
        s.book_pending = LOADED
        _load_snapshot(st, e, levels)


@inner
def _without_time(st, e, levels):
    """Obey what moves no clock: subscriptions, trade continuity, a loss to be told later, a snapshot without a time."""
    s = st.s[0]
    if e.kind >= SESSION:
        _obey_record(st, e, levels)
    elif e.kind == SUBSCRIBED:
        if s.told == 0:
            s.subscribed = e.flags
    elif e.kind == SEQUENCE_LOSS:
        s.lost = 1
    elif e.kind == LAST_TRADE:
        _shows_lost_trades(st, e)
    elif e.kind == BOOK_SNAPSHOT:
        refused = _crossed(e, levels)
        _choose_quotes(st, e, refused)
        s.book_pending = REFUSED if refused else LOADED
        if not refused:
            _load_snapshot(st, e, levels)


@entry
def run(st, events, levels, first, every_ns, thin, wanted, r_int, r_num, tile, q_int, q_num, nr, nq):
    """Take events from ``first`` on until they end or the output is nearly full.

    Parameters
    ----------
    st
        State of the product, changed in place.
    events
        EVENT[n] of one product in log order.
    levels
        LEVEL[m] that the events point into.
    first
        Index of the first event to take.
    every_ns
        Grid step in ns; 0 for none.
    thin
        Emit every ``thin``-th ticker row.
    wanted
        bool[windows].
    r_int, r_num
        int64[8, rows] and float64[146, rows] of rows.
    tile
        float64[146, TILE], kept between calls on the same output.
    q_int, q_num
        int64[7, rows] and float64[4, rows] of quotes.
    nr, nq
        Rows already there.

    Returns
    -------
    tuple of int
        Index of the next event, rows, quotes.
    """
    s = st.s[0]
    i = first
    while i < len(events):
        if nr + ROW_MARGIN > r_int.shape[1] or nq + QUOTE_MARGIN > q_int.shape[1]:
            break
        e = events[i]
        i += 1
        if e.session != s.connection:
            _begin_session(st, e.session)
        if e.t_ns < 0:
            _without_time(st, e, levels)
            continue

        # Does it show a gap?
        was = s.watermark
        t = e.t_ns
        late = False
        reconnected = s.fresh == 1
        had_book = s.had_book == 1 if reconnected else s.quote_source == BOOK and s.book_state == SYNCED
        s.fresh = 0
        alone = s.alone == 1
        s.alone = 1 if reconnected or s.started == 0 else 0
        if s.started == 1 and t < was:
            late = was - t > GRACE_NS
            st.counts[C_LATE if late else C_REORDERED] += 1
            t = was
        created = e.recv_ns if e.recv_ns >= 0 else t
        refused = e.kind == BOOK_SNAPSHOT and _crossed(e, levels)
        lost_trades = _shows_lost_trades(st, e)
        changed = False
        if e.kind == TICKER or e.kind == BOOK_UPDATE or e.kind == BOOK_SNAPSHOT:
            changed = _choose_quotes(st, e, refused)
        gap = False
        if s.started == 0:
            s.started = 1
            s.cover_start = t
            was = t
            if every_ns > 0:
                s.next_grid = -(-t // every_ns) * every_ns
        else:
            beats = s.heartbeats == 1 or (s.subscribed >= 0 and s.subscribed & SUB_HEARTBEAT != 0)
            silent = t - was > (SILENCE_HEARTBEAT_NS if beats else SILENCE_NS)
            if silent and alone and not reconnected:
                # A subscription begins with the last ticker there was, however old: nothing was missed since.
                silent = False
                if s.gap_open == 0:
                    s.cover_start = t
                    was = t
                    if every_ns > 0:
                        s.next_grid = -(-t // every_ns) * every_ns
            gap = reconnected or s.lost > 0 or changed
            if s.told == 0:
                gap = gap or silent or lost_trades
            if gap:
                if reconnected:
                    st.counts[C_SESSION] += 1
                elif s.lost == 2:
                    st.counts[C_RECORDED] += 1
                elif silent and s.told == 0:
                    st.counts[C_SILENCE] += 1
                elif lost_trades and s.told == 0:
                    st.counts[C_TRADES] += 1
                elif changed:
                    st.counts[C_SOURCE] += 1
                else:
                    st.counts[C_SEQUENCE] += 1
        s.lost = 0
        if e.kind == HEARTBEAT:
            s.heartbeats = 1

        # Which seconds does it pass? Inside a gap none, but the watermark's own second lies before it.
        if every_ns > 0:
            limit = min(t, was + 1) if gap else t
            while s.next_grid < limit and s.gap_open == 0:
                s.grid_k -= 1
                nr = _row(st, s.next_grid, s.n, s.grid_k, 1, s.recv, e.n, s.session, wanted, r_int, r_num, tile, nr)
                st.counts[C_GRID_ROWS] += 1
                s.next_grid += every_ns
            if s.next_grid < t:
                s.next_grid = -(-t // every_ns) * every_ns
        if gap and s.gap_open == 0:
            nq = _open_gap(st, was, e, created, q_int, q_num, nq)
            if not (had_book or changed):
                nq = _close_gap(st, t, e, created, q_int, q_num, nq)

        # The clock.
        s.watermark = t
        s.session = e.session
        s.n = e.n
        s.recv = created
        s.grid_k = 0

        # Quote and book sample. An update after a snapshot without a time gives two: the snapshot's, then its own.
        is_book = e.kind == BOOK_UPDATE or e.kind == BOOK_SNAPSHOT
        is_quote = (e.kind == TICKER and s.quote_source == TICKERS) or (is_book and s.quote_source == BOOK)
        if is_book and not is_quote:
            st.counts[C_IGNORED] += 1
        if is_quote and e.kind == TICKER and s.gap_open == 1:
            nq = _close_gap(st, t, e, created, q_int, q_num, nq)
            s.book_state = NONE
        for part in range(2):
            if not is_quote or (part == 0 and not (e.kind == BOOK_UPDATE and s.book_pending != NOTHING)):
                continue
            bid = e.bid
            ask = e.ask
            bid_size = e.bid_size
            ask_size = e.ask_size
            bid_l10 = 0.0
            ask_l10 = 0.0
            if is_book:
                if part == 0 or e.kind == BOOK_SNAPSHOT:
                    if refused if part == 1 else s.book_pending == REFUSED:
                        st.counts[C_BAD_SNAPSHOT] += 1
                        if s.book_state == SYNCED and s.gap_open == 0:
                            nq = _open_gap(st, t, e, created, q_int, q_num, nq)
                        s.book_state = RESYNCING
                        s.book_pending = NOTHING
                        continue
                    if part == 1:
                        _load_snapshot(st, e, levels)
                    s.book_pending = NOTHING
                    s.book_state = SYNCED
                    if s.gap_open == 1:
                        nq = _close_gap(st, t, e, created, q_int, q_num, nq)
                elif s.book_state != SYNCED:
                    st.counts[C_IGNORED] += 1
                    continue
                else:
                    for j in range(e.lo, e.hi):
                        level = levels[j]
                        known = set_level(st.levels, st.first, st.blocks, level.side, level.price, level.size)
                        st.counts[C_UNKNOWN] += 1 - known
                bid, bid_size = best(st.levels, st.blocks, BIDS)
                ask, ask_size = best(st.levels, st.blocks, ASKS)
                bid_l10 = depth(st.levels, st.blocks, BIDS, TOP)
                ask_l10 = depth(st.levels, st.blocks, ASKS, TOP)
            elif late:
                continue
            if not (bid > 0.0 and ask > 0.0):
                st.counts[C_ONE_SIDED] += 1
            elif bid >= ask:
                st.counts[C_CROSSED_BOOK if is_book else C_CROSSED] += 1
                if is_book:
                    nq = _open_gap(st, t, e, created, q_int, q_num, nq)
            else:
                price_changed = s.mid_valid == 0 or bid != s.bid or ask != s.ask
                if price_changed or not (_same(bid_size, s.bid_size) and _same(ask_size, s.ask_size)):
                    s.bid = bid
                    s.ask = ask
                    s.bid_size = bid_size
                    s.ask_size = ask_size
                    s.mid_valid = 1
                    if price_changed:
                        mid = 0.5 * (bid + ask)
                        enter_mid(s, st.mid_t, st.mid_v, st.acc, st.index, t, mid, (ask - bid) / mid)
                    nq = _quote_row(st, q_int, q_num, nq, QUOTE, t, e, created)
                if bid_size > 0.0 and ask_size > 0.0:
                    enter_sample(
                        s, st.sample_t, st.sample_v, st.acc, st.index, t, bid, ask, bid_size, ask_size, bid_l10, ask_l10
                    )
        if late:
            continue

        # Trade, then ticker, then its row.
        by_ticker = e.kind == TICKER and s.trade_source == TICKERS and e.trade_id >= 0 and e.size >= 0.0
        if by_ticker or (e.kind == TRADE and s.trade_source == MATCHES):
            enter_trade(s, st.trade_t, st.trade_v, st.acc, st.index, t, e.size, e.side)
        if e.kind == TICKER:
            enter_tick(s, st.tick_t, st.tick_v, st.acc, st.index, st.queue, st.front, t, e.price)
            s.tickers += 1
            made = s.tickers % thin == 0
            if made:
                nr = _row(st, t, e.n, e.k, 0, s.recv, e.n, e.session, wanted, r_int, r_num, tile, nr)
                st.counts[C_TICKER_ROWS] += 1
            keep_lag(st, made, wanted, tile, slot(nr - 1, tile[0]))
    _flush(tile, r_num, nr - nr % TILE, nr % TILE)
    return i, nr, nq
