"""The four series that windows hold: how an entry comes in and how the oldest leave.

::

          tail[900]        tail[60]  tail[30]      head
             |                |         |           |
    ---------●--●---●---●-----●---●-----●---●----●--   time →
             └────────────── 900 s ─────────────────┤ t
                              └─────── 60 s ────────┤
                                        └── 30 s ───┤

One ring serves all windows, each with its own tail. Entries are numbered from the start of the stream (absolute
index); entry i sits at ``i & (capacity − 1)``. An entry leaves window W at t when its time is ≤ t − W. A return
(interval, flow) at entry i has its other end at i − 1, so it leaves together with entry i − 1; a bipower term
reaches back to i − 2.
"""

from __future__ import annotations

import numpy as np

from feature_repo.contract import WINDOWS
from ingestion.kernel.compiled import inlined, inner
from ingestion.kernel.state import (
    ASK_L10,
    ASK_SIZE,
    BID_L10,
    BID_SIZE,
    FLOW,
    G_INTERVAL,
    G_MICRO,
    G_MID,
    G_PRICE,
    G_RETURN,
    G_SPREAD,
    HEAD,
    INTERVAL,
    M_BP,
    M_R1,
    M_S1,
    MICRO,
    MID,
    MID_RETURN,
    N_SUMS,
    N_WINDOWS,
    PEAK,
    PRICE,
    REF,
    RETURN,
    S_ASK,
    S_ASK10,
    S_BID,
    S_BID10,
    S_FLOW,
    S_M1,
    SAMPLE,
    SHIFT,
    SIGNED,
    SIZE,
    SPREAD,
    T_D1,
    T_P1,
    T_PX,
    T_R1,
    TICK,
    TRADE,
)
from ingestion.kernel.sums import DWARFED, FAR_FROM_SHIFT, HI, LO, add, clear, value

WINDOW_NS = tuple(w * 1_000_000_000 for w in WINDOWS)


@inlined
def slot(i, ring):
    """Return where entry i sits in a ring; unsigned, or each access would first ask whether it counts from the end."""
    return np.uint64(i) & np.uint64(len(ring) - 1)


@inner
def _clear_all(acc, series, w):
    for j in range(N_SUMS):
        clear(acc, series, w, j)


@inlined
def _add2(acc, series, w, first, group, x, sign):
    """Add (sign = 1) or take (−1) the first two powers of x − K."""
    d = x - acc[series, w, REF + group, SHIFT]
    add(acc, series, w, first, sign * d)
    add(acc, series, w, first + 1, sign * (d * d))
    if sign > 0.0 and acc[series, w, first + 1, HI] > acc[series, w, REF + group, PEAK]:
        acc[series, w, REF + group, PEAK] = acc[series, w, first + 1, HI]


@inlined
def _add4(acc, series, w, first, group, x, sign):
    """Add or take the first four powers of x − K."""
    d = x - acc[series, w, REF + group, SHIFT]
    d2 = d * d
    add(acc, series, w, first, sign * d)
    add(acc, series, w, first + 1, sign * d2)
    add(acc, series, w, first + 2, sign * (d2 * d))
    add(acc, series, w, first + 3, sign * (d2 * d2))
    if sign > 0.0 and acc[series, w, first + 3, HI] > acc[series, w, REF + group, PEAK]:
        acc[series, w, REF + group, PEAK] = acc[series, w, first + 3, HI]


@inner
def _rebuild(v, acc, index, series, w, first, powers, group, column, lo):
    """Make the moments of entries lo…head−1 anew about their mean."""
    mean = 0.0
    for i in range(lo, index[series, HEAD]):
        mean += (v[slot(i, v), column] - mean) / (i - lo + 1)
    for j in range(powers):
        clear(acc, series, w, first + j)
    acc[series, w, REF + group, SHIFT] = mean
    acc[series, w, REF + group, PEAK] = 0.0
    for i in range(lo, index[series, HEAD]):
        if powers == 4:
            _add4(acc, series, w, first, group, v[slot(i, v), column], 1.0)
        else:
            _add2(acc, series, w, first, group, v[slot(i, v), column], 1.0)


