"""Compaction beside a live system: small parts become one, and what goes wrong once is tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_repo.contract import VIEW
from feature_repo.errors import StoreError
from infra import upkeep
from ingestion import tables
from tests.feature_rows import feature_rows

Until = Callable[..., bool]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "COMPACT_S", 0.0)


def test_small_parts_are_merged_while_it_runs(data_dir: Path) -> None:
    rows, key = feature_rows("BTC-USD", range(30)), ("00f1a2b3c4d5e6f7", "BTC-USD")
    for last in (10, 20, 30):
        tables.append(VIEW, rows.slice(last - 10, 10), np.arange(last - 9, last + 1), {key: last})
    with upkeep.Compaction() as compaction:
        compaction.look()
    (part,) = tables.parts(VIEW)
    assert part.num_records == 30


def test_a_failure_is_told_and_the_next_one_comes(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], until: Until
) -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        raise StoreError("the disk is full")

    monkeypatch.setattr(upkeep, "compact_tables", fails)

    def again() -> bool:
        compaction.look()
        return len(calls) >= 2

    with upkeep.Compaction() as compaction:
        assert until(again, 10)
    assert "the disk is full" in capsys.readouterr().out
