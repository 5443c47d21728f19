"""The particle filter of the generated market, and the days it is run on, against naive versions of both."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ingestion.market import START_NS, generate
from ingestion.market.parameters import DEFAULT
from ingestion.market.process import (
    decay,
    jump_ticks,
    log_likelihood,
    move_chance,
    regime_matrix,
    stationary,
    wide_chance,
)
from tests.oracle import market_days
from tests.oracle.market_filter import BURST_NODES, OU_NODES, Horizon, filtered, horizon, known

PRODUCT = "ETH-USD"
SECONDS = 1_500
S = 1_000_000_000


@pytest.fixture(scope="module")
def law() -> Horizon:
    return horizon(PRODUCT, simulations=300)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> market_days.Day:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("days")
        patch.setattr(market_days, "cache", lambda: folder)
        asked = (3, PRODUCT, SECONDS, START_NS)
        market_days.make(*asked)
        return market_days.read(*asked)


def test_day_holds_rows_with_a_full_window_and_a_label(day: market_days.Day) -> None:
    assert day.x.shape == (len(day.t_ns), len(market_days.FEATURES))
    assert (np.diff(day.t_ns) == market_days.EVERY_S * S).all()
    assert day.second[0] >= 900
    assert day.second[-1] < SECONDS - 60
    assert np.isfinite(day.sigma_fwd).all()


def test_day_counts_what_a_naive_reader_sees(day: market_days.Day) -> None:
    orders: dict[int, set[str]] = {}
    moves: Counter[int] = Counter()
    wide: Counter[int] = Counter()
    jumps: list[int] = []
    book: dict[str, set[int]] = {}
    for _, _, raw in generate(seed=3, seconds=SECONDS, products=[PRODUCT]):
        message = json.loads(raw)
        if message["type"] == "snapshot":
            book = {
                "buy": {round(float(p) * 100) for p, _ in message["bids"]},
                "sell": {round(float(p) * 100) for p, _ in message["asks"]},
            }
        if message["type"] not in ("match", "l2update"):
            continue
        when = np.datetime64(message["time"].removesuffix("Z"), "us").astype(np.int64)
        second = int(when - START_NS // 1000) // 1_000_000
        if message["type"] == "match":
            orders.setdefault(second, set()).add(message["time"])
        else:
            before = max(book["buy"])
            for side, price, size in message["changes"]:
                (book[side].add if float(size) else book[side].discard)(round(float(price) * 100))
            if max(book["buy"]) != before:
                moves[second] += 1
                jumps.append(abs(max(book["buy"]) - before))
                wide[second] += min(book["sell"]) - max(book["buy"]) > 1
    shown = day.shown
    assert shown.jumps.tolist() == jumps
    assert shown.orders.tolist() == [len(orders.get(k, ())) for k in range(SECONDS)]
    assert shown.moves.tolist() == [moves[k] for k in range(SECONDS)]
    assert shown.wide.tolist() == [wide[k] for k in range(SECONDS)]


@pytest.mark.slow
def test_filter_agrees_with_a_naive_one(day: market_days.Day, law: Horizon) -> None:
    """A filter in NumPy with exact likelihoods, no altered proposal, and stratified resampling."""
    rows = day.second <= 1_200
    at = day.second[rows]
    threshold = np.full(len(at), np.quantile(day.sigma_fwd * day.mid * 100, 0.6))
    shown = day.shown
    found = filtered(shown.orders, shown.moves, shown.wide, shown.jumps, at, threshold, law, PRODUCT, particles=4_000)
    # The naive one errs for minutes, all its particles being drawn anew each second: six runs were 0.008 to 0.024 off.
    expected = naive(shown, at, threshold[0], law, 2_000)
    assert 0.1 < expected.mean() < 0.9
    assert expected.std() > 0.05
    assert np.corrcoef(found, expected)[0, 1] > 0.98
    assert np.abs(found - expected).mean() < 0.025


def naive(shown: market_days.Shown, at: np.ndarray, threshold: float, law: Horizon, n: int) -> np.ndarray:
    rng, latent = np.random.default_rng(1), DEFAULT.latent
    rho, beta = decay(latent.ou_half_life_s), decay(latent.burst_half_life_s)
    moving = np.cumsum(regime_matrix(latent), axis=1)
    regime = rng.choice(4, size=n, p=stationary(latent) / stationary(latent).sum())
    ou, burst = latent.ou_sd * rng.normal(size=n), np.zeros(n)
    first = np.r_[0, np.cumsum(shown.moves)]
    out = []
    for k in range(int(at.max())):
        if k:
            u = rng.random(n)[:, None]
            regime = (u > moving[regime] - 1e-15).sum(axis=1).clip(max=3)
            ou = rho * ou + latent.ou_sd * np.sqrt(1 - rho**2) * rng.normal(size=n)
            burst = beta * burst + (rng.random(n) < latent.burst_per_s) * rng.exponential(latent.burst_mean, n)
        h = np.asarray(latent.level)[regime] + ou + burst
        jumps = shown.jumps[first[k] : first[k + 1]]
        logs = log_likelihood(
            h, shown.orders[k], shown.moves[k], jumps, shown.wide[k], DEFAULT.products[PRODUCT]
        )
        weight = np.exp(logs - logs.max())
        keep = np.searchsorted(np.cumsum(weight) / weight.sum(), (np.arange(n) + rng.random(n)) / n).clip(max=n - 1)
        regime, ou, burst = regime[keep], ou[keep], burst[keep]
        if k + 1 in at:
            some = slice(0, 1_000)
            same = np.full(1_000, threshold)
            out.append(known(regime[some], ou[some], burst[some], same, law).mean())
    return np.array(out)


def test_horizons_law_is_that_of_slots_drawn_one_by_one(law: Horizon) -> None:
    regime, y, b = 2, 8, 2
    latent, product, n = DEFAULT.latent, DEFAULT.products[PRODUCT], 1_500
    rng = np.random.default_rng(5)
    s, ou, burst = np.full(n, regime), np.full(n, OU_NODES[y]), np.full(n, BURST_NODES[b])
    moving = np.cumsum(regime_matrix(latent), axis=1)
    rho = decay(latent.ou_half_life_s)
    spread, returns = np.ones(n), np.zeros((60, n))
    middle = np.log(product.jump_median * product.price * 100 / 2)
    for k in range(60):
        s = (rng.random(n)[:, None] > moving[s] - 1e-15).sum(axis=1).clip(max=3)
        ou = rho * ou + latent.ou_sd * np.sqrt(1 - rho**2) * rng.normal(size=n)
        burst = decay(latent.burst_half_life_s) * burst
        burst += (rng.random(n) < latent.burst_per_s) * rng.exponential(latent.burst_mean, n)
        h = np.asarray(latent.level)[s] + ou + burst
        for _ in range(20):
            move = rng.random(n) < move_chance(h, product)
            jump = jump_ticks(rng.normal(size=n), h, product) * rng.choice([-1, 1], size=n)
            beyond = np.maximum(np.rint(np.exp(middle + DEFAULT.observation.wide_log_sd * rng.normal(size=n))), 1)
            new = np.where(rng.random(n) < wide_chance(h), 1 + beyond, 1.0)
            returns[k] += np.where(move, jump + (new - spread) / 2, 0.0)
            spread = np.where(move, new, spread)
    sigma, table = np.sort(returns.std(axis=0)), law.sigma[regime, y, b]
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(table, q) / np.quantile(sigma, q) - 1) < 0.1
    chance = law.chances(np.quantile(table, [0.25, 0.75]))[:, regime, y, b]
    np.testing.assert_allclose(chance, [0.75, 0.25], atol=0.01)


def test_known_state_interpolates_the_law(law: Horizon) -> None:
    threshold = np.full(2, np.quantile(law.sigma[3], 0.5))
    ends = law.chances(threshold[:1])[0, 3, 6, :2]
    between = known(np.array([3, 3]), np.full(2, OU_NODES[6]), np.array([0.0, BURST_NODES[1] / 2]), threshold, law)
    np.testing.assert_allclose(between, [ends[0], ends.mean()], atol=1e-9)


def test_source_folder_names_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market_days, "cache", lambda: tmp_path)
    before = market_days.path_of(1, PRODUCT, 60, START_NS)
    monkeypatch.setattr(market_days, "FORMAT", market_days.FORMAT + 1)
    assert market_days.path_of(1, PRODUCT, 60, START_NS).parent != before.parent