@inlined
def settle(v, acc, index, series, w, first, powers, group, column, lo):
    """Rebuild the moments of entries lo…head−1 where they are badly conditioned; see :mod:`ingestion.kernel.sums`.

    Returns True where it did.
    """
    n = index[series, HEAD] - lo
    m = value(acc, series, w, first) / n
    second = value(acc, series, w, first + 1) / n
    top = value(acc, series, w, first + powers - 1)
    if m * m <= FAR_FROM_SHIFT * (second - m * m) and top >= DWARFED * acc[series, w, REF + group, PEAK]:
        return False
    _rebuild(v, acc, index, series, w, first, powers, group, column, lo)
    return True


@inlined
def settle_price(v, acc, index, w):
    """Rebuild the price moments where they are badly conditioned, and with them the trend, which shares their shift."""
    lo = index[TICK, w]
    if settle(v, acc, index, TICK, w, T_P1, 2, G_PRICE, PRICE, lo):
        clear(acc, TICK, w, T_PX)
        shift = acc[TICK, w, REF + G_PRICE, SHIFT]
        for i in range(lo, index[TICK, HEAD]):
            add(acc, TICK, w, T_PX, (i - lo) * (v[slot(i, v), PRICE] - shift))


@inlined
def leave_ticks(t, v, acc, index, now):
    """Let the tickers too old at ``now`` leave each window."""
    head = index[TICK, HEAD]
    for w in range(N_WINDOWS):
        limit = now - WINDOW_NS[w]
        tail = index[TICK, w]
        if tail == head or t[slot(tail, t)] > limit:
            continue
        while tail < head and t[slot(tail, t)] <= limit:
            _add2(acc, TICK, w, T_P1, G_PRICE, v[slot(tail, v), PRICE], -1.0)
            # The first entry had index 0, so only the others' indices fall by one: Σ i·d loses the sum that is left.
            add(acc, TICK, w, T_PX, -acc[TICK, w, T_P1, HI])
            add(acc, TICK, w, T_PX, -acc[TICK, w, T_P1, LO])
            tail += 1
            if tail < head:
                _add4(acc, TICK, w, T_R1, G_RETURN, v[slot(tail, v), RETURN], -1.0)
                _add2(acc, TICK, w, T_D1, G_INTERVAL, v[slot(tail, v), INTERVAL], -1.0)
        index[TICK, w] = tail
        if tail == head:
            _clear_all(acc, TICK, w)


@inlined
def enter_tick(s, times, v, acc, index, queue, front, t, price):
    """Let one ticker enter all windows; those that are too old at t leave first."""
    head = index[TICK, HEAD]
    leave_ticks(times, v, acc, index, t)
    ret = np.nan
    interval = np.nan
    if head > 0:
        before = slot(head - 1, v)
        ret = price / s.last_price - 1.0
        interval = (t - s.last_tick) / 1e9
        if price != s.last_price:
            s.price_change = head
        if head == 1 or ret != v[before, RETURN]:
            s.return_change = head
        if head == 1 or interval != v[before, INTERVAL]:
            s.interval_change = head
    s.last_price = price
    s.last_tick = t
    at = slot(head, v)
    times[at] = t
    v[at, PRICE] = price
    v[at, RETURN] = ret
    v[at, INTERVAL] = interval
    for w in range(N_WINDOWS):
        n = head - index[TICK, w]
        if n == 0:
            acc[TICK, w, REF + G_PRICE, SHIFT] = price
        else:
            _add4(acc, TICK, w, T_R1, G_RETURN, ret, 1.0)
            _add2(acc, TICK, w, T_D1, G_INTERVAL, interval, 1.0)
        _add2(acc, TICK, w, T_P1, G_PRICE, price, 1.0)
        add(acc, TICK, w, T_PX, n * (price - acc[TICK, w, REF + G_PRICE, SHIFT]))
    index[TICK, HEAD] = head + 1
    _enter_queues(v, index, queue, front, head, price)


