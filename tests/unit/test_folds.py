"""Folds only test on what came later, a purge apart, whatever the times look like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError
from training.folds import PurgedFolds, usable

S = 1_000_000_000


@settings(max_examples=80, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 600)), min_size=1, max_size=8),
    copies=st.integers(1, 3),
    n_splits=st.integers(1, 6),
    purge_s=st.sampled_from([0, 1, 60, PURGE_S]),
    seed=st.integers(0, 3),
)
def test_train_ends_a_purge_before_its_test_and_grows(pieces, copies, n_splits, purge_s, seed):
    clock, times = 0, []
    for pause, length in pieces:
        clock += pause
        times.append(np.repeat(clock + np.arange(length), copies))
        clock += length
    t = np.random.default_rng(seed).permutation(np.concatenate(times)) * S
    try:
        folds = list(PurgedFolds(n_splits, purge_s).split(t.reshape(-1, 1), groups=t))
    except InsufficientDataError:
        # not for want of rows: k + 1 equal shares with a purge would have needed a longer clock or more instants
        assert len(np.unique(t)) < 3 * (n_splits + 1) or t.max() - t.min() < 3 * (n_splits + 1) * purge_s * S
        return
    assert len(folds) == n_splits == PurgedFolds(n_splits, purge_s).get_n_splits(t)
    for train, test in folds:
        assert len(train)
        assert len(test)
        assert t[train].max() < t[test].min()
        assert t[train].max() <= t[test].min() - purge_s * S
    for (train, test), (later_train, later_test) in pairwise(folds):
        assert set(train) <= set(later_train)
        assert t[test].max() < t[later_test].min()
    rest = np.concatenate([test for _, test in folds])
    assert np.array_equal(np.sort(t[rest]), np.sort(t[t >= t[folds[0][1]].min()]))  # every later row is tested once


def test_every_row_that_may_be_trained_on_is():
    t = np.arange(20_000) * S
    for train, test in PurgedFolds(4).split(t, groups=t):
        assert np.array_equal(np.sort(train), np.flatnonzero(t <= t[test].min() - PURGE_S * S))


def test_scikit_learn_takes_it_for_a_splitter():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    rng = np.random.default_rng(0)
    t = np.arange(9_000) * S
    x = rng.normal(size=(9_000, 2))
    y = x[:, 0] + rng.normal(size=9_000) > 1
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=PurgedFolds(3), scoring="roc_auc")
    search.fit(x, y, groups=t)
    assert search.n_splits_ == 3
    assert search.best_score_ > 0.7
    folds, reasons = usable(t, y, n_splits=3)
    scores = cross_val_score(LogisticRegression(C=search.best_params_["C"]), x, y, cv=folds, scoring="roc_auc")
    assert reasons == []
    assert scores.mean() == pytest.approx(search.best_score_, abs=1e-12)


def test_a_fold_without_positives_is_left_out_and_said():
    t = np.arange(12_000) * S
    folds = list(PurgedFolds(3).split(t, groups=t))
    y = np.zeros(12_000, bool)
    y[folds[0][0][:10]] = y[folds[0][1][:10]] = y[folds[2][1][:10]] = True
    kept, reasons = usable(t, y, n_splits=3)
    assert [np.array_equal(a[1], b[1]) for a, b in zip(kept, (folds[0], folds[2]), strict=True)] == [True, True]
    [reason] = reasons
    assert "fold 2 of 3" in reason
    assert "test part has 0 spikes" in reason


@pytest.mark.parametrize("y", [np.zeros(12_000, bool), np.ones(12_000, bool)])
def test_no_spikes_and_all_spikes_leave_no_fold(y):
    t = np.arange(12_000) * S
    with pytest.raises(InsufficientDataError, match="no fold is left"):
        usable(t, y)


def test_an_hour_reaches_for_five_folds_but_a_purge_does_not():
    hour, short = np.arange(3_600) * S, np.arange(960) * S
    assert len(list(PurgedFolds().split(hour, groups=hour))) == 5
    with pytest.raises(InsufficientDataError, match="smaller --n-splits"):
        list(PurgedFolds().split(short, groups=short))


@pytest.mark.parametrize(
    ("x", "groups"),
    [
        (np.zeros((5, 2)), None),
        (np.zeros((5, 2)), np.arange(4)),
        (np.zeros((5, 2)), np.arange(5) / 2),
        (np.zeros((5, 2)), np.zeros((5, 2), int)),
    ],
)
def test_times_must_be_there_and_one_per_row(x, groups):
    with pytest.raises(UsageError, match="groups"):
        list(PurgedFolds(2).split(x, groups=groups))


@pytest.mark.parametrize(("n_splits", "purge_s"), [(0, 960), (3, -1), (3, float("nan"))])
def test_numbers_that_make_no_sense_are_refused(n_splits, purge_s):
    with pytest.raises(UsageError):
        PurgedFolds(n_splits, purge_s)
