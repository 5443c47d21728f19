"""The split is in time, and nothing on one side of it can have seen the other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError
from training.splits import BLOCKS, LOST, by_session, chronological, whole_sessions

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


sessions_of_rows = st.lists(
    st.tuples(st.integers(-3_000, 9_000), st.integers(30, 4_000)), min_size=3, max_size=6
)  # pause after the session before (negative: they overlap), length


def recording(pieces):
    """Times and sessions of rows, a row every 7 s, sessions that may overlap."""
    clock, times, names = 0, [], []
    for i, (pause, length) in enumerate(pieces):
        clock += pause
        t = clock + np.arange(0, length, 7)
        times.append(t)
        names.append(np.full(len(t), f"s{i}"))
        clock += length
    return np.concatenate(times) * S, np.concatenate(names)


def nearest_s(split, t):
    """Least distance between rows of two blocks, by trying all pairs."""
    return min(np.abs(t[split.of(a)][:, None] - t[split.of(b)][None, :]).min() / S for a, b in combinations(BLOCKS, 2))


@settings(max_examples=40, deadline=None)
@given(pieces=sessions_of_rows, purge_s=st.sampled_from([60, 300, PURGE_S]))
def test_parts_of_sessions_are_a_purge_apart_and_in_time_within_each(pieces, purge_s):
    t, session = recording(pieces)
    try:
        split = by_session(t, session, purge_s=purge_s)
    except InsufficientDataError:
        return
    assert nearest_s(split, t) >= purge_s
    assert sum(split[b].rows for b in BLOCKS) + split.lost == len(t)
    for name in np.unique(session):
        mine = split.member[session == name]
        assert (np.diff(mine[mine != LOST][np.argsort(t[session == name][mine != LOST])]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(pieces=sessions_of_rows, order=st.permutations([0, 1, 2]), purge_s=st.sampled_from([60, PURGE_S]))
def test_whole_sessions_lose_only_what_is_near_a_later_block(pieces, order, purge_s):
    t, session = recording(pieces[:3])
    chosen = {b: [f"s{i}"] for b, i in zip(BLOCKS, order, strict=True)}
    try:
        split = whole_sessions(t, session, chosen, purge_s=purge_s)
    except InsufficientDataError:
        return
    assert nearest_s(split, t) >= purge_s
    given = {b: session == names[0] for b, names in chosen.items()}
    assert (split.of("test") == given["test"]).all()
    for block, later in (("validation", ("test",)), ("train", ("validation", "test"))):
        others = t[np.logical_or.reduce([split.of(b) for b in later])]
        for row in np.flatnonzero(given[block] & ~split.of(block)):
            assert np.abs(others - t[row]).min() < purge_s * S


def test_a_session_too_short_for_three_blocks_is_left_out_and_named():
    t = np.r_[np.arange(9_000), 50_000 + np.arange(1_000)] * S
    session = np.repeat(["long", "short"], [9_000, 1_000])
    split = by_session(t, session)
    assert not split.of("train")[session == "short"].any()
    assert split.lost == 2 * (PURGE_S - 1) + 1_000
    assert "session short is left out" in split.warnings[0]
    with pytest.raises(InsufficientDataError, match="session short"):
        by_session(t[9_000:], session[9_000:])


def test_training_on_what_came_later_is_said():
    t = np.r_[np.arange(100), 50_000 + np.arange(100), 90_000 + np.arange(100)] * S
    session = np.repeat(["a", "b", "c"], 100)
    back = whole_sessions(t, session, {"train": ["c"], "validation": ["b"], "test": ["a"]})
    assert ["train reaches past" in w for w in back.warnings] == [True, False]
    assert whole_sessions(t, session, {"train": ["a"], "validation": ["b"], "test": ["c"]}).warnings == ()
    with pytest.raises(UsageError, match="another block"):
        whole_sessions(t, session, {"train": ["a", "b"], "validation": ["b"], "test": ["c"]})
