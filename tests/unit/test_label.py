"""The label against its formula done by hand, and null exactly where it must be."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import InsufficientDataError
from ingestion.kernel.label import OPEN, gap_meets, percentile_tau, sigma_fwd

S = 1_000_000_000
NONE = np.empty(0, np.int64)
FAR = 10_000 * S


def by_hand(t, quotes, gaps, watermark, horizon=60, returns="1s"):
    """DESIGN §6 as one reads it, a row and a quote at a time; None where it says null."""
    end = t + horizon * S
    if watermark < end or any(a < end and b > t for a, b in gaps):
        return None
    if not any(q[0] <= t for q in quotes):
        return None

    def mid_at(x):
        return [(b + a) / 2 for (u, b, a) in quotes if u <= x][-1]

    if returns == "1s":
        mids = [mid_at(t + k * S) for k in range(horizon + 1)]
    else:
        mids = [mid_at(t)] + [(b + a) / 2 for (u, b, a) in quotes if t < u <= end]
    r = [math.log(y / x) for x, y in pairwise(mids)]
    return statistics.pstdev(r) if r else 0.0


def run(t, quotes, gaps=(), watermark=FAR, **kw):
    q = list(quotes)
    return sigma_fwd(
        np.array(t, np.int64),
        np.array([x[0] for x in q], np.int64),
        np.array([x[1] for x in q], float),
        np.array([x[2] for x in q], float),
        np.array([g[0] for g in gaps], np.int64),
        np.array([g[1] for g in gaps], np.int64),
        watermark,
        **kw,
    )


def test_one_step_has_the_deviation_of_one_return_among_sixty():
    r = math.log(101 / 100)
    [got] = run([0], [(0, 100, 100), (30 * S, 101, 101)])
    assert got == pytest.approx(math.sqrt(r * r / 60 - (r / 60) ** 2), rel=1e-12)


def test_the_last_of_quotes_that_share_a_time_counts():
    quotes = [(0, 100, 100), (5 * S, 300, 300), (5 * S, 101, 101)]
    assert run([0], quotes)[0] == run([0], [(0, 100, 100), (5 * S, 101, 101)])[0]


@pytest.mark.parametrize(("offset", "moves"), [(0, True), (1, False)])
def test_the_horizon_is_closed_at_its_end(offset, moves):
    [got] = run([0], [(0, 100, 100), (60 * S + offset, 101, 101)])
    assert bool(got > 0) is moves


def test_the_move_at_t_itself_is_not_part_of_the_horizon():
    assert run([10 * S], [(0, 100, 100), (10 * S, 200, 200)])[0] == 0.0


def test_a_horizon_without_a_move_is_zero_and_not_null():
    for returns in ("1s", "tick"):
        assert run([0], [(0, 100, 101)], returns=returns)[0] == 0.0


@pytest.mark.parametrize(
    ("t", "gaps", "watermark", "null"),
    [
        (-1, (), FAR, True),  # no quote yet
        (0, (), FAR, False),
        (0, (), 60 * S, False),  # the watermark may stand exactly at the end
        (0, (), 60 * S - 1, True),
        (0, [(60 * S, 90 * S)], FAR, False),  # an open interval that begins at the end
        (0, [(60 * S - 1, 90 * S)], FAR, True),
        (100 * S, [(10 * S, 100 * S)], FAR, False),  # that ended at t
        (100 * S, [(10 * S, 100 * S + 1)], FAR, True),
        (100 * S, [(10 * S, OPEN)], FAR, True),
        (100 * S, [(1 * S, 500 * S), (2 * S, 3 * S)], FAR, True),  # the later gap ended before the earlier
        (100 * S, [(2 * S, 3 * S), (90 * S, 95 * S)], FAR, False),
    ],
)
def test_null_exactly_where_there_is_no_quote_a_gap_or_no_watermark(t, gaps, watermark, null):
    [got] = run([t], [(0, 100, 101), (7 * S, 100.5, 101), (130 * S, 100, 101)], gaps, watermark)
    assert math.isnan(got) is null


ticks = st.integers(0, 200 * 4).map(lambda q: q * S // 4)
price = st.integers(1, 10**7).map(lambda c: c / 100)


@settings(max_examples=60, deadline=None)
@given(
    t=st.lists(ticks, min_size=1, max_size=12),
    quotes=st.lists(st.tuples(ticks, price, st.integers(1, 500)), max_size=40),
    gaps=st.lists(st.tuples(ticks, ticks), max_size=3),
    watermark=ticks,
    returns=st.sampled_from(["1s", "tick"]),
)
def test_any_series_equals_the_formula(t, quotes, gaps, watermark, returns):
    quotes = [(u, b, b + c / 100) for u, b, c in sorted(quotes, key=lambda q: q[0])]
    gaps = [(min(g), max(g)) for g in gaps]
    got = run(t, quotes, gaps, watermark, returns=returns)
    for x, value in zip(t, got, strict=True):
        expected = by_hand(x, quotes, gaps, watermark, returns=returns)
        if expected is None:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_tiny_moves_of_a_large_price_keep_their_digits():
    quotes = [(k * S, 1e5 + 0.01 * (k % 3 == 0), 1e5 + 0.02) for k in range(100)]
    exact = by_hand(5 * S, quotes, (), FAR)
    assert run([5 * S], quotes)[0] == pytest.approx(exact, rel=1e-9)


def test_quotes_out_of_order_are_refused():
    with pytest.raises(ValueError, match="log order"):
        run([0], [(5, 1, 2), (4, 1, 2)])


def test_gaps_are_found_whatever_their_order():
    t = np.arange(0, 300 * S, S)
    gaps = [(200 * S, 210 * S), (5 * S, 6 * S), (100 * S, 260 * S)]
    expected = [any(a < x + 60 * S and b > x for a, b in gaps) for x in t.tolist()]
    starts, ends = (np.array(x) for x in zip(*gaps, strict=True))
    assert gap_meets(t, starts, ends).tolist() == expected


class TestTau:
    def test_is_the_percentile_of_what_is_known(self):
        sigma = np.r_[np.nan, np.arange(1, 102), np.nan].astype(float)
        assert percentile_tau(sigma, 95) == pytest.approx(96)

    @pytest.mark.parametrize(
        ("sigma", "reason"),
        [
            (np.array([]), "no label"),
            (np.array([np.nan, np.nan]), "no label"),
            (np.zeros(500), "must be > 0"),
            (np.r_[np.zeros(96), np.ones(4)], "must be > 0"),
            (np.ones(500), "is tied"),
            (np.r_[np.arange(1, 801) / 1e3, np.ones(200)], "is tied"),
            (np.r_[np.arange(1, 801) / 1e3, 1 + np.arange(200) * 1e-14], "is tied"),
        ],
    )
    def test_refuses_a_threshold_that_separates_nothing(self, sigma, reason):
        with pytest.raises(InsufficientDataError, match=f"ETH-USD: .*{reason}"):
            percentile_tau(sigma, 95, product="ETH-USD")

    def test_a_minute_of_equal_values_among_thousands_is_no_tie(self):
        sigma = np.arange(10_000, dtype=float) + 1
        sigma[9470:9530] = 9500
        assert percentile_tau(sigma, 95) == pytest.approx(9500)
