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
from ingestion.kernel.compiled import inner
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
    INTERVAL,
    M_BP,
    M_R1,
    M_S1,
    MICRO,
    MID_RETURN,
    N_WINDOWS,
    PEAK,
    PRICE,
    RETURN,
    S_ASK,
    S_ASK10,
    S_BID,
    S_BID10,
    S_FLOW,
    S_M1,
    SHIFT,
    SIGNED,
    SIZE,
    SPREAD,
    T_D1,
    T_P1,
    T_PX,
    T_R1,
)
from ingestion.kernel.sums import DWARFED, FAR_FROM_SHIFT, HI, LO, add, clear, value

WINDOW_NS = tuple(w * 1_000_000_000 for w in WINDOWS)


@inner
def _clear_all(series, w):
    for j in range(series.acc.shape[1]):
        clear(series.acc, w, j)
    for g in range(series.ref.shape[1]):
        series.ref[w, g, SHIFT] = 0.0
        series.ref[w, g, PEAK] = 0.0


@inner
def _add2(series, w, first, group, x, sign):
    """Add (sign = 1) or take (−1) the first two powers of x − K."""
    d = x - series.ref[w, group, SHIFT]
    add(series.acc, w, first, sign * d)
    add(series.acc, w, first + 1, sign * (d * d))
    if sign > 0.0 and series.acc[w, first + 1, HI] > series.ref[w, group, PEAK]:
        series.ref[w, group, PEAK] = series.acc[w, first + 1, HI]


@inner
def _add4(series, w, first, group, x, sign):
    """Add or take the first four powers of x − K."""
    d = x - series.ref[w, group, SHIFT]
    d2 = d * d
    add(series.acc, w, first, sign * d)
    add(series.acc, w, first + 1, sign * d2)
    add(series.acc, w, first + 2, sign * (d2 * d))
    add(series.acc, w, first + 3, sign * (d2 * d2))
    if sign > 0.0 and series.acc[w, first + 3, HI] > series.ref[w, group, PEAK]:
        series.ref[w, group, PEAK] = series.acc[w, first + 3, HI]


@inner
def _rebuild(series, w, first, powers, group, column, lo):
    """Make the moment sums of entries lo…head−1 anew about their mean."""
    mask = len(series.t) - 1
    head = series.head[0]
    mean = 0.0
    for i in range(lo, head):
        mean += (series.v[i & mask, column] - mean) / (i - lo + 1)
    for j in range(powers):
        clear(series.acc, w, first + j)
    series.ref[w, group, SHIFT] = mean
    series.ref[w, group, PEAK] = 0.0
    for i in range(lo, head):
        if powers == 4:
            _add4(series, w, first, group, series.v[i & mask, column], 1.0)
        else:
            _add2(series, w, first, group, series.v[i & mask, column], 1.0)


@inner
def settle(series, w, first, powers, group, column, lo):
    """Rebuild the moments of entries lo…head−1 where they are badly conditioned; see :mod:`ingestion.kernel.sums`."""
    n = series.head[0] - lo
    m = value(series.acc, w, first) / n
    second = value(series.acc, w, first + 1) / n
    top = value(series.acc, w, first + powers - 1)
    var = second - m * m
    if m * m > FAR_FROM_SHIFT * var or top < DWARFED * series.ref[w, group, PEAK]:
        _rebuild(series, w, first, powers, group, column, lo)


@inner
def _trend_rebuild(series, w, lo):
    """Make Σ index·(p − K) anew; the index counts from the window's start."""
    mask = len(series.t) - 1
    shift = series.ref[w, G_PRICE, SHIFT]
    clear(series.acc, w, T_PX)
    for i in range(lo, series.head[0]):
        add(series.acc, w, T_PX, (i - lo) * (series.v[i & mask, PRICE] - shift))


@inner
def settle_price(tick, w):
    """Rebuild the price moments, and the trend that shares their shift, where they are badly conditioned."""
    shift = tick.ref[w, G_PRICE, SHIFT]
    peak = tick.ref[w, G_PRICE, PEAK]
    settle(tick, w, T_P1, 2, G_PRICE, PRICE, tick.tail[w])
    if tick.ref[w, G_PRICE, SHIFT] != shift or tick.ref[w, G_PRICE, PEAK] != peak:
        _trend_rebuild(tick, w, tick.tail[w])


@inner
def leave_ticks(tick, w, limit):
    """Let the tickers with time ≤ ``limit`` leave window ``w``."""
    mask = len(tick.t) - 1
    head = tick.head[0]
    tail = tick.tail[w]
    if tail == head or tick.t[tail & mask] > limit:
        return
    while tail < head and tick.t[tail & mask] <= limit:
        _add2(tick, w, T_P1, G_PRICE, tick.v[tail & mask, PRICE], -1.0)
        # The first entry had index 0, so only the others' indices fall by one: Σ i·d loses the sum that is left.
        add(tick.acc, w, T_PX, -tick.acc[w, T_P1, HI])
        add(tick.acc, w, T_PX, -tick.acc[w, T_P1, LO])
        tail += 1
        if tail < head:
            _add4(tick, w, T_R1, G_RETURN, tick.v[tail & mask, RETURN], -1.0)
            _add2(tick, w, T_D1, G_INTERVAL, tick.v[tail & mask, INTERVAL], -1.0)
    tick.tail[w] = tail
    if tail == head:
        _clear_all(tick, w)


