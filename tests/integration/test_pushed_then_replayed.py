"""Rows that were pushed before their log was written: there once, whichever way the log's writer comes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from feature_repo.contract import VIEW
from feature_repo.definitions import spike_table
from feature_repo.writing import append_rows
from infra.settings import settings
from ingestion import tables
from ingestion.appender import Appender
from tests.feature_rows import feature_rows

SESSION = "00f1a2b3c4d5e6f7"
BTC = (SESSION, "BTC-USD")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VOLSPIKE_DATA", str(tmp_path))
    settings.cache_clear()
    yield settings().tables
    settings.cache_clear()


def rows(count: int, **more: object) -> pa.Table:
    return feature_rows("BTC-USD", range(count), **more)  # type: ignore[arg-type]


def numbers(root: Path) -> list[int]:
    return sorted(pl.read_delta(str(root / VIEW))["n"])


def test_a_log_written_after_a_push_adds_what_is_missing(root: Path) -> None:
    assert append_rows(spike_table, rows(20).slice(5, 4), None) == 4
    assert tables.append(VIEW, rows(20), np.arange(1, 21), {BTC: 20}) == 16
    assert numbers(root) == list(range(1, 21))
    assert tables.last_n(VIEW) == {BTC: 20}


def test_so_does_one_that_comes_in_groups(root: Path) -> None:
    append_rows(spike_table, rows(20).slice(5, 4), None)
    with Appender(VIEW) as to:
        to.add(rows(12), np.arange(1, 13), {BTC: 12})
        to.add(rows(20).slice(12), np.arange(13, 21), {BTC: 20})
        assert to.commit({BTC: 20}) == 16
    assert numbers(root) == list(range(1, 21))


def test_a_push_while_groups_are_written_is_seen_at_the_commit(root: Path) -> None:
    append_rows(spike_table, rows(20).slice(0, 1), None)
    with Appender(VIEW) as to:
        to.add(rows(20), np.arange(1, 21), {BTC: 20})
        append_rows(spike_table, rows(20).slice(7, 2), None)
        assert to.commit({BTC: 20}) == 17
    assert numbers(root) == list(range(1, 21))


def test_another_sessions_push_changes_nothing(root: Path) -> None:
    append_rows(spike_table, rows(3, session="ffff000000000000"), None)
    assert tables.append(VIEW, rows(5), np.arange(1, 6), {BTC: 5}) == 5


def test_pushes_at_the_same_time_all_arrive(root: Path) -> None:
    append_rows(spike_table, rows(40).slice(0, 4), None)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda i: append_rows(spike_table, rows(40).slice(4 * i, 4), None), range(1, 10))) == 36
    assert numbers(root) == list(range(1, 41))
