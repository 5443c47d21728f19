"""One row of features from a product's state: each formula of the contract, once."""

from __future__ import annotations

import math

from feature_repo.contract import COVERAGE_MAX_S, FEATURE_NAMES, PLAIN_STATS, WINDOWED_STATS, WINDOWS
from ingestion.kernel.compiled import inner
from ingestion.kernel.series import (
    first_since,
    leave_mids,
    leave_samples,
    leave_ticks,
    leave_trades,
    settle,
    settle_price,
)
from ingestion.kernel.state import (
    BOOK,
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
    M_R2,
    M_S1,
    M_S2,
    MICRO,
    MID,
    MID_RETURN,
    N_WINDOWS,
    PRICE,
    REF,
    RETURN,
    S_ASK,
    S_ASK10,
    S_BID,
    S_BID10,
    S_FLOW,
    S_M1,
    S_M2,
    SAMPLE,
    SHIFT,
    SIGNED,
    SIZE,
    SPREAD,
    T_D1,
    T_D2,
    T_P1,
    T_P2,
    T_PX,
    T_R1,
    T_R2,
    T_R3,
    T_R4,
    TICK,
    TRADE,
)
from ingestion.kernel.sums import shape, value, variance

_AT = {name: i for i, name in enumerate(WINDOWED_STATS)}
N_STATS = len(WINDOWED_STATS)
N_FEATURES = len(FEATURE_NAMES)
(PRICE_MEAN, PRICE_STD, PRICE_MIN, PRICE_MAX, PRICE_RANGE, MOMENTUM, TREND) = (
    _AT[n] for n in "price_mean price_std price_min price_max price_range price_momentum price_trend".split()
)
(RET_MEAN, RET_STD, RET_SKEW, RET_KURT, VOL_LAG1) = (
    _AT[n] for n in "return_mean return_std return_skew return_kurt volatility_lag1".split()
)
(MID_MEAN, MID_STD, REALIZED, BIPOWER, SPREAD_MEAN, SPREAD_STD) = (
    _AT[n] for n in "mid_return_mean mid_return_std realized_vol bipower_vol spread_mean spread_std".split()
)
(TRADES, VOLUME, TRADE_SIZE, IMBALANCE, INTENSITY) = (
    _AT[n] for n in "trade_count trade_volume avg_trade_size trade_imbalance trade_intensity".split()
)
(GAP_MEAN, GAP_STD, TICK_RATE, N_TICKS) = (
    _AT[n] for n in "avg_tick_interval tick_interval_std tick_rate n_observations".split()
)
(BID_DEPTH, ASK_DEPTH, IMB_L1, IMB_L10, MICRO_MEAN, MICRO_STD, OFI) = (
    _AT[n]
    for n in (
        "ob_bid_depth_L1_mean ob_ask_depth_L1_mean ob_depth_imbalance_L1 ob_depth_imbalance_L10 ob_microprice_mean "
        "ob_microprice_std ob_ofi"
    ).split()
)
_PLAIN_AT = {name: N_STATS * N_WINDOWS + i for i, name in enumerate(PLAIN_STATS)}
(F_MID, F_SPREAD, F_BOOK, F_COVERAGE, F_GAP, F_HOUR, F_MINUTE, F_SIN, F_COS, F_DAY) = (
    _PLAIN_AT[n]
    for n in (
        "mid spread book_state coverage_s feed_gap_s hour_of_day minute_of_hour hour_sin hour_cos day_of_week"
    ).split()
)
_SECONDS = tuple(float(w) for w in WINDOWS)
_DAY_NS = 86_400_000_000_000
_COVERAGE_NS = int(COVERAGE_MAX_S) * 1_000_000_000


@inner
def return_std(s, tick_v, acc, index, w):
    """Return the population standard deviation of window ``w``'s returns; NaN without one."""
    n = index[TICK, HEAD] - index[TICK, w] - 1
    if n < 1:
        return math.nan
    if s.return_change <= index[TICK, w] + 1:
        return 0.0
    settle(tick_v, acc, index, TICK, w, T_R1, 4, G_RETURN, RETURN, index[TICK, w] + 1)
    return math.sqrt(variance(value(acc, TICK, w, T_R1), value(acc, TICK, w, T_R2), n))


