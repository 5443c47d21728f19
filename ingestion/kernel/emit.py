"""One row of features from a product's state: each formula of the contract, once."""

from __future__ import annotations

import math

from feature_repo.contract import COVERAGE_MAX_S, PLAIN_STATS, WINDOWED_STATS, WINDOWS
from ingestion.kernel.compiled import inlined
from ingestion.kernel.series import (
    first_since,
    leave_mids,
    leave_samples,
    leave_ticks,
    leave_trades,
    settle,
    settle_price,
    slot,
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


@inlined
def return_std(s, tick_v, acc, index, w):
    """Return the population standard deviation of window ``w``'s returns; NaN without one."""
    n = index[TICK, HEAD] - index[TICK, w] - 1
    if n < 1:
        return math.nan
    if s.return_change <= index[TICK, w] + 1:
        return 0.0
    settle(tick_v, acc, index, TICK, w, T_R1, 4, G_RETURN, RETURN, index[TICK, w] + 1)
    return math.sqrt(variance(value(acc, TICK, w, T_R1), value(acc, TICK, w, T_R2), n))


@inlined
def _ticks(s, tick_t, tick_v, acc, index, queue, front, wanted, out, row):
    head = index[TICK, HEAD]
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        tail = index[TICK, w]
        n = head - tail
        out[base + N_TICKS, row] = n
        out[base + TICK_RATE, row] = n / _SECONDS[w]
        if n == 0:
            continue
        first = tick_v[slot(tail, tick_v), PRICE]
        last = s.last_price
        low = tick_v[slot(first_since(queue, 0, front, w, tail), tick_v), PRICE]
        high = tick_v[slot(first_since(queue, 1, front, w, tail), tick_v), PRICE]
        out[base + PRICE_MIN, row] = low
        out[base + PRICE_MAX, row] = high
        out[base + PRICE_RANGE, row] = high - low
        out[base + MOMENTUM, row] = last / first - 1.0
        if s.price_change <= tail:
            out[base + PRICE_MEAN, row] = last
            out[base + PRICE_STD, row] = 0.0
            if n > 1:
                out[base + TREND, row] = 0.0
        else:
            settle_price(tick_v, acc, index, w)
            s1 = value(acc, TICK, w, T_P1)
            mean = acc[TICK, w, REF + G_PRICE, SHIFT] + s1 / n
            out[base + PRICE_MEAN, row] = mean
            out[base + PRICE_STD, row] = math.sqrt(variance(s1, value(acc, TICK, w, T_P2), n))
            m = float(n)
            slope = (value(acc, TICK, w, T_PX) - 0.5 * (m - 1.0) * s1) * 12.0 / (m * (m * m - 1.0))
            out[base + TREND, row] = slope / mean
        if n == 1:
            continue
        m = n - 1
        out[base + GAP_MEAN, row] = (s.last_tick - tick_t[slot(tail, tick_t)]) / 1e9 / m
        if s.interval_change <= tail + 1:
            out[base + GAP_STD, row] = 0.0
        else:
            settle(tick_v, acc, index, TICK, w, T_D1, 2, G_INTERVAL, INTERVAL, tail + 1)
            out[base + GAP_STD, row] = math.sqrt(variance(value(acc, TICK, w, T_D1), value(acc, TICK, w, T_D2), m))
        if s.return_change <= tail + 1:
            out[base + RET_MEAN, row] = tick_v[slot(head - 1, tick_v), RETURN]
            out[base + RET_STD, row] = 0.0
            continue
        out[base + RET_STD, row] = return_std(s, tick_v, acc, index, w)
        s1 = value(acc, TICK, w, T_R1)
        out[base + RET_MEAN, row] = acc[TICK, w, REF + G_RETURN, SHIFT] + s1 / m
        if m >= 3:
            skew, kurt = shape(s1, value(acc, TICK, w, T_R2), value(acc, TICK, w, T_R3), value(acc, TICK, w, T_R4), m)
            out[base + RET_SKEW, row] = skew
            out[base + RET_KURT, row] = kurt


@inlined
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
            out[base + SPREAD_MEAN, row] = s.last_spread
            out[base + SPREAD_STD, row] = 0.0
        else:
            settle(mid_v, acc, index, MID, w, M_S1, 2, G_SPREAD, SPREAD, tail)
            s1 = value(acc, MID, w, M_S1)
            out[base + SPREAD_MEAN, row] = acc[MID, w, REF + G_SPREAD, SHIFT] + s1 / n
            out[base + SPREAD_STD, row] = math.sqrt(variance(s1, value(acc, MID, w, M_S2), n))
        if n == 1:
            continue
        m = n - 1
        if s.mid_return_change <= tail + 1:
            r = mid_v[slot(head - 1, mid_v), MID_RETURN]
            out[base + MID_MEAN, row] = r
            out[base + MID_STD, row] = 0.0
            out[base + REALIZED, row] = math.sqrt(r * r * m)
        else:
            settle(mid_v, acc, index, MID, w, M_R1, 2, G_MID, MID_RETURN, tail + 1)
            s1 = value(acc, MID, w, M_R1)
            s2 = value(acc, MID, w, M_R2)
            shift = acc[MID, w, REF + G_MID, SHIFT]
            out[base + MID_MEAN, row] = shift + s1 / m
            out[base + MID_STD, row] = math.sqrt(variance(s1, s2, m))
            out[base + REALIZED, row] = math.sqrt(max(s2 + 2.0 * shift * s1 + m * shift * shift, 0.0))
        if m >= 2:
            out[base + BIPOWER, row] = math.sqrt(max(math.pi / 2.0 * value(acc, MID, w, M_BP), 0.0))


@inlined
def _trades(acc, index, wanted, out, row):
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        base = w * N_STATS
        n = index[TRADE, HEAD] - index[TRADE, w]
        out[base + TRADES, row] = n
        out[base + INTENSITY, row] = n / _SECONDS[w]
        if n == 0:
            out[base + VOLUME, row] = 0.0
            continue
        volume = value(acc, TRADE, w, SIZE)
        out[base + VOLUME, row] = volume
        out[base + TRADE_SIZE, row] = volume / n
        out[base + IMBALANCE, row] = value(acc, TRADE, w, SIGNED) / volume


@inlined
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
        out[base + BID_DEPTH, row] = bid
        out[base + ASK_DEPTH, row] = ask
        out[base + IMB_L1, row] = (bid - ask) / (bid + ask)
        if s.quote_source == BOOK:
            bid10 = value(acc, SAMPLE, w, S_BID10) / n
            ask10 = value(acc, SAMPLE, w, S_ASK10) / n
            out[base + IMB_L10, row] = (bid10 - ask10) / (bid10 + ask10)
        if s.micro_change <= tail:
            out[base + MICRO_MEAN, row] = sample_v[slot(head - 1, sample_v), MICRO]
            out[base + MICRO_STD, row] = 0.0
        else:
            settle(sample_v, acc, index, SAMPLE, w, S_M1, 2, G_MICRO, MICRO, tail)
            s1 = value(acc, SAMPLE, w, S_M1)
            out[base + MICRO_MEAN, row] = acc[SAMPLE, w, REF + G_MICRO, SHIFT] + s1 / n
            out[base + MICRO_STD, row] = math.sqrt(variance(s1, value(acc, SAMPLE, w, S_M2), n))
        if n > 1:
            out[base + OFI, row] = value(acc, SAMPLE, w, S_FLOW)


@inlined
def fill_row(st, t, is_grid, wanted, out, row):
    """Write the features of the row at effective time ``t`` into ``out[:, row]``.

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
        float64[146, rows]; what stays null is NaN there already.
    row
        Row to write.
    """
    s = st.s[0]
    acc = st.acc
    index = st.index
    leave_ticks(st.tick_t, st.tick_v, acc, index, t)
    leave_mids(st.mid_t, st.mid_v, acc, index, t)
    leave_trades(st.trade_t, st.trade_v, acc, index, t)
    leave_samples(st.sample_t, st.sample_v, acc, index, t)
    _ticks(s, st.tick_t, st.tick_v, acc, index, st.queue, st.front, wanted, out, row)
    _mids(s, st.mid_v, acc, index, wanted, out, row)
    _trades(acc, index, wanted, out, row)
    _samples(s, st.sample_v, acc, index, wanted, out, row)
    for w in range(N_WINDOWS):
        if not wanted[w]:
            continue
        # The ticker meant by "lag" is the last one on a grid row, else the one before the row's own.
        lag = index[TICK, HEAD] - (1 if is_grid else 2)
        if lag >= index[TICK, w]:
            out[w * N_STATS + VOL_LAG1, row] = st.lag_std[w]
    if s.mid_valid == 1 and not (s.gap_open == 1 and s.quote_source == BOOK):
        out[F_MID, row] = 0.5 * (s.bid + s.ask)
        out[F_SPREAD, row] = (s.ask - s.bid) / (0.5 * (s.bid + s.ask))
    out[F_BOOK, row] = s.book_state
    if s.gap_open == 1:
        out[F_COVERAGE, row] = 0.0
        out[F_GAP, row] = (t - s.gap_start) / 1e9
    else:
        out[F_COVERAGE, row] = min(t - s.cover_start, _COVERAGE_NS) / 1e9
        recent = s.gap_end >= 0 and t - s.gap_end < _COVERAGE_NS
        out[F_GAP, row] = s.gap_length / 1e9 if recent else 0.0
    of_day = t % _DAY_NS
    angle = 2.0 * math.pi * (of_day / 1e9) / 86400.0
    out[F_HOUR, row] = of_day // 3_600_000_000_000
    out[F_MINUTE, row] = of_day // 60_000_000_000 % 60
    out[F_SIN, row] = math.sin(angle)
    out[F_COS, row] = math.cos(angle)
    out[F_DAY, row] = (t // _DAY_NS + 3) % 7  # the epoch was a Thursday


@inlined
def keep_lag(st, made, wanted, out, row):
    """Remember return_std of every window as it stands at this ticker, for the next row's ``volatility_lag1``.

    Where the ticker's own row was ``made``, at ``out[:, row]``, it stands there.
    """
    s = st.s[0]
    for w in range(N_WINDOWS):
        if made and wanted[w]:
            st.lag_std[w] = out[w * N_STATS + RET_STD, row]
        else:
            st.lag_std[w] = return_std(s, st.tick_v, st.acc, st.index, w)
