"""The split is in time, and nothing on one side of it can have seen the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError
from training.splits import BLOCKS, chronological

S = 1_000_000_000


def members(split, t):
    return {name: t[split.of(name)] for name in BLOCKS}


@settings(max_examples=50, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 400)), min_size=1, max_size=8),
    copies=st.integers(1, 3),
    ratios=st.sampled_from([(0.7, 0.15, 0.15), (0.4, 0.3, 0.3), (0.9, 0.05, 0.05)]),
)
def test_blocks_follow_each_other_a_purge_apart_and_every_row_is_counted(pieces, copies, ratios):
    clock, times = 0, []
    for pause, length in pieces:
        clock += pause
        times.append(np.repeat(clock + np.arange(length), copies))
        clock += length
    t = np.random.default_rng(len(pieces)).permutation(np.concatenate(times)) * S
    try:
        split = chronological(t, ratios)
    except InsufficientDataError:
        # some three rows with purges between them would have been a split
        first = t.min()
        second = t[t >= first + PURGE_S * S]
        assert len(second) == 0 or not (t >= second.min() + PURGE_S * S).any()
        return
    held = members(split, t)
    for earlier, later in (("train", "validation"), ("validation", "test")):
        assert held[later].min() - held[earlier].max() >= PURGE_S * S
    assert sum(map(len, held.values())) + split.lost == len(t)
    assert [split[b].rows for b in BLOCKS] == [len(held[b]) for b in BLOCKS]
    assert all(len(h) for h in held.values())


def test_rows_keep_their_ratio_after_the_purge():
    t = np.arange(20_000, dtype=np.int64) * S
    split = chronological(t)
    kept = np.array([split[b].rows for b in BLOCKS]) / (20_000 - split.lost)
    assert kept == pytest.approx([0.7, 0.15, 0.15], abs=0.001)
    assert split.lost == 2 * (PURGE_S - 1)  # a row exactly 960 s later may be used


def test_recordings_hours_apart_lose_nothing():
    t = np.concatenate([np.arange(70), 50_000 + np.arange(15), 90_000 + np.arange(15)]).astype(np.int64) * S
    split = chronological(t)
    assert [split[b].rows for b in BLOCKS] == [70, 15, 15]
    assert split.lost == 0


def test_a_tape_shorter_than_two_purges_is_refused():
    with pytest.raises(InsufficientDataError, match="1920 s"):
        chronological(np.arange(1900, dtype=np.int64) * S)
    with pytest.raises(InsufficientDataError):
        chronological(np.empty(0, np.int64))


@pytest.mark.parametrize("ratios", [(0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_ratios_that_are_no_shares_are_refused(ratios):
    with pytest.raises(UsageError, match="sum to 1"):
        chronological(np.arange(9000, dtype=np.int64) * S, ratios)
