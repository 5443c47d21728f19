"""The generated market: consistent messages, stated figures, an explicit process; checked by a naive reader."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard

from feature_repo.errors import StoreError, UsageError
from ingestion.market import PRODUCTS, START_NS, generate, latent, session_id, tape_name, write_tape
from ingestion.market.calibrate import figures, foresight, quotes_of
from ingestion.market.parameters import DEFAULT
from ingestion.market.process import (
    decay,
    jump_log_pmf,
    jump_ticks,
    log_likelihood,
    regime_matrix,
    rng,
    simulate,
    stationary,
)

SECONDS = 900
HOUR = 3_600


@pytest.fixture(scope="module")
def received() -> list[tuple[int, str, dict]]:
    return [(ns, product, json.loads(raw)) for ns, product, raw in generate(seed=5, seconds=SECONDS)]


@pytest.fixture(scope="module")
def hour() -> list[bytes]:
    return [raw for _, _, raw in generate(seed=11, seconds=HOUR, products=["BTC-USD"])]


def by_product(received: list[tuple[int, str, dict]], product: str) -> list[dict]:
    return [message for _, name, message in received if name == product]


def event_us(message: dict) -> int:
    return int(np.datetime64(message["time"].removesuffix("Z"), "us").astype(np.int64))


def test_equal_seed_gives_equal_bytes_and_another_seed_gives_others() -> None:
    first = list(generate(seed=3, seconds=60))
    assert first == list(generate(seed=3, seconds=60))
    assert [raw for _, _, raw in first[8:]] != [raw for _, _, raw in list(generate(seed=4, seconds=60))[8:]]


def test_a_product_does_not_depend_on_the_others() -> None:
    alone = [x for x in generate(seed=3, seconds=60, products=["ETH-USD"]) if x[1] == "ETH-USD"]
    assert alone == [x for x in generate(seed=3, seconds=60) if x[1] == "ETH-USD"]


def test_receive_times_never_fall_and_follow_their_events(received: list[tuple[int, str, dict]]) -> None:
    times = np.array([ns for ns, _, _ in received])
    assert (np.diff(times) >= 0).all()
    delay = np.array([ns / 1e3 - event_us(m) for ns, _, m in received if m["type"] in ("ticker", "heartbeat")]) / 1e3
    assert delay.min() >= 15
    assert 25 < np.median(delay) < 50
    assert delay.max() < 500


@pytest.mark.parametrize("product", PRODUCTS)
def test_event_times_never_fall_and_end_with_the_tape(received: list[tuple[int, str, dict]], product: str) -> None:
    times = np.array(
        [event_us(m) for m in by_product(received, product) if m["type"] not in ("snapshot", "last_match")]
    )
    assert (np.diff(times) >= 0).all()
    assert START_NS // 1000 <= times[0]
    assert times[-1] < START_NS // 1000 + SECONDS * 1_000_000


@pytest.mark.parametrize("product", PRODUCTS)
def test_l2updates_are_at_least_50_ms_apart(received: list[tuple[int, str, dict]], product: str) -> None:
    times = np.array([event_us(m) for m in by_product(received, product) if m["type"] == "l2update"])
    assert np.diff(times).min() >= 50_000


@pytest.mark.parametrize("product", PRODUCTS)
def test_book_never_crosses_and_its_top_is_every_tickers(received: list[tuple[int, str, dict]], product: str) -> None:
    bids: dict[float, str] = {}
    asks: dict[float, str] = {}
    checked = 0
    for message in by_product(received, product):
        if message["type"] == "snapshot":
            bids.update((float(p), s) for p, s in message["bids"])
            asks.update((float(p), s) for p, s in message["asks"])
            assert len(bids) == len(asks) == DEFAULT.products[product].levels
        elif message["type"] == "l2update":
            for side, price, size in message["changes"]:
                book = bids if side == "buy" else asks
                if float(size) == 0:
                    del book[float(price)]  # a level that isn't there would be a KeyError
                else:
                    book[float(price)] = size
        elif message["type"] == "ticker":
            top = (max(bids), bids[max(bids)], min(asks), asks[min(asks)])
            said = (float(message["best_bid"]), message["best_bid_size"], float(message["best_ask"]))
            assert (*said, message["best_ask_size"]) == top
            checked += 1
        assert max(bids, default=0.0) < min(asks, default=1.0)
    assert checked > SECONDS
    assert min(len(bids), len(asks)) > 100


@pytest.mark.parametrize("product", PRODUCTS)
def test_trades_are_consecutive_and_told_alike_by_match_ticker_and_heartbeat(
    received: list[tuple[int, str, dict]], product: str
) -> None:
    messages = by_product(received, product)
    first = next(m["trade_id"] for m in messages if m["type"] == "last_match")
    matches = [m for m in messages if m["type"] == "match"]
    tickers = [m for m in messages if m["type"] == "ticker"]
    expected = list(range(first + 1, first + 1 + len(matches)))
    assert [m["trade_id"] for m in matches] == expected
    assert [m["trade_id"] for m in tickers] == expected
    other = {"buy": "sell", "sell": "buy"}
    for match, ticker in zip(matches, tickers, strict=True):
        assert (match["price"], match["size"], match["time"], match["side"], match["sequence"]) == (
            ticker["price"],
            ticker["last_size"],
            ticker["time"],
            other[ticker["side"]],
            ticker["sequence"],
        )
        assert float(match["size"]) > 0
    sequences, last, beats = [], first, 0
    for message in messages:
        if message["type"] == "match":
            last = message["trade_id"]
        if message["type"] == "heartbeat":
            beats += 1
            assert message["last_trade_id"] == last
        if message["type"] in ("match", "heartbeat"):
            sequences.append(message["sequence"])
    assert beats == SECONDS
    assert (np.diff(sequences) > 0).all()


def test_a_fifth_of_the_tickers_precede_their_match(received: list[tuple[int, str, dict]]) -> None:
    messages = by_product(received, "BTC-USD")
    seen: set[int] = set()
    early = total = 0
    for message in messages:
        if message["type"] == "match":
            seen.add(message["trade_id"])
        if message["type"] == "ticker":
            total += 1
            early += message["trade_id"] not in seen
    assert 0.15 < early / total < 0.25


def test_first_message_subscribes_and_says_what_the_tape_is(received: list[tuple[int, str, dict]]) -> None:
    first = received[0][2]
    assert first["type"] == "subscriptions"
    assert {c["name"] for c in first["channels"]} == {"ticker", "matches", "level2_batch", "heartbeat"}
    assert "not evidence" in first["generated"]


def test_figures_lie_in_the_band_of_an_ordinary_recorded_market(hour: list[bytes]) -> None:
    # One hour holds about six regimes, so its volatility wanders: bands are wide where the hour's luck decides.
    quotes = quotes_of(hour)["BTC-USD"]
    f = figures(quotes.ticker_s, quotes.ticker_mid)
    assert 2.8 < f.tickers_per_s < 4.5
    assert 0.44 < f.ties < 0.54
    assert 0.40 < f.zeros < 0.62
    assert 1.8e-5 < f.std[0] < 5.5e-5
    assert 3.2e-5 < f.std[1] < 1.3e-4
    assert 4.5e-5 < f.std[2] < 2.5e-4


def test_messages_a_second_keep_the_stream_moderate(hour: list[bytes]) -> None:
    kinds = Counter(json.loads(raw)["type"] for raw in hour)
    assert 9 < len(hour) / HOUR < 18
    assert 3 < kinds["l2update"] / HOUR < 7


def test_spikes_can_be_foreseen_a_little_and_never_surely() -> None:
    quotes = quotes_of(raw for _, _, raw in generate(seed=1, seconds=5_400, products=["BTC-USD"]))["BTC-USD"]
    h = latent(seed=1, seconds=5_400, products=["BTC-USD"])["BTC-USD"].h
    score = foresight(quotes.book_s, quotes.book_mid, h, START_NS / 1e9)
    assert abs(score.prevalence - 0.05) < 0.002
    assert 0.08 < score.ewma < 0.6
    assert score.ewma < score.oracle < 0.8


def test_a_longer_hidden_path_begins_with_the_shorter() -> None:
    long, short = simulate(9, "BTC-USD", 5_000), simulate(9, "BTC-USD", 1_000)
    for name in ("regime", "ou", "burst", "h"):
        np.testing.assert_array_equal(getattr(long, name)[:1_000], getattr(short, name))


def test_hidden_path_follows_its_stated_law() -> None:
    path, p = simulate(1, "BTC-USD", 1_000_000), DEFAULT.latent
    share = np.bincount(path.regime, minlength=4) / len(path.regime)
    np.testing.assert_allclose(share, stationary(p), atol=0.06)
    np.testing.assert_allclose(stationary(p) @ regime_matrix(p), stationary(p), atol=1e-12)
    stays = np.diff(np.flatnonzero(np.diff(path.regime)))
    assert abs(stays.mean() / p.dwell_s - 1) < 0.1
    assert abs(path.ou.std() / p.ou_sd - 1) < 0.1
    lag = int(p.ou_half_life_s)
    assert abs(np.corrcoef(path.ou[lag:], path.ou[:-lag])[0, 1] - 0.5) < 0.08
    starts = np.diff(path.burst) + (1 - decay(p.burst_half_life_s)) * path.burst[:-1] > 1e-9
    assert abs(starts.mean() / p.burst_per_s - 1) < 0.15


def test_jump_density_is_that_of_the_drawn_jumps() -> None:
    product, h = DEFAULT.products["ETH-USD"], 0.4
    draws = jump_ticks(rng(1, "x", "y").standard_normal(400_000), np.float64(h), product)
    support = np.arange(1, draws.max() + 1)
    mass = np.exp(jump_log_pmf(support, np.float64(h), product))
    assert abs(mass.sum() - 1) < 1e-9
    seen = np.bincount(draws, minlength=len(support) + 1)[1:] / len(draws)
    np.testing.assert_allclose(seen, mass, atol=5 * np.sqrt(0.25 / len(draws)))
    assert jump_log_pmf(np.array([draws.max() + 1]), np.float64(h), product)[0] == -np.inf


def test_likelihood_of_the_stream_peaks_near_the_true_state(hour: list[bytes]) -> None:
    """Count from the messages what the process says shows; the summed likelihood must find a shift of h by 0."""
    product = DEFAULT.products["BTC-USD"]
    h = latent(seed=11, seconds=HOUR, products=["BTC-USD"])["BTC-USD"].h
    orders: Counter[int] = Counter()
    jumps: dict[int, list[int]] = {}
    wide: Counter[int] = Counter()
    bids: set[int] = set()
    asks: set[int] = set()
    seen_orders: set[str] = set()
    for raw in hour:
        m = json.loads(raw)
        if m["type"] == "snapshot":
            bids, asks = ({round(float(p) * 100) for p, _ in m[side]} for side in ("bids", "asks"))
        elif m["type"] == "match" and m["time"] not in seen_orders:
            seen_orders.add(m["time"])
            orders[(event_us(m) - START_NS // 1000) // 1_000_000] += 1
        elif m["type"] == "l2update":
            before = max(bids)
            for side, price, size in m["changes"]:
                book, ticks = (bids if side == "buy" else asks), round(float(price) * 100)
                book.add(ticks) if float(size) else book.discard(ticks)
            if max(bids) != before:
                second = (event_us(m) - START_NS // 1000) // 1_000_000
                jumps.setdefault(second, []).append(abs(max(bids) - before))
                wide[second] += min(asks) - max(bids) > 1
    shifts = np.arange(-0.6, 0.61, 0.1)
    total = np.zeros(len(shifts))
    for second in range(HOUR):
        moves = np.array(jumps.get(second, []), dtype=np.int64)
        total += log_likelihood(h[second] + shifts, orders[second], len(moves), moves, wide[second], product)
    assert abs(shifts[np.argmax(total)]) < 0.11
    assert total.max() - total[0] > 50
    assert total.max() - total[-1] > 50


def test_envelope_tape_holds_the_generated_messages(tmp_path: Path) -> None:
    summary = write_tape(tmp_path / "raw", seed=2, seconds=60)
    assert summary.path == tmp_path / "raw" / tape_name(2, 60)
    assert list((tmp_path / "raw").iterdir()) == [summary.path]
    with summary.path.open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    expected = list(generate(seed=2, seconds=60))
    assert summary.messages == len(lines) == len(expected) == sum(summary.by_type.values())
    for n, (line, (recv_ns, product, raw)) in enumerate(zip(lines, expected, strict=True), start=1):
        said = json.loads(line)
        assert round(said["ts"] * 1e6) * 1_000 == recv_ns
        assert (said["pair"], said["session"], said["n"]) == (product, summary.session, n)
        assert (said["kind"], said["dialect"], said["raw"].encode()) == ("feed", "exchange", raw)
    assert summary.session == session_id(seed=2, seconds=60)
    assert summary.session.startswith("5eed")
    assert len(summary.session) == 16


def test_raw_tape_is_the_bare_messages_and_twice_gives_equal_bytes(tmp_path: Path) -> None:
    one = write_tape(tmp_path / "a.ndjson", seed=2, seconds=30, form="raw")
    assert one.path.read_bytes().splitlines() == [raw for _, _, raw in generate(seed=2, seconds=30)]
    assert one.bytes_raw == one.path.stat().st_size
    a = write_tape(tmp_path / "b.ndjson.zst", seed=2, seconds=30).path.read_bytes()
    assert a == write_tape(tmp_path / "c.ndjson.zst", seed=2, seconds=30).path.read_bytes()


def test_tape_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        write_tape(tmp_path / "file" / "tape.ndjson.zst", seed=1, seconds=5)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seed": -1, "seconds": 10}, "seed"),
        ({"seed": 1, "seconds": 0}, "seconds"),
        ({"seed": 1, "seconds": 10, "products": ["DOGE-USD"]}, "DOGE-USD"),
        ({"seed": 1, "seconds": 10, "products": []}, "none"),
        ({"seed": 1, "seconds": 10, "start_ns": 5}, "start_ns"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(arguments: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        generate(**arguments)


def test_a_tapes_name_must_say_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.ndjson or \.zst, was a\.ndjson\.gz"):
        write_tape(tmp_path / "a.ndjson.gz", seed=1, seconds=5)
    assert not list(tmp_path.iterdir())
