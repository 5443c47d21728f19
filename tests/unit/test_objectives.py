"""Thresholds by objective, against the naive way: try every cut."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.errors import UsageError
from training.objectives import parse

S = 1_000_000_000


def draws(n=40, times=40, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(times):
        p = rng.integers(0, 12, n) / 12
        y = rng.random(n) < p
        y[:2] = True, False
        t = rng.integers(0, 600, n) * S
        yield p, y, t, np.array(["A", "B"])[rng.integers(0, 2, n)]


def best_cut(p, worth):
    """Highest cut of the greatest worth."""
    return max(sorted(set(p.tolist())), key=lambda cut: (worth(cut), cut))


def test_f1_is_the_best_of_all_cuts():
    for p, y, t, _ in draws():

        def f1(cut, p=p, y=y):
            alarm = p >= cut
            return 2 * (alarm & y).sum() / (alarm.sum() + y.sum())

        objective = parse("f1")
        assert objective.threshold(p, y, t) == best_cut(p, f1)
        assert objective.value(p, y, t) == f1(best_cut(p, f1))


@pytest.mark.parametrize(("fp", "fn"), [(1, 1), (1, 20), (5, 1)])
def test_cost_is_the_least_of_all_cuts_and_of_none(fp, fn):
    for p, y, t, _ in draws():

        def cost(cut, p=p, y=y):
            alarm = p >= cut
            return fp * (alarm & ~y).sum() + fn * (~alarm & y).sum()

        objective = parse(f"cost:{fp},{fn}")
        cut = objective.threshold(p, y, t)
        never = fn * y.sum()
        assert cost(cut) == min(never, *(cost(c) for c in p.tolist()))
        assert objective.value(p, y, t) == pytest.approx(-cost(cut) / len(p))


def test_precision_at_recall_keeps_the_recall():
    for p, y, t, _ in draws():
        for recall in (0.01, 0.5, 1.0):

            def precision(cut, p=p, y=y, recall=recall):
                alarm = p >= cut
                return (alarm & y).sum() / alarm.sum() if (alarm & y).sum() >= recall * y.sum() else -1

            assert parse(f"precision@recall:{recall}").threshold(p, y, t) == best_cut(p, precision)


def test_alerts_per_hour_is_the_lowest_cut_before_the_limit_is_passed():
    for p, y, t, products in draws():

        def alerts(cut, p=p, t=t, products=products):
            found = 0
            for product in "AB":
                at = np.sort(t[(p >= cut) & (products == product)])
                found += bool(len(at)) + (np.diff(at) > 60 * S).sum()
            return found

        hours = len(np.unique(t)) / 3600
        for limit in (5, 60, 200, 10_000):
            wanted = 1.0
            for cut in sorted(set(p.tolist()), reverse=True):
                if alerts(cut) > limit * hours:
                    break
                wanted = cut
            objective = parse(f"alerts-per-hour:{limit}")
            assert objective.threshold(p, y, t, products) == wanted
            assert objective.value(p, y, t, products) == (y & (p >= wanted)).sum() / y.sum()


@pytest.mark.parametrize(
    "text",
    ["", "f2", "f1:3", "cost", "cost:1", "cost:0,1", "cost:1,nan", "cost:a,b", "precision@recall:0",
     "precision@recall:1.1", "alerts-per-hour:-1", "alerts-per-hour:inf", "alerts-per-hour:1,2"],
)  # fmt: skip
def test_what_is_no_objective_is_named(text):
    with pytest.raises(UsageError, match=r"--objective .* must be one of f1, cost:FP,FN"):
        parse(text)