@inlined
def _enter_queues(v, index, queue, front, at, price):
    """Keep the monotone queues: candidates for the minimum (maximum) of any suffix of the ring, oldest first."""
    oldest = index[TICK, N_WINDOWS - 1]
    for which in range(2):
        mine = queue[which]
        lo = front[which, N_WINDOWS - 1]
        hi = front[which, HEAD]
        while lo < hi and mine[slot(lo, mine)] < oldest:
            lo += 1
        while lo < hi:
            last = v[slot(mine[slot(hi - 1, mine)], v), PRICE]
            stays = last < price if which == 0 else last > price
            if stays:
                break
            hi -= 1
        mine[slot(hi, mine)] = at
        for w in range(N_WINDOWS):
            front[which, w] = min(max(front[which, w], lo), hi)
        front[which, HEAD] = hi + 1


@inlined
def first_since(queue, which, front, w, index):
    """Return the first entry >= ``index`` of a monotone queue; what a window has passed is never looked at again."""
    mine = queue[which]
    at = front[which, w]
    while mine[slot(at, mine)] < index:
        at += 1
    front[which, w] = at
    return mine[slot(at, mine)]


@inlined
def _bipower(v, i):
    """Return |r_i||r_(i−1)|."""
    return abs(v[slot(i, v), MID_RETURN]) * abs(v[slot(i - 1, v), MID_RETURN])


@inlined
def leave_mids(t, v, acc, index, now):
    """Let the mid changes too old at ``now`` leave each window."""
    head = index[MID, HEAD]
    for w in range(N_WINDOWS):
        limit = now - WINDOW_NS[w]
        tail = index[MID, w]
        if tail == head or t[slot(tail, t)] > limit:
            continue
        while tail < head and t[slot(tail, t)] <= limit:
            _add2(acc, MID, w, M_S1, G_SPREAD, v[slot(tail, v), SPREAD], -1.0)
            tail += 1
            if tail < head:
                _add2(acc, MID, w, M_R1, G_MID, v[slot(tail, v), MID_RETURN], -1.0)
            if tail + 1 < head:
                add(acc, MID, w, M_BP, -_bipower(v, tail + 1))
        index[MID, w] = tail
        if tail == head:
            _clear_all(acc, MID, w)


@inlined
def enter_mid(s, times, v, acc, index, t, price, spread):
    """Let one change of a best price enter all windows; ``price`` is the new mid."""
    head = index[MID, HEAD]
    leave_mids(times, v, acc, index, t)
    ret = np.nan
    if head > 0:
        before = slot(head - 1, v)
        ret = np.log(price / s.mid)
        if head == 1 or ret != v[before, MID_RETURN]:
            s.mid_return_change = head
        if spread != s.last_spread:
            s.spread_change = head
    s.mid = price
    s.last_spread = spread
    at = slot(head, v)
    times[at] = t
    v[at, MID_RETURN] = ret
    v[at, SPREAD] = spread
    for w in range(N_WINDOWS):
        n = head - index[MID, w]
        if n == 0:
            acc[MID, w, REF + G_SPREAD, SHIFT] = spread
        else:
            _add2(acc, MID, w, M_R1, G_MID, ret, 1.0)
        if n > 1:
            add(acc, MID, w, M_BP, _bipower(v, head))
        _add2(acc, MID, w, M_S1, G_SPREAD, spread, 1.0)
    index[MID, HEAD] = head + 1


@inlined
def leave_trades(t, v, acc, index, now):
    """Let the trades too old at ``now`` leave each window."""
    head = index[TRADE, HEAD]
    for w in range(N_WINDOWS):
        limit = now - WINDOW_NS[w]
        tail = index[TRADE, w]
        if tail == head or t[slot(tail, t)] > limit:
            continue
        while tail < head and t[slot(tail, t)] <= limit:
            add(acc, TRADE, w, SIZE, -v[slot(tail, v), SIZE])
            add(acc, TRADE, w, SIGNED, -v[slot(tail, v), SIGNED])
            tail += 1
        index[TRADE, w] = tail
        if tail == head:
            _clear_all(acc, TRADE, w)


