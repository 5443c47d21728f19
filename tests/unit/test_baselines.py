"""Baselines against the formulas done another way, fitted on what they were given and on nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from feature_repo.contract import SERVICES, WINDOWS
from feature_repo.errors import InsufficientDataError, UsageError
from training.baselines import BASELINES, available, fit

NAMES = tuple(f"w{w}_realized_vol" for w in WINDOWS)
TAU = 1.6e-5


def market(seed, n=4000):
    """Volatilities of nested windows of a series whose level wanders; sigma_fwd of the minute that follows."""
    rng = np.random.default_rng(seed)
    level = np.exp(lfilter([0.04], [1, -0.998], rng.normal(size=n + 1000)) - 11.5)
    r2 = (level * rng.normal(size=n + 1000)) ** 2
    total = np.r_[0, np.cumsum(r2)]
    at = np.arange(900, 900 + n)
    x = np.column_stack([np.sqrt(total[at] - total[at - w]) for w in WINDOWS])
    sigma = np.sqrt((total[at + 60] - total[at]) / 60)
    return x, sigma


@pytest.fixture(scope="module")
def train():
    x, sigma = market(0)
    return x, sigma, sigma >= TAU, np.full(len(sigma), TAU)


def test_prevalence_is_the_share_of_spikes(train):
    x, _, y, _ = train
    assert fit("prevalence", x, NAMES, y).predict_proba(x[:3]) == pytest.approx([y.mean()] * 3)


@pytest.mark.parametrize("name", ["zscore", "persistence", "ewma", "har"])
def test_probabilities_are_right_on_average_and_better_than_the_prevalence(train, name):
    x, sigma, y, tau = train
    model = fit(name, x, NAMES, y, sigma_fwd=sigma, tau=tau)
    p = model.predict_proba(x, tau)
    assert p.mean() == pytest.approx(y.mean(), abs=0.01)
    assert np.mean((p - y) ** 2) < y.mean() * (1 - y.mean())
    assert model.params["slope"] > 0


def test_har_is_the_regression_of_log_volatility_on_log_volatilities(train):
    from sklearn.linear_model import LinearRegression

    x, sigma, y, tau = train
    ours = fit("har", x, NAMES, y, sigma_fwd=sigma, tau=tau)
    theirs = LinearRegression().fit(np.log(x / np.sqrt(WINDOWS)), np.log(sigma))
    assert [ours.params[f"beta_w{w}"] for w in WINDOWS] == pytest.approx(theirs.coef_, rel=1e-8)
    assert ours.params["alpha"] == pytest.approx(theirs.intercept_, rel=1e-8)


def test_ewma_weighs_the_past_as_an_exponential_does(train):
    """Of a variance that is constant inside each stretch, the weights are those of the second-by-second sum."""
    x, sigma, y, tau = train
    model = fit("ewma", x, NAMES, y, sigma_fwd=sigma, tau=tau)
    half_life = model.params["half_life_s"]
    level = np.repeat([4.0, 1.0, 9.0, 2.0], np.diff([0, *WINDOWS]))  # variance by age, youngest first
    row = np.sqrt(np.cumsum(level)[np.array(WINDOWS) - 1]) * 1e-5
    middle = (np.arange(9_000_00) + 0.5) / 1000  # ages in steps of a millisecond
    weight = 0.5 ** (middle / half_life)
    variance = float(np.sum(weight * level[middle.astype(int)]) / np.sum(weight)) * 1e-10
    margin = math.log(math.sqrt(variance) / TAU)
    expected = model.params["slope"] * margin + model.params["intercept"]
    assert model.margin(row[None], np.array([TAU]))[0] == pytest.approx(expected, rel=1e-4)


def test_persistence_compares_the_last_minute_with_each_rows_own_tau(train):
    x, sigma, y, tau = train
    model = fit("persistence", x, NAMES, y, sigma_fwd=sigma, tau=tau)
    p = model.predict_proba(np.repeat(x[:1], 3, axis=0), np.array([1e-5, 2e-5, 4e-5]))
    assert p[0] > p[1] > p[2]
    doubled = model.predict_proba(2 * x[:50], 2 * tau[:50])
    assert doubled == pytest.approx(model.predict_proba(x[:50], tau[:50]), rel=1e-9)
    with pytest.raises(UsageError, match="pass the rows' tau"):
        model.predict_proba(x)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_missing_and_quiet_windows_still_get_a_probability(train, name):
    x, sigma, y, tau = train
    model = fit(name, x, NAMES, y, sigma_fwd=sigma, tau=tau)
    odd = x[:3].copy()
    odd[0], odd[1], odd[2, 1] = np.nan, 0.0, np.nan
    p = model.predict_proba(odd, tau[:3])
    assert ((p > 0) & (p < 1)).all()
    if name != "prevalence":
        assert p[1] < p[0]  # a market that did not move is quieter than the middling one that stands for a missing


def test_constant_missing_and_one_sided_training_is_refused(train):
    x, sigma, y, tau = train
    for bad in (np.full_like(x, 1e-5), np.full_like(x, np.nan), np.zeros_like(x)):
        with pytest.raises(InsufficientDataError, match="constant or missing"):
            fit("har", bad, NAMES, y, sigma_fwd=sigma, tau=tau)
    for one in (np.zeros(len(y), bool), np.ones(len(y), bool)):
        with pytest.raises(InsufficientDataError, match="at least 1 spike"):
            fit("zscore", x, NAMES, one)
    with pytest.raises(UsageError, match="sigma_fwd"):
        fit("har", x, NAMES, y)
    with pytest.raises(UsageError, match="must be one of"):
        fit("arima", x, NAMES, y)
    with pytest.raises(InsufficientDataError, match="choose another service"):
        fit("zscore", x[:, :1], ("mid",), y)


def test_a_column_that_says_nothing_is_passed_over_for_the_next_best(train):
    x, sigma, y, tau = train
    names = ("w60_realized_vol", "w60_return_std", "w300_realized_vol")
    for nothing in (np.nan, 0.0, 3e-5):
        odd = np.column_stack([np.full(len(x), nothing), x[:, 1], x[:, 2]])
        har = fit("har", odd, names, y, sigma_fwd=sigma, tau=tau)
        same = fit("har", odd[:, 1:], names[1:], y, sigma_fwd=sigma, tau=tau)
        assert har.params == pytest.approx(same.params)
        assert sorted(har.params) == ["alpha", "beta_w300", "beta_w60", "intercept", "slope"]


def test_each_service_has_the_baselines_its_features_allow():
    assert available(SERVICES["spike_model_v1"]) == tuple(BASELINES)
    assert "har" in available(SERVICES["spike_core_v1"])
    assert available(("mid", "spread")) == ("prevalence",)
