"""Figures against scikit-learn, and resamples against rows that are really drawn again."""

from __future__ import annotations

import numpy as np
import pytest

from training import gate
from training.bootstrap import MIN_BLOCKS, block_codes, interval, intervals, multipliers, paired
from training.metrics import STATS, Forecast, figures

S = 1_000_000_000


def forecasts(n=3000, seed=0, digits=None, skill=1.0):
    """Log-odds and spikes that follow them; rounding makes ties."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n) - 2.5
    p = 1 / (1 + np.exp(-z))
    y = rng.random(n) < 1 / (1 + np.exp(-(skill * z + (skill - 1) * 2.5)))
    return (p if digits is None else p.round(digits)), y


@pytest.mark.parametrize("digits", [None, 3, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_figures_equal_scikit_learns(digits, weighted):
    from sklearn import metrics as sk

    p, y = forecasts(digits=digits)
    w = np.random.default_rng(5).integers(0, 4, len(p)).astype(float) if weighted else np.ones(len(p))
    ours = figures(p, y, 0.2, weights=w)
    alarm = p >= 0.2
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    rate = np.average(y, weights=w)
    theirs = {
        "pr_auc": sk.average_precision_score(y, p, sample_weight=w),
        "roc_auc": sk.roc_auc_score(y, p, sample_weight=w),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
        "log_loss": sk.log_loss(y, clipped, sample_weight=w),
        "f1": sk.f1_score(y, alarm, sample_weight=w),
        "precision": sk.precision_score(y, alarm, sample_weight=w),
        "recall": sk.recall_score(y, alarm, sample_weight=w),
        "prevalence": rate,
        "brier_skill": 1 - sk.brier_score_loss(y, p, sample_weight=w) / (rate * (1 - rate)),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-11), name
    precision, recall, _ = sk.precision_recall_curve(y, p, sample_weight=w)
    reached = np.flatnonzero(recall >= 0.5 - 1e-12)[-1]  # recall falls along the curve: the last is the highest cut
    assert ours["precision_at_recall50"] == pytest.approx(precision[reached], abs=1e-11)


def test_the_calibration_slope_is_an_unpenalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    p, y = forecasts(skill=0.6)
    logit = np.log(p / (1 - p))
    fit = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000).fit(logit[:, None], y)
    ours = figures(p, y)
    assert ours["calibration_slope"] == pytest.approx(fit.coef_[0, 0], abs=1e-5)
    assert ours["calibration_intercept"] == pytest.approx(fit.intercept_[0], abs=1e-5)


def test_the_calibration_error_is_the_mean_gap_of_ten_equal_bins():
    p, y = forecasts(n=1000)
    order = np.argsort(-p)
    naive = np.mean([abs(p[rows].mean() - y[rows].mean()) for rows in np.split(order, 10)])
    assert figures(p, y)["ece_equal_mass"] == pytest.approx(naive, abs=1e-12)


def test_a_constant_forecast_is_one_bin_whatever_the_order_of_its_rows():
    y = np.arange(1000) < 100
    for truth in (y, y[::-1]):
        found = figures(np.full(1000, 0.1), truth)
        assert found["ece_equal_mass"] == pytest.approx(0.0, abs=1e-12)
        assert (found["pr_auc"], found["roc_auc"]) == (pytest.approx(0.1), pytest.approx(0.5))
        assert found["calibration_slope"] is None


@pytest.mark.parametrize("y", [np.zeros(50, bool), np.ones(50, bool), np.zeros(0, bool)])
def test_what_is_undefined_is_none(y):
    found = figures(np.linspace(0.1, 0.9, len(y)), y)
    assert [found[name] for name in ("pr_auc", "roc_auc", "brier_skill", "log_loss", "calibration_slope")] == [None] * 5
    assert found["lift"] is None


@pytest.mark.parametrize("p", [[0.1, np.nan], [0.1, 1.1], [-0.1, 0.5], [0.5]])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"^p "):
        figures(np.array(p), np.array([True, False]))


def test_perfect_separation_has_no_slope_and_does_not_hang():
    y = np.arange(100) >= 50
    assert figures(np.where(y, 0.9, 0.1), y)["calibration_slope"] is None


def test_weights_of_blocks_measure_what_drawing_their_rows_again_would():
    p, y = forecasts(n=2400)
    t = np.arange(2400) * 10 * S
    codes, blocks = block_codes(t)
    draws = multipliers(blocks, 5, seed=1)
    measured = Forecast(p, y, 0.2, codes=codes).measure(draws)
    for row, counts in zip(measured, draws, strict=True):
        again = np.concatenate([np.flatnonzero(codes == b) for b in range(blocks) for _ in range(int(counts[b]))])
        naive = figures(p[again], y[again], 0.2)
        for name, value in zip(STATS, row, strict=True):
            if name in ("precision_at_recall50", "alarm_rate", "prevalence"):
                continue
            assert value == pytest.approx(naive[name], abs=1e-9), name


def test_blocks_are_quarters_of_the_clock_for_all_products_at_once():
    t = np.array([0, 899, 900, 899, 86_400]) * S
    codes, blocks = block_codes(t)
    assert (codes.tolist(), blocks) == ([0, 0, 1, 0, 2], 3)


def test_under_twenty_blocks_there_is_no_interval():
    p, y = forecasts(n=900 * MIN_BLOCKS // 10)
    t = np.arange(len(p)) * 10 * S
    assert interval("pr_auc", p, y, t, n=200) is not None
    short = t < (MIN_BLOCKS - 1) * 900 * S
    assert interval("pr_auc", p[short], y[short], t[short]) is None
    assert paired("pr_auc", p[short], p[short], y[short], t[short]) is None
    assert intervals(("pr_auc", "log_loss"), p[short], y[short], t[short]) == {"pr_auc": None, "log_loss": None}


def test_spikes_in_one_block_of_many_give_no_interval():
    t = np.arange(0, 40 * 900, 10) * S
    y = np.zeros(len(t), bool)
    y[100:110] = True
    assert interval("pr_auc", np.random.default_rng(0).random(len(t)), y, t) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Percentiles of 40 blocks' mean cover less than 95 %: 0.940 if blocks were normal (1.935 of Student's t at 39
    degrees of freedom), 0.924 seen over 1,000 days of these skewed ones. The bounds are 2.6 deviations around that."""
    from scipy.stats import norm

    covered = 0
    for seed in range(400):
        rng = np.random.default_rng([3, seed])
        level = np.repeat(rng.normal(size=40), 30)  # a quarter of an hour shares its level: rows say nearly one thing
        y = rng.random(1200) < 0.3
        p = norm.cdf(level)
        ends = interval("brier", p, y, np.arange(1200) * 30 * S, n=300, seed=seed)
        assert ends is not None
        covered += ends[0] <= 1 / 3 <= ends[1]  # E (U − y)² = 1/3 − 2 · 0.3 / 2 + 0.3 with U uniform
    assert 0.89 <= covered / 400 <= 0.96


def test_a_better_forecast_is_found_better_and_itself_is_not():
    p, y = forecasts(n=20_000)
    t = np.arange(len(p)) * 2 * S
    noise = np.random.default_rng(1).random(len(p))
    found = paired("pr_auc", p, noise, y, t, n=300)
    assert found is not None
    assert found.low > 0
    assert 0 < found.lower_bound(1e-6) < found.lower_bound(0.025) <= found.low + 1e-9
    same = paired("pr_auc", p, p, y, t, n=300)
    assert same is not None
    assert (same.difference, same.low, same.high, same.lower_bound(0.4)) == (0, 0, 0, 0)


def test_confidence_is_spent_and_never_overspent():
    shares = [gate.spend(0.05, k) for k in range(1, 100_000)]
    assert shares == sorted(shares, reverse=True)
    assert 0.0499 < sum(shares) <= 0.05


def test_an_unknown_figure_is_named():
    p, y = forecasts(n=2000)
    with pytest.raises(ValueError, match="pr_auk"):
        interval("pr_auk", p, y, np.arange(2000) * 20 * S)
