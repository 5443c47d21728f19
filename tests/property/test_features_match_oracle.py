"""Every feature, row id, time, quote and count of the kernel equals the naive oracle's."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ingestion.kernel import stream_rows
from tests.oracle import advanced, tapes
from tests.oracle.compare import count_differences, differences
from tests.oracle.naive import replay
from tests.oracle.streams import streams

SESSION = "0123456789abcdef"
TAPES = tapes.TAPES | advanced.TAPES

RECORDED = {  # lines taken from the start (None: all), rows whose features are compared
    "advanced_BTC-ETH_20260809_24s": (None, 20), "exchange_10products_20210417_31s": (None, 15),
    "exchange_BTC-USD_20180416_2min": (6000, 6), "exchange_BTC-USD_20180424_l2_60min": (9000, 6),
    "exchange_BTC-USD_20251112_tickers_7min": (None, 8), "wrapped_BTC-USD_20251112_tickers": (None, 8),
    "tickers_BTC-USD_20251130_342min": (12_000, 8), "tickers_BTC-ETH_20260403_15min": (None, 12),
}  # fmt: skip


def check(lines: list[bytes], features_of: int | None = None, **options: Any) -> None:
    """Compare everything; the features of so many rows, chosen by chance, and of the first and last few."""
    kernel = stream_rows(lines, session=SESSION, **options)
    made = kernel.rows.num_rows
    chosen = set(range(made))
    if features_of is not None and made > features_of:
        drawn = random.Random(len(lines)).sample(range(made), features_of)
        chosen = set(drawn) | {0, 1, made - 2, made - 1}
    oracle = replay(lines, session=SESSION, only_rows=chosen.__contains__, **options)
    found = differences(kernel.rows, kernel.quotes, oracle) + count_differences(kernel.counts, oracle)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20])


@pytest.mark.parametrize("name", TAPES)
def test_on_an_adversarial_tape(name: str) -> None:
    check(TAPES[name](), features_of=22)


@pytest.mark.parametrize("name", RECORDED)
def test_on_a_recorded_tape(name: str, shared_data: Path) -> None:
    limit, features_of = RECORDED[name]
    with gzip.open(shared_data / f"{name}.ndjson.gz") as tape:
        check(list(itertools.islice(tape, limit)), features_of)


@pytest.mark.parametrize("options", [{"every_s": None}, {"every_s": 5}, {"compute_every_n": 7}, {"windows": (60, 300)}])
def test_with_other_options(options: dict[str, Any]) -> None:
    check(tapes.disordered(400), features_of=15, **options)


def test_without_receive_time_the_clock_bounds_event_times() -> None:
    check(tapes.constant(40), features_of=5, now_ns=tapes.START_NS + 10 * tapes.S)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(streams())
def test_on_random_streams(lines: list[bytes]) -> None:
    check(lines, features_of=6)


def _order(lines: Iterable[bytes]) -> list[bytes]:
    return sorted(lines, key=lambda text: random.Random(text).random())


def test_on_a_shuffled_tape() -> None:
    check(_order(tapes.matches_and_tickers(120)), features_of=20)
