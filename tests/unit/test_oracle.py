"""The naive oracle itself, against numbers worked out by hand and against scipy: who checks must be checked."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

from feature_repo.contract import FEATURE_NAMES
from tests.oracle import advanced, bad, tapes
from tests.oracle.book import Book
from tests.oracle.label import label
from tests.oracle.naive import replay
from tests.oracle.parse import MalformedError, read, time_ns
from tests.oracle.stats import Moments, exact_integers, order_flow
from tests.oracle.tapes import MS, START_NS, S, heartbeat, line, match, quoted, snapshot, ticker, update


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0, 9.5], [1e5, 1e5 + 1e-2, 1e5 - 1e-2], [1e-300, 1e300, 3.0], [7.0]])
def test_integers_stand_for_the_doubles_exactly(values: list[float]) -> None:
    ints, unit = exact_integers(values)
    assert [Fraction(i, unit) for i in ints] == [Fraction(v) for v in values]


def test_moments_agree_with_scipy_where_scipy_is_accurate() -> None:
    x = np.random.default_rng(0).normal(3, 2, 500)
    m = Moments(x.tolist())
    assert float(m.mean) == pytest.approx(x.mean(), rel=1e-13)
    assert float(m.m2) == pytest.approx(x.var(), rel=1e-13)
    assert float(m.m3) / float(m.m2) ** 1.5 == pytest.approx(scipy.stats.skew(x), rel=1e-10)
    assert float(m.m4 / m.m2**2) - 3 == pytest.approx(scipy.stats.kurtosis(x), rel=1e-10)


def test_moments_of_integers_are_exact() -> None:
    m = Moments([2, 4, 4, 4, 5, 5, 7, 9])
    assert [m.mean, m.m2, m.m3, m.m4] == [Fraction(5), Fraction(4), Fraction(42, 8), Fraction(356, 8)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", S), ("1970-01-01T00:00:00.000000001Z", 1), ("1970-01-01T01:00:00.5+01:00", S // 2),
        ("1969-12-31T20:30:00-03:30", 0), ("2018-04-24T03:52:17.202Z", 1_524_541_937_202_000_000),
    ],
)  # fmt: skip
def test_times_are_read_to_the_nanosecond(text: str, expected: int) -> None:
    assert time_ns(text) == expected


def test_every_bad_line_is_malformed_and_every_odd_one_is_not() -> None:
    for name, text in bad.malformed().items():
        assert next(read([text], "s")).reason is not None, name
    assert [entry.reason for entry in read(bad.usable(), "s") if entry.reason] == []
    with pytest.raises(MalformedError):
        time_ns("2023-11-14T22:13:20")


def test_features_of_four_tickers_by_hand() -> None:
    start = 1_700_000_000 * S
    feed = [
        ticker(start, 100, bid=99, ask=101, sizes=(1, 3), trade=(1, 2, "buy")),
        ticker(start + 2 * S, 110, bid=99, ask=101, sizes=(2, 3), trade=(2, 1, "sell")),  # only a size
        ticker(start + 3 * S, 99, bid=98, ask=102, sizes=(2, 2), trade=(3, 5, "buy")),
        ticker(start + 10 * S, 99, bid=97, ask=100, sizes=(4, 4), trade=(4, 2, "sell")),
    ]
    out = replay([line(m) for m in feed], every_s=None)
    f = out.rows[-1]["features"]
    assert set(f) == set(FEATURE_NAMES)
    assert (out.rows[-1]["n"], out.rows[-1]["event_time_ns"]) == (4, start + 10 * S)
    returns = np.array([110 / 100 - 1, 99 / 110 - 1, 0.0])
    mids = np.array([100.0, 100.0, 98.5])
    logs = np.diff(np.log(mids))
    micro = np.array([(101 + 99 * 3) / 4, (101 * 2 + 99 * 3) / 5, 100.0, 98.5])
    expected = {
        "price_mean": 102.0, "price_std": np.std([100, 110, 99, 99]), "price_min": 99, "price_max": 110,
        "price_range": 11, "price_momentum": -0.01,
        "price_trend": np.polyfit(range(4), [100, 110, 99, 99], 1)[0] / 102,
        "return_mean": returns.mean(), "return_std": returns.std(), "return_skew": scipy.stats.skew(returns),
        "return_kurt": scipy.stats.kurtosis(returns), "volatility_lag1": returns[:2].std(),
        "mid_return_mean": logs.mean(), "mid_return_std": logs.std(), "realized_vol": math.sqrt((logs**2).sum()),
        "bipower_vol": 0.0, "spread_mean": (0.02 + 0.04 + 3 / 98.5) / 3, "spread_std": np.std([0.02, 0.04, 3 / 98.5]),
        "trade_count": 4, "trade_volume": 10, "avg_trade_size": 2.5, "trade_imbalance": (7 - 3) / 10,
        "trade_intensity": 4 / 30, "avg_tick_interval": 10 / 3, "tick_interval_std": np.std([2, 1, 7]),
        "tick_rate": 4 / 30, "n_observations": 4, "ob_bid_depth_L1_mean": 9 / 4, "ob_ask_depth_L1_mean": 12 / 4,
        "ob_depth_imbalance_L1": (9 - 12) / 21, "ob_depth_imbalance_L10": None, "ob_microprice_mean": micro.mean(),
        # size grew by 1; both bests retreat: −2 + 3; bid falls, ask falls: −2 − 4
        "ob_microprice_std": micro.std(), "ob_ofi": 1 + (-2 + 3) + (-2 - 4),
    }  # fmt: skip
    for stat, value in expected.items():
        assert f[f"w30_{stat}"] == (None if value is None else pytest.approx(value, rel=1e-12, abs=1e-15)), stat
    assert (f["mid"], f["spread"], f["book_state"]) == (98.5, 3 / 98.5, 0)
    assert (f["coverage_s"], f["feed_gap_s"]) == (10.0, 0.0)
    assert (f["hour_of_day"], f["minute_of_hour"], f["day_of_week"]) == (22, 13, 1)  # Tuesday 2023-11-14 22:13:30
    assert f["hour_sin"] == pytest.approx(math.sin(2 * math.pi * (22 * 3600 + 13 * 60 + 30) / 86400), abs=1e-12)


def test_a_window_is_open_on_the_left_and_needs_both_ends_of_a_return() -> None:
    start = 1_700_000_000 * S
    times = (start, start + 1, start + 15 * S, start + 30 * S)
    rows = replay([line(ticker(t, 100 + i)) for i, t in enumerate(times)], every_s=None).rows
    last = rows[-1]["features"]
    assert last["w30_n_observations"] == 3  # the first lies exactly 30 s back
    assert last["w30_price_min"] == 101
    assert last["w30_return_mean"] == pytest.approx((102 / 101 - 1 + 103 / 102 - 1) / 2)
    assert last["w60_n_observations"] == 4


def test_constant_prices_have_no_spread_and_no_shape() -> None:
    f = replay([line(ticker(START_NS + i * S, 30_000.1)) for i in range(10)]).rows[-1]["features"]
    assert (f["w60_price_std"], f["w60_return_std"], f["w60_price_trend"]) == (0.0, 0.0, 0.0)
    assert (f["w60_return_skew"], f["w60_return_kurt"]) == (None, None)
    assert f["w60_mid_return_std"] is None and f["w60_trade_imbalance"] is None and f["w60_trade_count"] == 0


def test_grid_rows_see_what_came_before_the_message_that_passes_the_second() -> None:
    start = 1_700_000_000 * S + 500 * MS
    out = replay([line(quoted(start + i * 1250 * MS, 100 + i)) for i in range(4)])
    grid = [(r["n"], r["k"], r["event_time_ns"] // S - 1_700_000_000) for r in out.rows if r["trigger"] == "grid"]
    assert grid == [(1, -1, 1), (2, -1, 2), (3, -1, 3), (3, -2, 4)]
    second = [r["features"] for r in out.rows if r["trigger"] == "grid"][1]
    assert (second["w30_price_max"], second["w30_return_mean"]) == (101.0, pytest.approx(0.01))
    assert second["w30_volatility_lag1"] == 0.0


def test_row_time_rises_strictly_where_tickers_share_a_time() -> None:
    out = replay([line(quoted(START_NS, 100 + i)) for i in range(3)])
    base = START_NS // 1000
    assert [r["row_time_us"] for r in out.rows] == [base, base + 1, base + 2]
    assert {r["event_time_ns"] for r in out.rows} == {START_NS}


def test_a_late_ticker_makes_nothing_and_a_reordered_one_stands_at_the_watermark() -> None:
    out = replay(tapes.grace_edge(), every_s=None)
    assert [r["n"] for r in out.rows] == [1, 2, 3, 5, 6]
    assert out.rows[2]["event_time_ns"] == out.rows[1]["event_time_ns"] == START_NS + 5 * S
    assert (out.counts["reordered"], out.counts["late"]) == (1, 1)


def test_silence_makes_a_gap_without_grid_rows_inside() -> None:
    times = (START_NS - 1, START_NS, START_NS + 61 * S, START_NS + 64 * S)
    out = replay([line(quoted(t, 100.0)) for t in times])
    edges = [(q["kind"], q["event_time_ns"]) for q in out.quotes if q["kind"] != "quote"]
    assert edges == [("gap_start", START_NS), ("gap_end", START_NS + 61 * S)]
    grid = [r["event_time_ns"] // S for r in out.rows if r["trigger"] == "grid"]
    assert grid == [START_NS // S + i for i in (62, 63, 64)]
    assert out.rows[-1]["features"]["coverage_s"] == 3.0
    assert out.rows[-1]["features"]["feed_gap_s"] == 61.0


def test_a_first_message_that_was_old_news_makes_no_gap() -> None:
    out = replay([line(quoted(t, 100.0)) for t in (START_NS, START_NS + 61 * S, START_NS + 64 * S)])
    assert [q["kind"] for q in out.quotes] == ["quote"]
    grid = [r["event_time_ns"] // S for r in out.rows if r["trigger"] == "grid"]
    assert grid == [START_NS // S + i for i in (62, 63, 64)]
    assert out.rows[-1]["features"]["coverage_s"] == 3.0
    assert out.rows[-1]["features"]["feed_gap_s"] == 0.0


def test_a_crossed_book_stays_a_gap_until_a_snapshot() -> None:
    t = START_NS // S * S
    feed = [
        snapshot([(99, 1)], [(101, 1)]), update(t + 500 * MS, ("buy", 99, 2)), update(t + 2500 * MS, ("buy", 102, 1)),
        ticker(t + 4 * S, 100), update(t + 5 * S, ("buy", 102, 0)), snapshot([(98, 1)], [(101, 1)]),
        update(t + 9500 * MS, ("buy", 97, 1)), heartbeat(t + 10_500 * MS),
    ]  # fmt: skip
    out = replay([line(m) for m in feed])
    grid = [r["event_time_ns"] // S - t // S for r in out.rows if r["trigger"] == "grid"]
    assert grid == [1, 2, 10]
    inside = next(r["features"] for r in out.rows if r["trigger"] == "ticker")
    assert (inside["mid"], inside["book_state"], inside["coverage_s"], inside["feed_gap_s"]) == (None, 2, 0.0, 1.5)
    assert [(q["kind"], q["bid"]) for q in out.quotes] == [
        ("quote", 99.0), ("quote", 99.0), ("gap_start", None), ("gap_end", None), ("quote", 98.0),
    ]  # fmt: skip


def test_a_missing_trade_id_is_a_gap_and_a_repeated_one_is_not() -> None:
    def gaps(*ids: int) -> int:
        return replay([line(match(START_NS + i * S, n)) for i, n in enumerate(ids)]).counts["gaps"]

    assert (gaps(1, 2, 3), gaps(1, 2, 2, 3), gaps(1, 3), gaps(5, 4, 6), gaps(1, 3, 5)) == (0, 0, 1, 0, 2)


def test_the_maker_side_of_a_match_is_turned_into_the_takers() -> None:
    feed = [match(START_NS, 1, maker="sell"), match(START_NS + 1, 2, size=3, maker="buy"), quoted(START_NS + 2, 100.0)]
    assert replay([line(m) for m in feed]).rows[0]["features"]["w30_trade_imbalance"] == (1 - 3) / 4


def test_the_book_equals_one_that_sorts_its_dict() -> None:
    rng, book, plain = random.Random(4), Book(), {"bid": dict[float, float](), "ask": dict[float, float]()}
    for _ in range(3000):
        side = rng.choice(("bid", "ask"))
        price, size = rng.randrange(1, 60) / 4 + (20 if side == "ask" else 0), rng.choice((0, 0, 1.5, 2.5))
        book.apply([(side, price, size)])
        if size:
            plain[side][price] = size
        else:
            plain[side].pop(price, None)
        bids, asks = sorted(plain["bid"].items(), reverse=True), sorted(plain["ask"].items())
        assert book.sides["bid"].best(10) == bids[:10] and book.sides["ask"].best(10) == asks[:10]


def test_order_flow_by_hand() -> None:
    before = {"bid": 10.0, "bid_size": 3.0, "ask": 11.0, "ask_size": 4.0}
    assert order_flow(before, before | {"bid_size": 5.0}) == 2
    assert order_flow(before, before | {"bid": 10.5, "bid_size": 7.0}) == 7
    assert order_flow(before, before | {"bid": 9.5, "bid_size": 7.0}) == -3
    assert order_flow(before, before | {"ask": 10.5, "ask_size": 2.0}) == -2
    assert order_flow(before, before | {"ask": 12.0, "ask_size": 9.0}) == 4


def test_advanced_losses_void_every_book_of_the_connection() -> None:
    names = ("advanced", "advanced_losses")
    clean, lossy = (replay(advanced.TAPES[name](), only_rows=lambda i: False) for name in names)
    assert clean.counts["gaps"] == 0
    starts = [(q["kind"], q["product_id"]) for q in lossy.quotes if q["kind"] == "gap_start"]
    assert sorted(starts) == [("gap_start", p) for p in ("AAA-USD", "AAA-USD", "BBB-USD", "BBB-USD")]


def test_label_by_hand() -> None:
    quotes = [(0, 100.0), (30 * S, 101.0), (30 * S + 1, 100.0), (60 * S, 102.0), (61 * S, 150.0)]
    one_second = [0.0] * 29 + [math.log(1.01), math.log(100 / 101)] + [0.0] * 28 + [math.log(1.02)]
    assert label(0, quotes, [], 60 * S) == pytest.approx(np.std(one_second), rel=1e-13)
    ticks = [math.log(1.01), math.log(100 / 101), math.log(1.02)]
    assert label(0, quotes, [], 60 * S, "tick") == pytest.approx(np.std(ticks), rel=1e-13)
    assert label(0, quotes, [], 60 * S - 1) is None
    assert label(-1, quotes, [], 99 * S) is None
    touching = [(60 * S, 70 * S), (-5, 0)]  # beside (t, t + 60 s], not in it
    assert label(0, quotes, touching, 99 * S) == label(0, quotes, [], 99 * S)
    assert label(0, quotes, [(60 * S - 1, None)], 99 * S) is None
    assert label(0, quotes, [(-5, 1)], 99 * S) is None