@inner
def _ticks(s, tick_t, tick_v, acc, index, queue, wanted, out, row):
    mask = len(tick_v) - 1
    head = index[TICK, HEAD]
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        tail = index[TICK, w]
        n = head - tail
        out[row, base + N_TICKS] = n
        out[row, base + TICK_RATE] = n / _SECONDS[w]
        if n == 0:
            continue
        first = tick_v[tail & mask, PRICE]
        last = s.last_price
        low = tick_v[first_since(queue, 0, s.min_lo, s.min_hi, tail) & mask, PRICE]
        high = tick_v[first_since(queue, 1, s.max_lo, s.max_hi, tail) & mask, PRICE]
        out[row, base + PRICE_MIN] = low
        out[row, base + PRICE_MAX] = high
        out[row, base + PRICE_RANGE] = high - low
        out[row, base + MOMENTUM] = last / first - 1.0
        if s.price_change <= tail:
            out[row, base + PRICE_MEAN] = last
            out[row, base + PRICE_STD] = 0.0
            if n > 1:
                out[row, base + TREND] = 0.0
        else:
            settle_price(tick_v, acc, index, w)
            s1 = value(acc, TICK, w, T_P1)
            mean = acc[TICK, w, REF + G_PRICE, SHIFT] + s1 / n
            out[row, base + PRICE_MEAN] = mean
            out[row, base + PRICE_STD] = math.sqrt(variance(s1, value(acc, TICK, w, T_P2), n))
            m = float(n)
            slope = (value(acc, TICK, w, T_PX) - 0.5 * (m - 1.0) * s1) * 12.0 / (m * (m * m - 1.0))
            out[row, base + TREND] = slope / mean
        if n == 1:
            continue
        m = n - 1
        out[row, base + GAP_MEAN] = (s.last_tick - tick_t[tail & mask]) / 1e9 / m
        if s.interval_change <= tail + 1:
            out[row, base + GAP_STD] = 0.0
        else:
            settle(tick_v, acc, index, TICK, w, T_D1, 2, G_INTERVAL, INTERVAL, tail + 1)
            out[row, base + GAP_STD] = math.sqrt(variance(value(acc, TICK, w, T_D1), value(acc, TICK, w, T_D2), m))
        if s.return_change <= tail + 1:
            out[row, base + RET_MEAN] = tick_v[(head - 1) & mask, RETURN]
            out[row, base + RET_STD] = 0.0
            continue
        out[row, base + RET_STD] = return_std(s, tick_v, acc, index, w)
        s1 = value(acc, TICK, w, T_R1)
        out[row, base + RET_MEAN] = acc[TICK, w, REF + G_RETURN, SHIFT] + s1 / m
        if m >= 3:
            skew, kurt = shape(s1, value(acc, TICK, w, T_R2), value(acc, TICK, w, T_R3), value(acc, TICK, w, T_R4), m)
            out[row, base + RET_SKEW] = skew
            out[row, base + RET_KURT] = kurt


@inner
def _mids(s, mid_v, acc, index, wanted, out, row):
    head = index[MID, HEAD]
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        tail = index[MID, w]
        n = head - tail
        if n == 0:
            continue
        if s.spread_change <= tail:
            out[row, base + SPREAD_MEAN] = s.last_spread
            out[row, base + SPREAD_STD] = 0.0
        else:
            settle(mid_v, acc, index, MID, w, M_S1, 2, G_SPREAD, SPREAD, tail)
            s1 = value(acc, MID, w, M_S1)
            out[row, base + SPREAD_MEAN] = acc[MID, w, REF + G_SPREAD, SHIFT] + s1 / n
            out[row, base + SPREAD_STD] = math.sqrt(variance(s1, value(acc, MID, w, M_S2), n))
        if n == 1:
            continue
        m = n - 1
        if s.mid_return_change <= tail + 1:
            r = mid_v[(head - 1) & (len(mid_v) - 1), MID_RETURN]
            out[row, base + MID_MEAN] = r
            out[row, base + MID_STD] = 0.0
            out[row, base + REALIZED] = math.sqrt(r * r * m)
        else:
            settle(mid_v, acc, index, MID, w, M_R1, 2, G_MID, MID_RETURN, tail + 1)
            s1 = value(acc, MID, w, M_R1)
            s2 = value(acc, MID, w, M_R2)
            shift = acc[MID, w, REF + G_MID, SHIFT]
            out[row, base + MID_MEAN] = shift + s1 / m
            out[row, base + MID_STD] = math.sqrt(variance(s1, s2, m))
            out[row, base + REALIZED] = math.sqrt(max(s2 + 2.0 * shift * s1 + m * shift * shift, 0.0))
        if m >= 2:
            out[row, base + BIPOWER] = math.sqrt(max(math.pi / 2.0 * value(acc, MID, w, M_BP), 0.0))


@inner
def _trades(acc, index, wanted, out, row):
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        n = index[TRADE, HEAD] - index[TRADE, w]
        out[row, base + TRADES] = n
        out[row, base + INTENSITY] = n / _SECONDS[w]
        if n == 0:
            out[row, base + VOLUME] = 0.0
            continue
        volume = value(acc, TRADE, w, SIZE)
        out[row, base + VOLUME] = volume
        out[row, base + TRADE_SIZE] = volume / n
        out[row, base + IMBALANCE] = value(acc, TRADE, w, SIGNED) / volume


