"""The as-of join against a naive loop, on rows made to be hard: ties, TTL edges, created cuts, duplicates, nulls."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.asof import CREATED, TIME, asof_rows
from tests.oracle.asof import naive_asof

TTL = 10_000
# Few keys, and times on a lattice around multiples of the TTL with steps of 1 µs and 1 ns: most draws tie with another
# or stand on an edge.
keys = st.sampled_from(["A", "B", "", None])
times = st.builds(
    lambda k, d: k * TTL + d, st.integers(-2, 3), st.sampled_from([-1001, -1000, -999, -1, 0, 0, 1, 999, 1000, 1001])
)
asked_rows = st.lists(st.tuples(keys, st.one_of(times, times, st.none())), max_size=30)
feature_rows = st.lists(st.tuples(keys, st.one_of(times, times, st.none()), st.one_of(times, st.none())), max_size=30)


def frames(asked, rows):
    left = pl.DataFrame(asked, schema={"key": pl.String, TIME: pl.Int64}, orient="row")
    right = pl.DataFrame(rows, schema={"key": pl.String, TIME: pl.Int64, CREATED: pl.Int64}, orient="row")
    return left, right


@settings(max_examples=300, deadline=None)
@given(asked=asked_rows, rows=feature_rows, ttl=st.sampled_from([None, 0, 1, TTL, TTL + 1]), cut=st.booleans())
def test_every_asked_row_gets_what_the_naive_loop_finds(asked, rows, ttl, cut):
    left, right = frames(asked, rows)
    found = asof_rows(left, right, ["key"], ttl_ns=ttl, created_cut=cut)
    assert len(found) == len(asked)
    assert found.to_list() == naive_asof(asked, rows, ttl_ns=ttl, created_cut=cut)


@settings(max_examples=150, deadline=None)
@given(asked=asked_rows, rows=feature_rows, cut=st.booleans())
def test_two_keys_join_like_their_pair(asked, rows, cut):
    left, right = frames(asked, rows)
    split = [pl.col("key").str.len_chars().alias("length")]
    pairs = asof_rows(left.with_columns(split), right.with_columns(split), ["key", "length"], created_cut=cut)
    assert pairs.to_list() == naive_asof(asked, rows, created_cut=cut)


@settings(max_examples=150, deadline=None)
@given(asked=asked_rows, rows=feature_rows, ttl=st.sampled_from([None, TTL]), cut=st.booleans())
def test_a_view_without_keys_joins_on_time_alone(asked, rows, ttl, cut):
    asked, rows = [("A", t) for _, t in asked], [("A", t, c) for _, t, c in rows]
    left, right = frames(asked, rows)
    found = asof_rows(left, right, [], ttl_ns=ttl, created_cut=cut)
    assert found.to_list() == naive_asof(asked, rows, ttl_ns=ttl, created_cut=cut)


@settings(max_examples=100, deadline=None)
@given(asked=asked_rows, rows=feature_rows)
def test_a_source_without_created_times_takes_the_row_written_last(asked, rows):
    left, right = frames(asked, rows)
    found = asof_rows(left, right.drop(CREATED), ["key"], created_cut=True)
    assert found.to_list() == naive_asof(asked, [(k, t, None) for k, t, _ in rows])


@settings(max_examples=150, deadline=None)
@given(asked=asked_rows, rows=feature_rows, seed=st.randoms(use_true_random=False), cut=st.booleans())
def test_row_ids_decide_whatever_order_the_files_are_read_in(asked, rows, seed, cut):
    left, right = frames(asked, rows)
    order = list(range(len(rows)))
    seed.shuffle(order)
    numbered = right.with_columns((pl.int_range(pl.len()) // 2).alias("n"), (pl.int_range(pl.len()) % 2).alias("k"))
    found = asof_rows(left, numbered[order], ["key"], created_cut=cut, ties=["n", "k"])
    assert [None if i is None else order[i] for i in found] == naive_asof(asked, rows, created_cut=cut)


@pytest.mark.parametrize(("age", "valid"), [(TTL - 1000, True), (TTL, True), (TTL + 1, False), (TTL + 1000, False)])
def test_ttl_edge(age, valid):
    left, right = frames([("A", 5_000_000 + age)], [("A", 5_000_000, None)])
    assert asof_rows(left, right, ["key"], ttl_ns=TTL).to_list() == [0 if valid else None]


def test_created_cut_reaches_back_to_an_older_row_that_was_known():
    rows = [("A", 100, 100), ("A", 200, 900), ("A", 200, 210)]
    left, right = frames([("A", 205), ("A", 210), ("A", 900)], rows)
    assert asof_rows(left, right, ["key"], created_cut=True).to_list() == [0, 2, 1]
    assert asof_rows(left, right, ["key"]).to_list() == [1, 1, 1]