@inner
def enter_tick(st, t, price):
    """Let one ticker enter all windows; those that are too old at t leave first."""
    s = st.s[0]
    tick = st.tick
    mask = len(tick.t) - 1
    head = tick.head[0]
    for w in range(N_WINDOWS):
        leave_ticks(tick, w, t - WINDOW_NS[w])
    ret = np.nan
    interval = np.nan
    if head > 0:
        before = (head - 1) & mask
        ret = price / s.last_price - 1.0
        interval = (t - s.last_tick) / 1e9
        if price != s.last_price:
            s.price_change = head
        if head == 1 or ret != tick.v[before, RETURN]:
            s.return_change = head
        if head == 1 or interval != tick.v[before, INTERVAL]:
            s.interval_change = head
    s.last_price = price
    s.last_tick = t
    at = head & mask
    tick.t[at] = t
    tick.v[at, PRICE] = price
    tick.v[at, RETURN] = ret
    tick.v[at, INTERVAL] = interval
    for w in range(N_WINDOWS):
        n = head - tick.tail[w]
        if n == 0:
            tick.ref[w, G_PRICE, SHIFT] = price
        else:
            _add4(tick, w, T_R1, G_RETURN, ret, 1.0)
            _add2(tick, w, T_D1, G_INTERVAL, interval, 1.0)
        _add2(tick, w, T_P1, G_PRICE, price, 1.0)
        add(tick.acc, w, T_PX, n * (price - tick.ref[w, G_PRICE, SHIFT]))
    tick.head[0] = head + 1
    _enter_queues(st, head, price)


@inner
def _enter_queues(st, index, price):
    """Keep the monotone queues: candidates for the minimum (maximum) of any suffix of the ring, oldest first."""
    s = st.s[0]
    mask = len(st.tick.t) - 1
    qmask = len(st.min_queue) - 1
    oldest = st.tick.tail[N_WINDOWS - 1]
    while s.min_lo < s.min_hi and st.min_queue[s.min_lo & qmask] < oldest:
        s.min_lo += 1
    while s.min_lo < s.min_hi and st.tick.v[st.min_queue[(s.min_hi - 1) & qmask] & mask, PRICE] >= price:
        s.min_hi -= 1
    st.min_queue[s.min_hi & qmask] = index
    s.min_hi += 1
    while s.max_lo < s.max_hi and st.max_queue[s.max_lo & qmask] < oldest:
        s.max_lo += 1
    while s.max_lo < s.max_hi and st.tick.v[st.max_queue[(s.max_hi - 1) & qmask] & mask, PRICE] <= price:
        s.max_hi -= 1
    st.max_queue[s.max_hi & qmask] = index
    s.max_hi += 1


@inner
def first_since(queue, lo, hi, index):
    """Return the first entry >= ``index`` of a monotone queue (binary search)."""
    qmask = len(queue) - 1
    while lo < hi:
        mid = (lo + hi) >> 1
        if queue[mid & qmask] < index:
            lo = mid + 1
        else:
            hi = mid
    return queue[lo & qmask]


@inner
def _bipower(mid, i):
    """Return |r_i||r_(i−1)|."""
    mask = len(mid.t) - 1
    return abs(mid.v[i & mask, MID_RETURN]) * abs(mid.v[(i - 1) & mask, MID_RETURN])


@inner
def leave_mids(mid, w, limit):
    """Let the mid changes with time ≤ ``limit`` leave window ``w``."""
    mask = len(mid.t) - 1
    head = mid.head[0]
    tail = mid.tail[w]
    if tail == head or mid.t[tail & mask] > limit:
        return
    while tail < head and mid.t[tail & mask] <= limit:
        _add2(mid, w, M_S1, G_SPREAD, mid.v[tail & mask, SPREAD], -1.0)
        tail += 1
        if tail < head:
            _add2(mid, w, M_R1, G_MID, mid.v[tail & mask, MID_RETURN], -1.0)
        if tail + 1 < head:
            add(mid.acc, w, M_BP, -_bipower(mid, tail + 1))
    mid.tail[w] = tail
    if tail == head:
        _clear_all(mid, w)


