"""What the gate says to which evidence, and why."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from training import curves
from training.events_view import events
from training.gate import Comparison, Contest, Limits, Objection, compare, objections

S = 1_000_000_000
LIMITS = Limits(20.0, 50.0)
OWN = {"pr_auc": 0.3, "prevalence": 0.1, "ece_equal_mass": 0.02, "brier_skill": 0.1}
CHAMPION = OWN | {"pr_auc": 0.2, "ece_equal_mass": 0.03}
GOOD = Contest(
    opponent="champion 3",
    p99_ms=1.0,
    size_mb=0.1,
    rows=1000,
    spikes=100,
    episodes=30,
    blocks=40,
    attempt=2,
    challenger=OWN,
    against=CHAMPION,
    baseline=OWN | {"pr_auc": 0.25},
    baseline_name="har",
    comparison=Comparison(0.1, 0.05, 0.15, 0.02, 0.01, 40, 30),
)
NOT_SURE = Comparison(0.1, -0.01, 0.2, -0.03, 0.01, 40, 30)


def test_good_evidence_passes():
    assert objections(GOOD, LIMITS) == []


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"comparison": NOT_SURE}, ["NOT_BETTER"]),
        ({"comparison": None, "blocks": 12}, ["INSUFFICIENT_EVIDENCE"]),
        ({"comparison": None}, ["INSUFFICIENT_EVIDENCE"]),
        ({"episodes": 19}, ["INSUFFICIENT_EVIDENCE"]),
        ({"challenger": OWN | {"pr_auc": 0.24}}, ["BELOW_BASELINE"]),
        ({"challenger": OWN | {"prevalence": 0.31}}, ["BELOW_PREVALENCE"]),
        ({"challenger": OWN | {"ece_equal_mass": 0.031}}, ["CALIBRATION_WORSE"]),
        ({"challenger": OWN | {"brier_skill": 0.0}}, ["CALIBRATION_WORSE"]),
        # as good as the project asks of itself, though the champion is better still
        ({"challenger": OWN | {"ece_equal_mass": 0.024}, "against": CHAMPION | {"ece_equal_mass": 0.001}}, []),
        ({"p99_ms": 21.0}, ["TOO_SLOW"]),
        ({"size_mb": 51.0}, ["TOO_LARGE"]),
        ({"audit": ("LABEL_COLUMN (leak): w60",)}, ["AUDIT_FAILED"]),
        ({"comparison": None, "refused": (Objection("HASH_DIFFERS", "x"),)}, ["HASH_DIFFERS"]),
        ({"comparison": NOT_SURE, "p99_ms": 21.0, "audit": ("x",)}, ["AUDIT_FAILED", "NOT_BETTER", "TOO_SLOW"]),
    ],
)
def test_each_shortcoming_has_its_code(changes, codes):
    found = objections(dataclasses.replace(GOOD, **changes), LIMITS)
    assert [o.code for o in found] == codes


def test_thin_evidence_says_what_there_was_and_why_the_rest_was_none():
    lost = {"in sealed blocks that were opened for other runs": 4321}
    [said] = objections(dataclasses.replace(GOOD, comparison=None, episodes=0, blocks=2, left_out=lost), LIMITS)
    assert "2 blocks of 15 minutes" in said.text
    assert "4,321 rows in sealed blocks" in said.text


def stream(n=6000, seed=0):
    rng = np.random.default_rng(seed)
    z = np.repeat(rng.normal(size=n // 10), 10) - 2
    y = rng.random(n) < 1 / (1 + np.exp(-z))
    return z, y, np.arange(n) * 10 * S, rng


def test_a_clearly_better_challenger_passes_at_any_reasonable_attempt_and_an_equal_one_does_not():
    z, y, t, rng = stream()
    p = 1 / (1 + np.exp(-z))
    noise = rng.random(len(z))
    better = compare(p, noise, y, t, 1e-4, resamples=300)
    assert better is not None
    assert better.lower_bound > 0
    equal = compare(p, np.minimum(p * 1.0000001, 1), y, t, 0.5, resamples=300)
    assert equal is not None
    assert equal.lower_bound <= 0
    assert compare(p[:500], noise[:500], y[:500], t[:500], 0.5) is None


def rows(spikes, product="A", seconds=None):
    t = np.arange(len(spikes)) if seconds is None else np.array(seconds)
    return pl.DataFrame({"product_id": [product] * len(t), "event_time_ns": t * S, "spike": np.array(spikes, bool)})


def test_episodes_and_alerts_a_horizon_apart_are_two():
    spikes = np.zeros(400, bool)
    spikes[[10, 11, 70, 200]] = True  # 11 and 70 are 59 s apart, 70 and 200 are not
    alarm = np.zeros(400, bool)
    alarm[[70, 71, 300, 361]] = True
    found = events(rows(spikes), alarm)
    assert (found.episodes, found.caught, found.alerts, found.false_alerts) == (2, 1, 3, 2)
    assert found.lead_s == (0.0,)  # 60 s after its first row, the first alarm
    assert found.hours == pytest.approx(400 / 3600)
    assert found.false_alerts_per_hour == pytest.approx(2 / (400 / 3600))


def test_products_have_episodes_of_their_own_but_share_the_clock():
    both = pl.concat([rows([True] * 5), rows([True] * 5, "B")])
    found = events(both, np.array([True] * 5 + [False] * 5))
    assert (found.episodes, found.caught, found.median_lead_s) == (2, 1, 60.0)
    assert found.hours == pytest.approx(5 / 3600)


def test_nothing_to_see_is_nothing_and_no_error():
    found = events(rows([False] * 5), np.zeros(5, bool))
    assert (found.episodes, found.alerts, found.median_lead_s) == (0, 0, None)
    assert events(rows([]), np.zeros(0, bool)).false_alerts_per_hour is None


def test_curves_end_where_they_must_and_follow_scikit_learn():
    from sklearn.metrics import precision_recall_curve

    z, y, _, _ = stream(seed=3)
    p = 1 / (1 + np.exp(-z))
    drawn = curves.precision_recall(p, y)
    assert len(drawn) <= curves.POINTS + 2
    assert drawn[-1] == (1.0, pytest.approx(y.mean()))
    precision, recall, _ = precision_recall_curve(y, p)
    points = set(zip(recall.round(9), precision.round(9), strict=True))
    assert {(round(a, 9), round(b, 9)) for a, b in drawn} <= points
    assert curves.roc(p, y)[0] == (0, 0)
    assert curves.roc(p, y)[-1] == (1, 1)
    assert curves.roc(p, np.zeros(len(y), bool)) == curves.precision_recall(p, np.zeros(len(y), bool)) == []


def test_acting_on_true_probabilities_never_costs_more_than_not_listening():
    z, y, _, _ = stream(n=60_000, seed=4)
    assert all(cost < 1.01 for _, cost in curves.costs(1 / (1 + np.exp(-z)), y))
    shouting = [cost for ratio, cost in curves.costs(np.full(len(y), 0.9), y) if ratio < 3]
    assert min(shouting) > 1


def test_skill_fades_with_age_and_luck_is_about_the_prevalence():
    z, y, t, _ = stream(seed=5)
    p = 1 / (1 + np.exp(-z))
    aged = dict(curves.shifted(p, y, t, np.array(["A"] * len(y))))
    assert aged[0] > aged[60] > aged[600]
    dealt = curves.by_luck(p, y, t, n=50)
    assert abs(np.mean(dealt) - y.mean()) < 0.03
    assert max(dealt) < aged[0]
    assert curves.by_luck(p[:100], y[:100], t[:100]) == []


def test_reliability_lies_on_the_diagonal_where_forecasts_are_true():
    z, y, t, _ = stream(n=60_000, seed=6)
    bins = curves.reliability(1 / (1 + np.exp(-z)), y, t)
    assert sum(b.rows for b in bins) == 60_000
    assert sum(b.low <= b.forecast <= b.high for b in bins) >= 8