@inner
def _samples(s, sample_v, acc, index, wanted, out, row):
    head = index[SAMPLE, HEAD]
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        tail = index[SAMPLE, w]
        n = head - tail
        if n == 0:
            continue
        bid = value(acc, SAMPLE, w, S_BID) / n
        ask = value(acc, SAMPLE, w, S_ASK) / n
        out[row, base + BID_DEPTH] = bid
        out[row, base + ASK_DEPTH] = ask
        out[row, base + IMB_L1] = (bid - ask) / (bid + ask)
        if s.quote_source == BOOK:
            bid10 = value(acc, SAMPLE, w, S_BID10) / n
            ask10 = value(acc, SAMPLE, w, S_ASK10) / n
            out[row, base + IMB_L10] = (bid10 - ask10) / (bid10 + ask10)
        if s.micro_change <= tail:
            out[row, base + MICRO_MEAN] = sample_v[(head - 1) & (len(sample_v) - 1), MICRO]
            out[row, base + MICRO_STD] = 0.0
        else:
            settle(sample_v, acc, index, SAMPLE, w, S_M1, 2, G_MICRO, MICRO, tail)
            s1 = value(acc, SAMPLE, w, S_M1)
            out[row, base + MICRO_MEAN] = acc[SAMPLE, w, REF + G_MICRO, SHIFT] + s1 / n
            out[row, base + MICRO_STD] = math.sqrt(variance(s1, value(acc, SAMPLE, w, S_M2), n))
        if n > 1:
            out[row, base + OFI] = value(acc, SAMPLE, w, S_FLOW)


@inner
def fill_row(st, t, is_grid, wanted, out, row):
    """Write the features of the row at effective time ``t`` into ``out[row]``.

    Parameters
    ----------
    st
        The product's state; entries too old at t leave its windows.
    t
        int64, ns.
    is_grid
        Whether the row is a grid row; a ticker row's own ticker is already inside.
    wanted
        bool[windows]; the stats of other windows stay NaN.
    out
        float64[rows, 146], NaN where null.
    row
        Row to write.
    """
    s = st.s[0]
    acc = st.acc
    index = st.index
    for f in range(N_FEATURES):
        out[row, f] = math.nan
    leave_ticks(st.tick_t, st.tick_v, acc, index, t)
    leave_mids(st.mid_t, st.mid_v, acc, index, t)
    leave_trades(st.trade_t, st.trade_v, acc, index, t)
    leave_samples(st.sample_t, st.sample_v, acc, index, t)
    _ticks(s, st.tick_t, st.tick_v, acc, index, st.queue, wanted, out, row)
    _mids(s, st.mid_v, acc, index, wanted, out, row)
    _trades(acc, index, wanted, out, row)
    _samples(s, st.sample_v, acc, index, wanted, out, row)
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        # The ticker meant by "lag" is the last one on a grid row, else the one before the row's own.
        lag = index[TICK, HEAD] - (1 if is_grid else 2)
        if lag >= index[TICK, w]:
            out[row, w * N_STATS + VOL_LAG1] = st.lag_std[w]
    if s.mid_valid == 1 and not (s.gap_open == 1 and s.quote_source == BOOK):
        out[row, F_MID] = 0.5 * (s.bid + s.ask)
        out[row, F_SPREAD] = (s.ask - s.bid) / (0.5 * (s.bid + s.ask))
    out[row, F_BOOK] = s.book_state
    if s.gap_open == 1:
        out[row, F_COVERAGE] = 0.0
        out[row, F_GAP] = (t - s.gap_start) / 1e9
    else:
        out[row, F_COVERAGE] = min(t - s.cover_start, _COVERAGE_NS) / 1e9
        recent = s.gap_end >= 0 and t - s.gap_end < _COVERAGE_NS
        out[row, F_GAP] = s.gap_length / 1e9 if recent else 0.0
    of_day = t % _DAY_NS
    angle = 2.0 * math.pi * (of_day / 1e9) / 86400.0
    out[row, F_HOUR] = of_day // 3_600_000_000_000
    out[row, F_MINUTE] = of_day // 60_000_000_000 % 60
    out[row, F_SIN] = math.sin(angle)
    out[row, F_COS] = math.cos(angle)
    out[row, F_DAY] = (t // _DAY_NS + 3) % 7  # the epoch was a Thursday


@inner
def keep_lag(st):
    """Remember return_std of every window as it stands at this ticker, for the next row's ``volatility_lag1``."""
    s = st.s[0]
    for w in range(N_WINDOWS):
        st.lag_std[w] = return_std(s, st.tick_v, st.acc, st.index, w)
