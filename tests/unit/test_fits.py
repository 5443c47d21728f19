"""Fits against public ones: soft logistic regression, isotonic calibration, scores; and what folds may know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training import calibration, crossval, folds, models
from training.artefact import Calibration
from training.design import Design
from training.logit import Logit
from training.objectives import parse

S = 1_000_000_000


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("balanced", [True, False])
def test_soft_targets_are_rows_of_both_classes_by_weight(balanced):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    target = sigmoid(z[:, 0] - 2 + rng.normal(size=500))
    ours = Logit(0.3, balanced=balanced).fit(z, target)
    n, mass = len(z), target.sum()
    up, down = (n / (2 * mass), n / (2 * (n - mass))) if balanced else (1, 1)
    theirs = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-12).fit(
        np.vstack([z, z]), np.r_[np.ones(n), np.zeros(n)], np.r_[up * target, down * (1 - target)]
    )
    assert ours.margin(z) == pytest.approx(theirs.decision_function(z), abs=1e-6)


def test_a_fit_goes_on_from_the_last_one_to_the_same_end():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2000, 5))
    y = rng.random(2000) < sigmoid(z[:, 0] - 3)
    warm = Logit(1e-4, balanced=True).fit(z, y)
    warm.C = 1.0
    assert warm.fit(z, y).coef_ == pytest.approx(Logit(1.0, balanced=True).fit(z, y).coef_, abs=1e-7)


def test_separable_rows_stay_finite():
    z = np.arange(100.0)[:, None]
    fitted = Logit(1e6, balanced=True).fit(z, z[:, 0] > 90)
    assert np.isfinite(fitted.coef_).all()
    assert ((fitted.margin(z) > 0) == (z[:, 0] > 90)).all()


def test_design_stands_constant_empty_and_infinite_ranges():
    rng = np.random.default_rng(2)
    x = np.c_[np.full(300, np.nan), np.full(300, 7.0), np.exp(rng.normal(size=300) * 5), np.zeros(300)]
    x[::7, 2] = np.nan
    design = Design.fit(x, log=True)
    z = design.apply(x)
    assert design.usable.tolist() == [False, False, True, False]
    assert design.indicated.tolist() == [False, False, True, False]
    assert z.shape == (300, 2)
    assert z[:, 0].mean() == pytest.approx(0, abs=1e-12)
    assert z[:, 0].std() == pytest.approx(1)
    spread = np.log(x[~np.isnan(x[:, 2]), 2])
    assert np.corrcoef(z[~np.isnan(x[:, 2]), 0], spread)[0, 1] > 0.9  # nearly its logarithm


def test_the_artefact_sees_what_the_design_made():
    import msgspec

    from training import artefact as art

    rng = np.random.default_rng(3)
    x = np.exp(rng.normal(size=(400, 3)) * 3) * [1, -1, 1e-5]
    x[::5, 1] = np.nan
    y = rng.random(400) < sigmoid(np.log(x[:, 0]) / 2 - 1)
    names = ["w60_realized_vol", "w60_mid_return_mean", "w300_realized_vol"]
    fitted = models.logistic(x, y, names)
    linear = msgspec.json.decode(fitted.model, type=art.Linear)
    assert all(unit > 0 for unit in linear.log)
    design = Design.fit(x, log=True)
    direct = models.solver(models.LR).fit(design.apply(x), y.astype(float)).margin(design.apply(x))
    assert margin(fitted, x, names) == pytest.approx(direct, abs=1e-9)


def margin(fitted, x, names):
    from feature_repo import contract
    from training import artefact as art

    manifest = art.Manifest(
        name="m", kind="lr", service=art.Service("spike_full_v1", contract.service_hash("spike_full_v1")),
        features=names, feature_hash=contract.feature_hash(names),
        label=art.Label(art.Rule("percentile", 95.0), {"A": 1.0}), threshold=0.5, calibration=art.Calibration(),
        imputation=fitted.imputation, training=art.Training({}, ["A"], [], 900.0, 960), data={}, metrics={}, seeds={},
        versions={},
    )  # fmt: skip
    return art.Artefact(manifest, "", fitted.model).margin(x)


def test_softened_targets_keep_the_truth_where_it_is_clear():
    y = np.array([False, False, True, True])
    excess = np.array([-math.inf, -0.01, 0.0, 3.0])
    soft = models.softened(y, excess, 0.2)
    assert soft[0] < 1e-20
    assert soft[1:3] == pytest.approx([0.4875, 0.5], abs=1e-3)
    assert soft[3] > 0.999
    assert models.softened(y, excess, 0.0).tolist() == models.softened(y, None, 0.2).tolist() == [0, 0, 1, 1]


def test_hard_targets_weigh_as_xgboosts_own_scale_pos_weight():
    import xgboost

    rng = np.random.default_rng(4)
    x = rng.normal(size=(1000, 4))
    y = x[:, 0] + rng.normal(size=1000) > 1.5
    params = {"tree_method": "hist", "max_bin": 32, "objective": "binary:logistic", "nthread": 1, "max_depth": 3}
    ours, theirs = (xgboost.QuantileDMatrix(x, y, max_bin=32) for _ in range(2))
    models.aim(ours, y, None, 0.3)
    a = models.grow({**params, "soft": 0.3}, ours, rounds=10).predict(ours)
    b = xgboost.train({**params, "scale_pos_weight": (~y).sum() / y.sum()}, theirs, 10).predict(theirs)
    assert a == pytest.approx(b, abs=1e-5)
    excess = x[:, 0] - 1.5
    models.aim(ours, y, excess, 0.3)
    label, weight = ours.get_label(), ours.get_weight()
    assert label * weight == pytest.approx((~y).sum() / y.sum() * sigmoid(excess / 0.3), rel=1e-5)
    assert (1 - label) * weight == pytest.approx(1 - sigmoid(excess / 0.3), abs=1e-5)


def test_isotonic_goes_through_the_centres_of_scikit_learns_steps():
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(5)
    m = np.round(rng.normal(size=3000), 2)
    y = rng.random(3000) < sigmoid(m**3)
    found = calibration.isotonic(m, y)
    steps = IsotonicRegression().fit(m, y).predict(m)
    for value in np.unique(steps)[1:-1]:
        centre = m[steps == value].mean()
        if centre in found.margins:
            assert sigmoid(found.apply(np.array([centre])))[0] == pytest.approx(value, abs=0.5 / (steps == value).sum())
    line = found.apply(np.linspace(-9, 9, 500))
    assert (np.diff(line) > 0).all()  # no ties, inside and beyond


@pytest.mark.parametrize("y", [[True, False], [False, True, False, True], [True] * 3 + [False]])
def test_isotonic_of_hardly_any_rows_is_finite(y):
    y = np.array(y)
    for m in (np.arange(float(len(y))), -np.arange(float(len(y))), np.zeros(len(y))):
        found = calibration.isotonic(m, y)
        assert np.isfinite(found.apply(np.array([-1e6, 0.0, 1e6]))).all()
        assert np.diff(found.margins).min(initial=1) > 0
        assert np.diff(found.log_odds).min(initial=1) > 0


def test_validation_prefers_the_curve_that_fits():
    rng = np.random.default_rng(6)
    m = rng.normal(size=20_000)
    t = np.arange(20_000) * S
    straight = rng.random(m.size) < sigmoid(2 * m - 1)
    bent = rng.random(m.size) < 0.02 + 0.3 * sigmoid(6 * m)
    assert calibration.preferred(m, straight, t).method == "sigmoid"
    assert calibration.preferred(m, bent, t).method == "isotonic"


def test_calibration_without_points_is_the_line():
    assert Calibration("sigmoid", 2.0, 1.0).apply(np.array([3.0])).tolist() == [7.0]


def data(n=5000, seed=7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    x[:, 3], x[:, 4] = np.nan, 1.0
    excess = x[:, 0] - 1.6 + 0.5 * rng.normal(size=n)
    return x, excess >= 0, np.arange(n) * S, np.full(n, "A"), excess


@pytest.mark.parametrize("kind", ["lr", "xgb"])
def test_forecasts_of_a_fold_know_nothing_of_what_comes_later(kind):
    x, y, t, products, excess = data()
    cut, _ = folds.usable(t, y, n_splits=3)

    def forecast(x, y, excess):
        return crossval.out_of_fold(
            kind, x, y, t, products, cut, hyper={}, objective=parse("f1"), purge_s=960, seed=1, excess=excess
        )

    first = forecast(x, y, excess)
    later = t >= t[cut[1][1]].min()
    changed_x, changed = x.copy(), excess.copy()
    changed_x[later], changed[later] = np.flipud(x[later]), np.flipud(excess[later])
    second = forecast(changed_x, changed >= 0, changed)
    known = first.rows < np.flatnonzero(later)[0]
    if kind == "lr":  # how many trees there are is chosen over all folds together
        assert first.p[known].tolist() == second.p[known].tolist()
    assert not np.array_equal(first.p[~known], second.p[~known])
    assert known.sum() == len(cut[0][1])


@pytest.mark.parametrize("kind", ["lr", "xgb"])
def test_forecasts_of_folds_are_probabilities_with_skill(kind):
    from sklearn.metrics import average_precision_score

    x, y, t, products, excess = data(9000)
    cut, _ = folds.usable(t, y, n_splits=3)
    found = crossval.out_of_fold(
        kind, x, y, t, products, cut, hyper={}, objective=parse("f1"), purge_s=960, seed=1, excess=excess
    )
    assert average_precision_score(y[found.rows], found.p) > 4 * y.mean()
    assert found.p.mean() == pytest.approx(y[found.rows].mean(), rel=0.4 if kind == "lr" else 0.9)
    each = [average_precision_score(y[test], found.p[np.isin(found.rows, test)]) for _, test in cut]
    assert found.folds == pytest.approx(each, abs=1e-4)


def test_trees_of_a_long_fold_grow_on_a_part_and_score_all(monkeypatch):
    monkeypatch.setattr(crossval, "TREE_ROWS", 1000)
    x, y, t, products, excess = data()
    cut, _ = folds.usable(t, y, n_splits=2)
    train, test = cut[-1]
    fold = crossval.TreeFold(x, y, excess, train, test)
    assert len(fold.train) == 1000
    assert np.isin(fold.train, train).all()
    assert (np.diff(fold.train) > 0).all()
    found = crossval.out_of_fold(
        "xgb", x, y, t, products, cut, hyper={}, objective=parse("f1"), purge_s=960, seed=1, excess=excess
    )
    assert len(found.p) == sum(len(b) for _, b in cut)


def test_average_precision_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(8)
    for _ in range(30):
        m = rng.integers(0, 9, 60).astype(float)
        y = rng.random(60) < 0.3
        y[0] = True
        score = crossval.scorer(parse("f1"), y, np.zeros(60, np.int64), np.full(60, "A"))
        assert score(m) == pytest.approx(average_precision_score(y, m), abs=1e-12)


def test_the_number_of_trees_is_best_over_all_folds_together():
    assert crossval.together([[1, 5, 4], [1, 2, 9]]) == (3, 6.5)
    assert crossval.together([[3, 1], [1, 2, 2, 2]]) == (1, 2.0)
