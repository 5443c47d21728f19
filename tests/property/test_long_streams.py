"""Streams so long that running sums would lose their digits, against exact sums of the last windows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_repo.contract import WINDOWS
from ingestion.kernel import stream_rows
from tests.oracle.compare import close
from tests.oracle.stats import Sheet, between, changes, price_stats, return_stats, timing_stats
from tests.oracle.tapes import identical_then_move, tiny_moves

EVENTS = int(os.environ.get("VOLSPIKE_TEST_EVENTS", "1000000"))
"""Length of the slow streams; the proof's own figures are 1e6 identical tickers and 1e7 moving ones."""


def compare_last(lines: Iterator[bytes], times: list[int], prices: list[float]) -> None:
    """Compare the row of the last ticker; rows of the others are left out, not the others themselves."""
    result = stream_rows(lines, session="a" * 16, every_s=None, compute_every_n=len(prices), windows=WINDOWS)
    (got,) = result.rows.to_pylist()
    assert (got["n"], got["event_time_ns"]) == (len(prices), times[-1])
    wrong = []
    for window in WINDOWS:
        sheet, inside = Sheet(f"w{window}_"), between(times, times[-1], window)
        price_stats(sheet, prices[inside])
        return_stats(sheet, changes(prices[inside]))
        timing_stats(sheet, window, times[inside])
        for name, value in sheet.values.items():
            if not close(got[name], value, sheet.scales[name]):
                wrong.append((name, got[name], value))
    assert wrong == []


def ticker_lines(times: NDArray[np.int64], prices: NDArray[np.float64]) -> Iterator[bytes]:
    for start in range(0, len(times), 50_000):
        stamps = np.datetime_as_string(times[start : start + 50_000].astype("datetime64[ns]"))
        for stamp, price in zip(stamps, prices[start : start + 50_000].tolist(), strict=True):
            yield b'{"type":"ticker","product_id":"BTC-USD","price":"%.4f","time":"%sZ"}\n' % (price, stamp.encode())


def check_identical(n: int, per_s: int) -> None:
    times = [1_700_000_000_123_456_789 + i * 1_000_000_000 // per_s for i in range(n + 1)]
    compare_last(identical_then_move(n, per_s), times, [50_000.0] * n + [50_500.0])


def check_tiny(n: int) -> None:
    times, prices = tiny_moves(n)
    compare_last(ticker_lines(times, prices), times.tolist(), prices.tolist())


def test_identical_tickers_then_a_move() -> None:
    check_identical(20_000, 400)


def test_tiny_moves_of_a_large_price() -> None:
    check_tiny(40_000)


@pytest.mark.parametrize(
    "options", [{"windows": (60, 900)}, {"compute_every_n": 1_700}, {"compute_every_n": 1_700, "windows": (30,)}]
)
def test_extremes_of_windows_seldom_or_never_asked_for(options: dict[str, Any]) -> None:
    """Prices that only fall, then only rise, keep each ticker a candidate: queues grow while windows stand."""
    rng = np.random.default_rng(7)
    prices = 100.0 + np.abs(np.arange(-6_000, 6_000)) / 50 + rng.random(12_000) / 100
    times = 1_700_000_000_000_000_000 + np.cumsum(rng.integers(1, 400, 12_000)) * 1_000_000
    lines = list(ticker_lines(times, prices))
    every = stream_rows(lines, session="a" * 16, every_s=None).rows.to_pandas().set_index("n")
    some = stream_rows(lines, session="a" * 16, every_s=None, **options).rows.to_pandas().set_index("n")
    for window in options.get("windows", WINDOWS):
        lo, hi = f"w{window}_price_min", f"w{window}_price_max"
        assert some[[lo, hi]].equals(every.loc[some.index, [lo, hi]])
    row = every.iloc[-1]
    inside = prices[times > times[-1] - 900_000_000_000]
    assert (row["w900_price_min"], row["w900_price_max"]) == pytest.approx((inside.min(), inside.max()), abs=1e-4)


@pytest.mark.slow
def test_a_million_identical_tickers_then_a_move() -> None:
    check_identical(EVENTS, 1200)


@pytest.mark.slow
def test_millions_of_tiny_moves_of_a_large_price() -> None:
    check_tiny(10 * EVENTS)
