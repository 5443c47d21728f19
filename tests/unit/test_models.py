"""What is fitted, to what, and what a missing value does."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import polars as pl
import pytest

from feature_repo.errors import InsufficientDataError
from ingestion.kernel.label import OPEN
from training import models
from training.artefact import Linear
from training.calibration import best_f1, sigmoid
from training.labels import gaps


def data(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    y = rng.random(n) < 1 / (1 + np.exp(-(x[:, 0] * 1.5 - 3)))
    return x, y


def test_logistic_equals_scikit_learns_own_pipeline():
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = data()
    x[:, 3] = 5.0  # constant
    holes = x.copy()
    holes[::3, 1] = np.nan
    m = msgspec.json.decode(models.logistic(holes, y, list("abcd"), hyper={"scale": "plain"}).model, type=Linear)
    fill = np.nanmedian(holes, axis=0)
    missing = np.isnan(holes)
    ours = ((np.where(missing, fill, holes) - m.mean) / m.scale) @ m.weight + missing @ m.missing_weight + m.intercept
    z = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit_transform(holes)
    design = np.c_[z[:, :3], missing[:, 1]]
    reference = LogisticRegression(C=models.LR["C"], class_weight="balanced", solver="newton-cholesky", tol=1e-12).fit(
        design, y
    )
    assert ours == pytest.approx(reference.decision_function(design), abs=1e-9)
    assert m.weight[3] == 0


def test_a_column_that_is_never_known_has_no_say():
    x, y = data()
    x[:, 2] = np.nan
    fitted = models.logistic(x, y, list("abcd"))
    m = msgspec.json.decode(fitted.model, type=Linear)
    assert m.weight[2] == m.missing_weight[2] == 0
    assert fitted.imputation.indicators == []


def test_the_baseline_reads_the_best_volatility_there_is():
    x = np.arange(20.0).reshape(10, 2)
    fitted = models.zscore(x, ["w60_return_std", "w60_mid_return_std"])
    assert fitted.features == ("w60_mid_return_std",)
    m = msgspec.json.decode(fitted.model, type=Linear)
    assert (m.mean, m.scale) == ([10.0], [np.std(x[:, 1])])
    with pytest.raises(InsufficientDataError, match="baseline"):
        models.zscore(x, ["mid", "spread"])
    with pytest.raises(InsufficientDataError, match="constant"):
        models.zscore(np.ones((10, 1)), ["w60_return_std"])


def test_trees_are_the_same_for_the_same_seed():
    x, y = data()
    a, b = (
        models.boosted(x[:3000], y[:3000], list("abcd"), seed=3, jobs=1, validation=(x[3000:], y[3000:]))
        for _ in range(2)
    )
    assert a.model == b.model
    assert max(a.importance, key=a.importance.__getitem__) == "a"


def test_sigmoid_brings_inflated_odds_back():
    rng = np.random.default_rng(1)
    true = rng.normal(-3, 1, 200_000)
    y = rng.random(true.size) < 1 / (1 + np.exp(-true))
    c = sigmoid(2 * true + 5, y)
    assert c.slope == pytest.approx(0.5, rel=0.05)
    assert c.slope * 5 + c.intercept == pytest.approx(0, abs=0.1)


def test_sigmoid_of_a_separable_block_is_finite_and_of_no_skill_is_the_prevalence():
    y = np.arange(100) >= 90
    c = sigmoid(np.where(y, 50.0, -50.0), y)
    assert math.isfinite(c.slope)
    assert c.slope > 0
    turned = sigmoid(-np.arange(100.0), y)  # anti-skill must not turn the order round
    p = 1 / (1 + np.exp(-(turned.slope * -np.arange(100.0) + turned.intercept)))
    assert turned.slope > 0
    assert p == pytest.approx(0.1, abs=0.02)


def test_best_f1_is_the_best_of_all_cuts():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.integers(0, 8, 30) / 8
        y = rng.random(30) < p
        y[0] = True

        def f1(cut, p=p, y=y):
            alarm = p >= cut
            return 2 * (alarm & y).sum() / (alarm.sum() + y.sum())

        assert f1(best_f1(p, y)) == max(f1(cut) for cut in set(p.tolist()))


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([(2, "start", 20), (5, "end", 50)], [(20, 50)]),
        ([(5, "end", 50), (2, "start", 20)], [(20, 50)]),
        ([(2, "start", 20), (5, "start", 49), (5, "end", 50)], [(20, 50)]),  # one inside another
        ([(7, "end", 70), (7, "start", 65)], [(65, 70)]),  # both edges shown by one message
        ([(7, "end", 70), (7, "start", 70)], [(70, 70)]),  # and at one time
        ([(2, "start", 20), (7, "start", 70), (7, "end", 70)], [(20, 70), (70, OPEN)]),
        ([(9, "end", 90), (11, "start", 110)], [(110, OPEN)]),
        ([], []),
    ],
)
def test_gaps_are_paired_in_log_order(edges, expected):
    rows = pl.DataFrame(
        [{"n": n, "k": 0, "kind": f"gap_{edge}", "event_time_ns": t} for n, edge, t in edges]
        + [{"n": 3, "k": 0, "kind": "quote", "event_time_ns": 30}]
    )
    assert [(int(a), int(b)) for a, b in zip(*gaps(rows), strict=True)] == expected
