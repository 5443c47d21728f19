"""Rows appended as they come: each once, whoever commits in between, and nothing left of what was given up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.errors import ContractError
from ingestion import appender, tables
from ingestion.appender import Appender

S, BTC, ETH = "00f1a2b3c4d5e6f7", "BTC-USD", "ETH-USD"


def quotes(numbers: range, product: str = BTC) -> pa.Table:
    n = np.array(numbers, np.int64)
    columns = {
        "product_id": [product] * len(n), "session": [S] * len(n), "n": n, "k": np.zeros(len(n), np.int32),
        "kind": ["quote"] * len(n), "event_time_ns": n * 1_000_000, "created_timestamp": n,
        "bid": n / 2, "ask": n / 2 + 1, "bid_size": [None] * len(n), "ask_size": np.ones(len(n)),
    }  # fmt: skip
    return pa.table(columns).cast(tables.schema("quotes"))


def add(to: Appender, numbers: range, product: str = BTC) -> None:
    to.add(quotes(numbers, product), np.array(numbers, np.int64), {(S, product): numbers[-1]})


def held(root: Path, product: str = BTC) -> list[int]:
    frame = tables.scan("quotes", root=root).collect()
    return sorted(frame.filter(frame["product_id"] == product)["n"].to_list())


def files(root: Path) -> list[Path]:
    return list(root.rglob("part-*"))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "GROUP_ROWS", 4)


def test_rows_in_many_groups_are_one_commit(tmp_path: Path) -> None:
    with Appender("quotes", root=tmp_path) as to:
        for lo in range(1, 31, 3):
            add(to, range(lo, lo + 3))
        assert tables.last_n("quotes", root=tmp_path) == {}
        assert to.commit({(S, BTC): 35, (S, ETH): 7}) == 30
        assert tables.last_n("quotes", root=tmp_path) == {(S, BTC): 35, (S, ETH): 7}
        assert held(tmp_path) == list(range(1, 31))
        (part,) = tables.parts("quotes", root=tmp_path)
        assert part.num_records == 30
        add(to, range(36, 40))
        assert to.commit({(S, BTC): 40}) == 4
    assert held(tmp_path) == [*range(1, 31), *range(36, 40)]
    simple = tmp_path / "simple"
    tables.append("quotes", quotes(range(1, 31)), np.arange(1, 31), {(S, BTC): 30}, root=simple)
    whole = tables.scan("quotes", root=tmp_path).collect().sort("n").head(30)
    assert whole.equals(tables.scan("quotes", root=simple).collect().sort("n"))


def test_rows_the_table_holds_are_dropped(tmp_path: Path) -> None:
    for upto, new in ((10, 10), (10, 0), (15, 5)):
        with Appender("quotes", root=tmp_path) as to:
            add(to, range(1, upto + 1))
            assert to.commit({(S, BTC): upto}) == new
    assert held(tmp_path) == list(range(1, 16))
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("other", [range(1, 4), range(1, 7), range(1, 13)])
def test_another_writer_of_the_session_comes_in_between(tmp_path: Path, other: range) -> None:
    with Appender("quotes", root=tmp_path) as to:
        add(to, range(1, 11))
        tables.append("quotes", quotes(other), np.array(other), {(S, BTC): other[-1]}, root=tmp_path)
        assert to.commit({(S, BTC): 10}) == max(10 - other[-1], 0)
    assert held(tmp_path) == list(range(1, max(10, other[-1]) + 1))
    assert len(files(tmp_path)) == len(tables.parts("quotes", root=tmp_path))


def test_another_writer_commits_after_the_versions_were_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = [True]
    commit = tables.commit_part

    def late(*args: object) -> bool:
        if once:
            once.clear()
            tables.append("quotes", quotes(range(1, 6)), np.arange(1, 6), {(S, BTC): 5}, root=tmp_path)
        return commit(*args)  # type: ignore[arg-type]

    with Appender("quotes", root=tmp_path) as to:
        add(to, range(1, 11))
        monkeypatch.setattr(tables, "commit_part", late)
        assert to.commit({(S, BTC): 10}) == 5
    assert held(tmp_path) == list(range(1, 11))
    assert len(files(tmp_path)) == len(tables.parts("quotes", root=tmp_path))


def test_a_writer_of_another_product_is_in_nobodys_way(tmp_path: Path) -> None:
    with Appender("quotes", root=tmp_path) as to:
        add(to, range(1, 11))
        tables.append("quotes", quotes(range(1, 6), ETH), np.arange(1, 6), {(S, ETH): 5}, root=tmp_path)
        assert to.commit({(S, BTC): 10}) == 10
    assert held(tmp_path) == list(range(1, 11))
    assert held(tmp_path, ETH) == list(range(1, 6))


def test_what_was_given_up_leaves_no_file(tmp_path: Path) -> None:
    to = Appender("quotes", root=tmp_path)
    with pytest.raises(ContractError, match="cause_n of row 0"), to:
        add(to, range(1, 11))
        assert files(tmp_path)
        to.add(quotes(range(11, 13)), np.array([11, 12]), {(S, BTC): 10})
    assert not files(tmp_path)
    assert tables.last_n("quotes", root=tmp_path) == {}