@inlined
def enter_trade(s, times, v, acc, index, t, size, side):
    """Let one trade enter all windows; ``side`` is +1 where the taker bought, −1 where he sold."""
    head = index[TRADE, HEAD]
    at = slot(head, v)
    leave_trades(times, v, acc, index, t)
    times[at] = t
    v[at, SIZE] = size
    v[at, SIGNED] = size * side
    for w in range(N_WINDOWS):
        add(acc, TRADE, w, SIZE, size)
        add(acc, TRADE, w, SIGNED, size * side)
    index[TRADE, HEAD] = head + 1


@inlined
def leave_samples(t, v, acc, index, now):
    """Let the book samples too old at ``now`` leave each window."""
    head = index[SAMPLE, HEAD]
    for w in range(N_WINDOWS):
        limit = now - WINDOW_NS[w]
        tail = index[SAMPLE, w]
        if tail == head or t[slot(tail, t)] > limit:
            continue
        while tail < head and t[slot(tail, t)] <= limit:
            at = slot(tail, v)
            add(acc, SAMPLE, w, S_BID, -v[at, BID_SIZE])
            add(acc, SAMPLE, w, S_ASK, -v[at, ASK_SIZE])
            if v[at, BID_L10] != 0.0 or v[at, ASK_L10] != 0.0:
                add(acc, SAMPLE, w, S_BID10, -v[at, BID_L10])
                add(acc, SAMPLE, w, S_ASK10, -v[at, ASK_L10])
            _add2(acc, SAMPLE, w, S_M1, G_MICRO, v[at, MICRO], -1.0)
            tail += 1
            if tail < head:
                add(acc, SAMPLE, w, S_FLOW, -v[slot(tail, v), FLOW])
        index[SAMPLE, w] = tail
        if tail == head:
            _clear_all(acc, SAMPLE, w)


@inlined
def enter_sample(s, times, v, acc, index, t, bid, ask, bid_size, ask_size, bid_l10, ask_l10):
    """Let one book sample enter all windows; the order-flow term follows Cont, Kukanov and Stoikov (2014)."""
    head = index[SAMPLE, HEAD]
    leave_samples(times, v, acc, index, t)
    micro = (ask * bid_size + bid * ask_size) / (bid_size + ask_size)
    flow = np.nan
    if head > 0:
        flow = 0.0
        if bid >= s.s_bid:
            flow += bid_size
        if bid <= s.s_bid:
            flow -= s.s_bid_size
        if ask <= s.s_ask:
            flow -= ask_size
        if ask >= s.s_ask:
            flow += s.s_ask_size
        if micro != v[slot(head - 1, v), MICRO]:
            s.micro_change = head
    s.s_bid = bid
    s.s_ask = ask
    s.s_bid_size = bid_size
    s.s_ask_size = ask_size
    at = slot(head, v)
    times[at] = t
    v[at, BID_SIZE] = bid_size
    v[at, ASK_SIZE] = ask_size
    v[at, BID_L10] = bid_l10
    v[at, ASK_L10] = ask_l10
    v[at, MICRO] = micro
    v[at, FLOW] = flow
    for w in range(N_WINDOWS):
        if head == index[SAMPLE, w]:
            acc[SAMPLE, w, REF + G_MICRO, SHIFT] = micro
        else:
            add(acc, SAMPLE, w, S_FLOW, flow)
        add(acc, SAMPLE, w, S_BID, bid_size)
        add(acc, SAMPLE, w, S_ASK, ask_size)
        if bid_l10 != 0.0 or ask_l10 != 0.0:
            add(acc, SAMPLE, w, S_BID10, bid_l10)
            add(acc, SAMPLE, w, S_ASK10, ask_l10)
        _add2(acc, SAMPLE, w, S_M1, G_MICRO, micro, 1.0)
    index[SAMPLE, HEAD] = head + 1