@inner
def enter_mid(st, t, price, spread):
    """Let one change of a best price enter all windows; ``price`` is the new mid."""
    s = st.s[0]
    mid = st.mid
    mask = len(mid.t) - 1
    head = mid.head[0]
    for w in range(N_WINDOWS):
        leave_mids(mid, w, t - WINDOW_NS[w])
    ret = np.nan
    if head > 0:
        before = (head - 1) & mask
        ret = np.log(price / s.mid)
        if head == 1 or ret != mid.v[before, MID_RETURN]:
            s.mid_return_change = head
        if spread != s.last_spread:
            s.spread_change = head
    s.mid = price
    s.last_spread = spread
    at = head & mask
    mid.t[at] = t
    mid.v[at, MID_RETURN] = ret
    mid.v[at, SPREAD] = spread
    for w in range(N_WINDOWS):
        n = head - mid.tail[w]
        if n == 0:
            mid.ref[w, G_SPREAD, SHIFT] = spread
        else:
            _add2(mid, w, M_R1, G_MID, ret, 1.0)
        if n > 1:
            add(mid.acc, w, M_BP, _bipower(mid, head))
        _add2(mid, w, M_S1, G_SPREAD, spread, 1.0)
    mid.head[0] = head + 1


@inner
def leave_trades(trade, w, limit):
    """Let the trades with time ≤ ``limit`` leave window ``w``."""
    mask = len(trade.t) - 1
    head = trade.head[0]
    tail = trade.tail[w]
    if tail == head or trade.t[tail & mask] > limit:
        return
    while tail < head and trade.t[tail & mask] <= limit:
        add(trade.acc, w, SIZE, -trade.v[tail & mask, SIZE])
        add(trade.acc, w, SIGNED, -trade.v[tail & mask, SIGNED])
        tail += 1
    trade.tail[w] = tail
    if tail == head:
        _clear_all(trade, w)


@inner
def enter_trade(st, t, size, side):
    """Let one trade enter all windows; ``side`` is +1 where the taker bought, −1 where he sold."""
    trade = st.trade
    head = trade.head[0]
    at = head & (len(trade.t) - 1)
    for w in range(N_WINDOWS):
        leave_trades(trade, w, t - WINDOW_NS[w])
    trade.t[at] = t
    trade.v[at, SIZE] = size
    trade.v[at, SIGNED] = size * side
    for w in range(N_WINDOWS):
        add(trade.acc, w, SIZE, size)
        add(trade.acc, w, SIGNED, size * side)
    trade.head[0] = head + 1


@inner
def leave_samples(sample, w, limit):
    """Let the book samples with time ≤ ``limit`` leave window ``w``."""
    mask = len(sample.t) - 1
    head = sample.head[0]
    tail = sample.tail[w]
    if tail == head or sample.t[tail & mask] > limit:
        return
    while tail < head and sample.t[tail & mask] <= limit:
        at = tail & mask
        add(sample.acc, w, S_BID, -sample.v[at, BID_SIZE])
        add(sample.acc, w, S_ASK, -sample.v[at, ASK_SIZE])
        add(sample.acc, w, S_BID10, -sample.v[at, BID_L10])
        add(sample.acc, w, S_ASK10, -sample.v[at, ASK_L10])
        _add2(sample, w, S_M1, G_MICRO, sample.v[at, MICRO], -1.0)
        tail += 1
        if tail < head:
            add(sample.acc, w, S_FLOW, -sample.v[tail & mask, FLOW])
    sample.tail[w] = tail
    if tail == head:
        _clear_all(sample, w)


@inner
def enter_sample(st, t, bid, ask, bid_size, ask_size, bid_l10, ask_l10):
    """Let one book sample enter all windows; the order-flow term follows Cont, Kukanov and Stoikov (2014)."""
    s = st.s[0]
    sample = st.sample
    mask = len(sample.t) - 1
    head = sample.head[0]
    for w in range(N_WINDOWS):
        leave_samples(sample, w, t - WINDOW_NS[w])
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
        if micro != sample.v[(head - 1) & mask, MICRO]:
            s.micro_change = head
    s.s_bid = bid
    s.s_ask = ask
    s.s_bid_size = bid_size
    s.s_ask_size = ask_size
    at = head & mask
    sample.t[at] = t
    sample.v[at, BID_SIZE] = bid_size
    sample.v[at, ASK_SIZE] = ask_size
    sample.v[at, BID_L10] = bid_l10
    sample.v[at, ASK_L10] = ask_l10
    sample.v[at, MICRO] = micro
    sample.v[at, FLOW] = flow
    for w in range(N_WINDOWS):
        if head == sample.tail[w]:
            sample.ref[w, G_MICRO, SHIFT] = micro
        else:
            add(sample.acc, w, S_FLOW, flow)
        add(sample.acc, w, S_BID, bid_size)
        add(sample.acc, w, S_ASK, ask_size)
        add(sample.acc, w, S_BID10, bid_l10)
        add(sample.acc, w, S_ASK10, ask_l10)
        _add2(sample, w, S_M1, G_MICRO, micro, 1.0)
    sample.head[0] = head + 1
