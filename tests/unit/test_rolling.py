"""A rolling tau against the rule as one reads it, and blind to every horizon that has not ended."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import ArtefactError, InsufficientDataError, UsageError
from training.rolling import REASONS, RollingRule, last_tau, rolling_tau
from training.rolling_state import RollingTau, decode, encode, resume, trailing

S = 1_000_000_000


def by_hand(t, seen, sigma, percentile, hours, horizon):
    """One row at a time with numpy's percentile; a reason where there is none."""
    ended = [(u + horizon * S, x) for u, x in zip(seen, sigma, strict=True) if u + horizon * S <= t]
    inside = [(e, x) for e, x in ended if e > t - hours * 3600 * S]
    need = min(1800, hours * 3600 / 2)
    ends = sorted(e for e, _ in inside)
    if not inside or sum(min(b - a, horizon * S) for a, b in pairwise(ends)) < need * S:
        return "history"
    values = np.array([x for _, x in inside])
    tau = np.percentile(values, percentile)
    if tau == 0:
        return "zero"
    allowed = (1 - percentile / 100) * 1.25 + 1 / len(values)
    return "tied" if np.mean(values >= tau * (1 - 1e-9)) > allowed else tau


def run(t, seen, sigma, rule):
    tau, reason = rolling_tau(np.array(t, np.int64), np.array(seen, np.int64), np.array(sigma, float), rule)
    return [REASONS[r] or x for x, r in zip(tau.tolist(), reason.tolist(), strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(0, 100), min_size=1, max_size=120),
    levels=st.sampled_from([(0.0,), (0.0, 1.0), (1.0, 2.0, 3.0), tuple(np.linspace(1, 2, 50))]),
    percentile=st.sampled_from([50.0, 90.0, 95.0, 99.0]),
    hours=st.sampled_from([0.02, 0.1, 0.5]),
    seed=st.integers(0, 9),
)
def test_tau_is_the_percentile_of_what_has_ended_in_the_window(steps, levels, percentile, hours, seed):
    rng = np.random.default_rng(seed)
    seen = np.cumsum(steps) * S
    sigma = rng.choice(levels, len(seen))
    t = rng.integers(0, int(seen[-1] // S) + 300, 40) * S
    shuffled = rng.permutation(len(seen))
    rule = RollingRule(percentile, hours)
    expected = [by_hand(x, seen, sigma, percentile, hours, 60) for x in t]
    assert run(t, seen[shuffled], sigma[shuffled], rule) == expected


def test_a_horizon_counts_from_the_instant_it_ends_and_as_long_as_the_window():
    rule = RollingRule(50, hours=0.05, horizon_s=10)  # three minutes
    seen = np.arange(0, 91) * S  # ends at 10 … 100 s, values all told apart
    sigma = 1.0 + np.arange(91)
    # at 100 s all 91 have ended: the median is the 46th
    assert run([100 * S], seen, sigma, rule) == [46.0]
    # one ns before, the last has not
    assert run([100 * S - 1], seen, sigma, rule) == ["history"]
    # the window is open at its old end: 180 s after the first end, that one is out
    assert run([190 * S - 1], seen, sigma, rule) == [46.0]
    assert run([190 * S], seen, sigma, RollingRule(50, hours=0.05, horizon_s=10)) == ["history"]
    assert run([189 * S, 190 * S], np.arange(0, 121) * S, 1.0 + np.arange(121), rule) == [61.0, 61.5]


@given(seed=st.integers(0, 50), at=st.integers(200, 900))
@settings(max_examples=25, deadline=None)
def test_no_tau_knows_a_horizon_that_has_not_ended(seed, at):
    rng = np.random.default_rng(seed)
    t = np.arange(1000) * S
    sigma = rng.lognormal(0, 1, 1000)
    rule = RollingRule(90, hours=0.1)
    other = np.where(t + 60 * S > at * S, rng.lognormal(3, 1, 1000), sigma)
    same = t <= at * S
    assert np.array_equal(rolling_tau(t, t, sigma, rule)[0][same], rolling_tau(t, t, other, rule)[0][same], True)
    assert not np.array_equal(rolling_tau(t, t, sigma, rule)[0], rolling_tau(t, t, other, rule)[0], True)


def test_a_server_that_goes_on_from_the_state_gives_the_tau_of_training():
    rng = np.random.default_rng(2)
    t = np.cumsum(rng.choice([1, 1, 1, 5, 400], 4000)) * S
    sigma = np.round(rng.lognormal(-11, 1, 4000), 6)  # with ties and zeros
    rule = RollingRule(90, hours=2.0)
    expected, reason = rolling_tau(t, t, sigma, rule)
    now = 2500
    kept = t + rule.horizon_s * S <= t[now]
    server = resume(encode({"A": trailing(t[kept], sigma[kept], rule, int(t[now]))}), rule)["A"]
    waiting = int(kept.sum())  # the next horizon whose label is still to come
    for i in range(now, 4000):
        while t[waiting] + rule.horizon_s * S <= t[i]:
            server.push(int(t[waiting]), float(sigma[waiting]))
            waiting += 1
        assert (server.at(int(t[i])) or np.nan) == pytest.approx(expected[i], rel=0, abs=0, nan_ok=True)
        assert server.why(int(t[i])) == REASONS[reason[i]]
    again = decode(encode({"A": server.state()}))["A"]
    assert all(np.array_equal(a, b) for a, b in zip(again, server.state(), strict=True))


def test_pushing_early_shows_nothing_before_its_time():
    rule = RollingRule(50, hours=0.05)
    server = RollingTau(rule)
    for i in range(300):
        server.push(i * S, 1.0 + i)  # all at once, as from a table
    t = np.arange(300) * S
    expected = rolling_tau(t, t, 1.0 + np.arange(300), rule)[0]
    assert [server.at(i * S) or np.nan for i in range(300)] == pytest.approx(expected.tolist(), nan_ok=True)


def test_time_goes_one_way():
    server = RollingTau(RollingRule(50, hours=1))
    server.push(5 * S, 1.0)
    with pytest.raises(ValueError, match="order of time"):
        server.push(4 * S, 1.0)
    with pytest.raises(ValueError, match="must be >= 0"):
        server.push(6 * S, float("nan"))
    server.at(100 * S)
    with pytest.raises(ValueError, match="go on in time"):
        server.at(99 * S)


@pytest.mark.parametrize(
    ("sigma", "said"), [(np.zeros(4000), "tau is 0"), (np.full(4000, 3e-5), "tied"), (np.ones(40), "must cover 1800 s")]
)
def test_a_product_without_tau_is_told_why(sigma, said):
    t = np.arange(len(sigma)) * S
    with pytest.raises(InsufficientDataError, match=said):
        last_tau(t, sigma, RollingRule(95, hours=1), int(t[-1]), "A")


@pytest.mark.parametrize(
    ("percentile", "hours"), [(0, 1), (100, 1), (95, 0), (95, -1), (95, float("nan")), (95, 0.001)]
)
def test_rules_that_make_no_sense_are_refused(percentile, hours):
    with pytest.raises(UsageError):
        RollingRule(percentile, hours)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"A": {"runs": [[0, 1, 2]], "sigma": ""}}',
        b'{"A": {"runs": [[0, -1, 2]], "sigma": "AAAAAAAA8D8AAAAAAADwPw=="}}',
        b'{"A": {"runs": [[0, 1, 1]], "sigma": "AAAAAAAA+H8="}}',
        b'{"A": {"runs": [[0, 1, 1]], "sigma": "!"}}',
    ],
)
def test_a_damaged_state_is_refused(content):
    with pytest.raises(ArtefactError, match="rolling tau"):
        decode(content)


def test_a_state_of_whole_seconds_is_small():
    t = np.arange(86_400) * S
    content = encode({"A": (t, np.random.default_rng(0).lognormal(-11, 1, 86_400))})
    assert len(content) < 11 * 86_400 + 200
    assert json.loads(content)["A"]["runs"] == [[0, S, 86_400]]
