"""The offline tables: what goes in comes out once, exactly, and what doesn't fit is refused by name."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_repo.contract import FEATURES, TABLES
from feature_repo.errors import ContractError, StoreError
from ingestion import table_open, table_parts, table_schema, tables
from ingestion.table_open import CHECKPOINT_COMMITS, Kept

S = "00f1a2b3c4d5e6f7"
OTHER = "1111111111111111"
BTC, ETH = "BTC-USD", "ETH-USD"
T0 = 1_760_000_000_000_000_000


def quotes(numbers: list[int], product: str = BTC, session: str = S) -> pa.Table:
    n = np.asarray(numbers, np.int64)
    times = pa.array((T0 + n * 1_000_003) // 1000, pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "product_id": [product] * len(n),
            "session": [session] * len(n),
            "n": n,
            "k": np.zeros(len(n), np.int32),
            "kind": ["quote"] * len(n),
            "event_time_ns": T0 + n * 1_000_003,
            "created_timestamp": times,
            "bid": 100 + n * 0.1,
            "ask": pa.array([None if i % 3 == 0 else 101 + i * 0.1 for i in numbers], pa.float64()),
            "bid_size": 1.0 / (1 + n),
            "ask_size": n * 1e-300,
        },
        schema=tables.schema("quotes"),
    )


def add(
    rows: pa.Table, root: Path, upto: int | None = None, key: tuple[str, str] = (S, BTC), kept: Kept | None = None
) -> int:
    cause = rows.column("n").to_numpy()
    versions = {key: int(cause.max()) if upto is None else upto}
    return tables.append("quotes", rows, cause, versions, root=root, kept=kept)


def held(root: Path) -> list[int]:
    return sorted(tables.scan("quotes", root=root).collect()["n"].to_list())


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_not_there_reads_as_no_rows(name: str, tmp_path: Path) -> None:
    frame = tables.scan(name, root=tmp_path).collect()
    assert frame.shape == (0, len(tables.schema(name)))
    assert tables.last_n(name, root=tmp_path) == {}
    assert tables.parts(name, root=tmp_path) == []
    assert tables.vacuum(name, root=tmp_path) == 0
    tables.compact(name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_row_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rows = quotes(list(range(1, 500)))
    assert add(rows, tmp_path) == 499
    back = tables.scan("quotes", root=tmp_path).sort("n").collect()
    assert_frame_equal(back, pl.from_arrow(rows), check_exact=True)
    assert back["ask"].null_count() == 166


def test_features_with_every_dtype_come_back(tmp_path: Path) -> None:
    expected = tables.schema("spike_features")
    rng = np.random.default_rng(1)
    columns: dict[str, object] = {
        "product_id": pa.array([BTC, ETH] * 50).dictionary_encode(),
        "session": pa.array([S] * 100, pa.large_string()),
        "n": np.arange(1, 101),
        "k": np.full(100, -1, np.int32),
        "trigger": ["grid"] * 100,
        "row_time": pa.array(np.arange(100), pa.timestamp("us", "UTC")),
        "event_time_ns": np.arange(100) * 1000,
        "created_timestamp": pa.array(np.arange(100), pa.timestamp("us", "UTC")),
    }
    for f in FEATURES:
        drawn = rng.normal(size=100)
        # Under a null may lie anything, NaN too: it is not the value.
        below = np.where(drawn > 1, np.nan, drawn)
        columns[f.name] = np.arange(100) if f.dtype == "int64" else pa.array(below, mask=drawn > 1)
    rows = pa.table(columns)
    written = tables.append("spike_features", rows, np.arange(1, 101), {(S, BTC): 100, (S, ETH): 100}, root=tmp_path)
    assert written == 100
    back = tables.scan("spike_features", root=tmp_path).sort("n").collect()
    assert back.columns == expected.names
    assert_frame_equal(back, pl.from_arrow(pa.table(columns).cast(expected)), check_exact=True)


def test_adding_the_same_rows_again_adds_nothing(tmp_path: Path) -> None:
    assert add(quotes([1, 2, 3]), tmp_path) == 3
    assert add(quotes([1, 2, 3]), tmp_path) == 0
    assert add(quotes([2, 3, 4, 5]), tmp_path) == 2
    assert held(tmp_path) == [1, 2, 3, 4, 5]
    assert tables.last_n("quotes", root=tmp_path) == {(S, BTC): 5}


def test_a_row_is_judged_by_its_cause_and_not_by_its_own_n(tmp_path: Path) -> None:
    # A grid row carries the n of the message before it, and is made by the one after: n 3, cause 4.
    add(quotes([1, 2, 3]), tmp_path)
    rows = quotes([3, 4])
    assert tables.append("quotes", rows, np.array([4, 4]), {(S, BTC): 4}, root=tmp_path) == 2
    assert held(tmp_path) == [1, 2, 3, 3, 4]


def test_products_and_sessions_are_counted_apart(tmp_path: Path) -> None:
    add(quotes([1, 2, 9]), tmp_path)
    both = pa.concat_tables([quotes([8, 9, 10]), quotes([3, 4], ETH), quotes([1], BTC, OTHER)])
    cause = both.column("n").to_numpy()
    versions = {(S, BTC): 10, (S, ETH): 10, (OTHER, BTC): 1}
    assert tables.append("quotes", both, cause, versions, root=tmp_path) == 4
    assert tables.last_n("quotes", root=tmp_path) == versions
    frame = tables.scan("quotes", root=tmp_path).filter(pl.col("product_id") == ETH).collect()
    assert sorted(frame["n"].to_list()) == [3, 4]


def test_messages_without_a_row_move_the_version(tmp_path: Path) -> None:
    assert add(quotes([1]), tmp_path) == 1
    assert tables.append("quotes", quotes([]), np.array([], np.int64), {(S, BTC): 7, (S, ETH): 7}, root=tmp_path) == 0
    assert tables.last_n("quotes", root=tmp_path) == {(S, BTC): 7, (S, ETH): 7}
    assert add(quotes([6, 7, 8]), tmp_path) == 1


def test_versions_never_move_back(tmp_path: Path) -> None:
    add(quotes([1, 2, 3]), tmp_path)
    assert add(quotes([2]), tmp_path) == 0
    assert tables.last_n("quotes", root=tmp_path) == {(S, BTC): 3}


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.sampled_from([BTC, ETH])), max_size=6))
def test_overlapping_batches_in_any_order_equal_a_set(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int, str]]
) -> None:
    root = tmp_path_factory.mktemp("set")
    seen: dict[str, int] = {}
    expected: list[tuple[str, int]] = []
    for start, length, product in batches:
        numbers = list(range(start + 1, start + length + 1))
        written = add(quotes(numbers, product), root, key=(S, product))
        fresh = [n for n in numbers if n > seen.get(product, 0)]
        assert written == len(fresh)
        expected += [(product, n) for n in fresh]
        seen[product] = max(seen.get(product, 0), numbers[-1])
    rows = tables.scan("quotes", root=root).select("product_id", "n").collect().rows()
    assert sorted(rows) == sorted(expected)
    assert tables.last_n("quotes", root=root) == {(S, p): n for p, n in seen.items()}


def test_a_table_kept_open_sees_what_others_do_to_it(tmp_path: Path) -> None:
    one, two = tables.keep("quotes", root=tmp_path), tables.keep("quotes", root=tmp_path)
    upto = 0
    for turn in range(CHECKPOINT_COMMITS + 10):  # past a checkpoint
        kept = (one, two, None)[turn % 3]
        assert add(quotes(list(range(max(1, upto - 3), upto + 3))), tmp_path, kept=kept) == 2
        upto += 2
        if turn == 20:
            tables.compact("quotes", root=tmp_path)
            tables.vacuum("quotes", root=tmp_path, retention_hours=0)
    assert held(tmp_path) == list(range(1, upto + 1))
    assert tables.last_n("quotes", root=tmp_path) == {(S, BTC): upto}


def test_a_table_kept_open_may_be_replaced_by_another(tmp_path: Path) -> None:
    kept = tables.keep("quotes", root=tmp_path)
    for n in range(1, 6):
        add(quotes([n]), tmp_path, kept=kept)
    shutil.rmtree(tmp_path / "quotes")
    assert add(quotes([1, 2]), tmp_path, kept=kept) == 2
    shutil.rmtree(tmp_path / "quotes")
    for n in range(11, 21):
        add(quotes([n]), tmp_path)
    assert add(quotes([20, 21]), tmp_path, kept=kept) == 1
    assert held(tmp_path) == list(range(11, 22))


def test_last_n_reads_through_checkpoints(tmp_path: Path) -> None:
    many = {(f"{i:016x}", BTC): i + 1 for i in range(2000)}
    none = quotes([])
    tables.append("quotes", none, np.array([], np.int64), many, root=tmp_path)
    for n in range(1, CHECKPOINT_COMMITS + 6):
        add(quotes([n], ETH), tmp_path, key=(S, ETH))
    assert list((tmp_path / "quotes" / "_delta_log").glob("*.checkpoint.parquet"))
    assert tables.last_n("quotes", root=tmp_path) == {**many, (S, ETH): CHECKPOINT_COMMITS + 5}


def test_product_ids_may_hold_a_slash_and_sessions_may_not(tmp_path: Path) -> None:
    add(quotes([1], "A/B"), tmp_path, key=(S, "A/B"))
    assert tables.last_n("quotes", root=tmp_path) == {(S, "A/B"): 1}
    with pytest.raises(ContractError, match="a/b"):
        add(quotes([1], BTC, "a/b"), tmp_path, key=("a/b", BTC))
    assert held(tmp_path) == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_name(bad: float, tmp_path: Path) -> None:
    rows = quotes([1, 2, 3])
    values = pa.array([None, bad, 1.0], pa.float64())
    rows = rows.set_column(rows.schema.get_field_index("bid_size"), rows.schema.field("bid_size"), values)
    with pytest.raises(ContractError, match="bid_size"):
        add(rows, tmp_path)
    with pytest.raises(ContractError, match="bid_size"):
        add(rows.slice(1), tmp_path)
    assert add(rows.slice(2), tmp_path) == 1
    assert held(tmp_path) == [3]


def test_rows_that_do_not_fit_the_schema_are_refused_by_name(tmp_path: Path) -> None:
    rows = quotes([1, 2])
    at = rows.schema.get_field_index("n")
    with pytest.raises(ContractError, match=r"ask_size is missing.*expected double"):
        add(rows.drop_columns("ask_size"), tmp_path)
    with pytest.raises(ContractError, match="extra"):
        add(rows.append_column("extra", pa.array([1, 2])), tmp_path)
    with pytest.raises(ContractError, match="n was int32, expected int64"):
        add(rows.set_column(at, "n", rows.column("n").cast(pa.int32())), tmp_path)
    with pytest.raises(ContractError, match="bid was string, expected double"):
        add(rows.set_column(7, "bid", pa.array(["1", "2"])), tmp_path)
    with pytest.raises(ContractError, match="event_time_ns had 1 nulls"):
        add(rows.set_column(5, "event_time_ns", pa.array([None, 5], pa.int64())), tmp_path)
    with pytest.raises(ContractError, match="nosuch"):
        tables.scan("nosuch", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_beyond_the_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cause_n of row 2"):
        add(quotes([1, 2, 3]), tmp_path, upto=2)
    with pytest.raises(ContractError, match="cause_n of row 0"):
        add(quotes([1]), tmp_path, upto=5, key=(S, ETH))
    with pytest.raises(ContractError, match=r"int64\[2\]"):
        tables.append("quotes", quotes([1, 2]), np.array([1]), {(S, BTC): 2}, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_outcomes_belong_to_the_only_session_of_their_product(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "prediction_id": ["a", "b", "c"],
            "product_id": [BTC, ETH, BTC],
            "event_time_ns": [1, 2, 3],
            "horizon_s": [60, 60, 60],
            "sigma_fwd": [1e-5, None, 2e-5],
            "spike": [True, None, False],
            "tau": [1.5e-5, None, 1.5e-5],
            "status": ["graded", "gap", "graded"],
        },
        schema=tables.schema("outcomes"),
    )
    cause = np.array([1, 2, 3])
    versions = {(S, BTC): 3, (OTHER, ETH): 2}
    assert tables.append("outcomes", rows, cause, versions, root=tmp_path) == 3
    assert tables.append("outcomes", rows, cause, versions, root=tmp_path) == 0
    assert_frame_equal(tables.scan("outcomes", root=tmp_path).sort("event_time_ns").collect(), pl.from_arrow(rows))
    with pytest.raises(ContractError, match="session"):
        tables.append("outcomes", rows, cause, {(S, BTC): 3, (OTHER, BTC): 3, (S, ETH): 3}, root=tmp_path)


def test_older_parts_read_as_null_in_a_newer_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tables.schema("quotes")
    older = pa.schema([f for f in full if f.name not in {"bid_size", "ask_size"}])
    with monkeypatch.context() as patch:
        for module in (tables, table_open, table_schema):
            patch.setattr(module, "schema", lambda name: older)
        add(quotes([1, 2]).select(older.names), tmp_path)
    before = tables.scan("quotes", root=tmp_path).collect()
    assert before.columns == full.names
    assert before["ask_size"].to_list() == [None, None]
    assert before.schema["ask_size"] == pl.Float64
    add(quotes([3, 4]), tmp_path)
    for _ in range(2):
        after = tables.scan("quotes", root=tmp_path).sort("n").collect()
        assert after["bid_size"].to_list() == [None, None, 1 / 4, 1 / 5]
        assert after["bid"].to_list() == pytest.approx([100.1, 100.2, 100.3, 100.4])
        assert tables.scan("quotes", root=tmp_path).filter(pl.col("bid_size") > 0).collect().height == 2
        tables.compact("quotes", root=tmp_path)


def test_a_stored_column_of_another_type_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pa.schema([f.with_type(pa.int64()) if f.name == "bid" else f for f in tables.schema("quotes")])
    rows = quotes([1])
    with monkeypatch.context() as patch:
        for module in (tables, table_open, table_schema):
            patch.setattr(module, "schema", lambda name: other)
        add(rows.set_column(7, other.field("bid"), pa.array([7])), tmp_path)
    for use in (lambda: add(quotes([2]), tmp_path), lambda: tables.scan("quotes", root=tmp_path)):
        with pytest.raises(ContractError, match="bid was int64, expected double"):
            use()


def test_compaction_changes_no_row_and_no_version(tmp_path: Path) -> None:
    for start in range(0, 300, 30):
        add(quotes(list(range(start + 1, start + 31))), tmp_path)
    before = tables.scan("quotes", root=tmp_path).sort("n").collect()
    assert len(tables.parts("quotes", root=tmp_path)) == 10
    tables.compact("quotes", root=tmp_path)
    assert len(tables.parts("quotes", root=tmp_path)) == 1
    assert_frame_equal(tables.scan("quotes", root=tmp_path).sort("n").collect(), before, check_exact=True)
    assert add(quotes([299, 300, 301]), tmp_path) == 1
    # Timestamps in µs: bounds rounded to ms in the log would hide the newest rows of a part.
    newest = before["created_timestamp"].max()
    assert tables.scan("quotes", root=tmp_path).filter(pl.col("created_timestamp") >= newest).collect().height == 2


def test_the_log_holds_true_bounds_so_readers_skip_parts(tmp_path: Path) -> None:
    add(quotes([1, 2, 3]), tmp_path)
    add(quotes([10, 11], ETH), tmp_path, key=(S, ETH))
    late = tables.scan("quotes", root=tmp_path).filter(pl.col("event_time_ns") >= T0 + 10 * 1_000_003)
    # The first part gone from the disk, only a reader that skips it by its bounds can answer.
    first = next(p for p in tables.parts("quotes", root=tmp_path) if p.num_records == 3)
    first.path.rename(first.path.with_suffix(".away"))
    assert sorted(late.collect()["n"].to_list()) == [10, 11]
    assert tables.scan("quotes", root=tmp_path).filter(product_id=ETH).collect().height == 2


def test_parts_list_what_makes_up_the_table(tmp_path: Path) -> None:
    add(quotes([1, 2, 3]), tmp_path)
    add(quotes([4, 5]), tmp_path)
    found = tables.parts("quotes", root=tmp_path)
    assert sorted(p.num_records for p in found) == [2, 3]
    for part in found:
        assert part.size == part.path.stat().st_size
        assert pq.read_metadata(part.path).num_rows == part.num_records
    assert len({part.sha256() for part in found}) == 2
    assert len(found[0].sha256()) == 64


def test_vacuum_deletes_old_orphans_and_nothing_else(tmp_path: Path) -> None:
    add(quotes([1, 2, 3]), tmp_path)
    folder = tmp_path / "quotes"
    part = tables.parts("quotes", root=tmp_path)[0].path
    orphans = [folder / f"part-{name}.parquet" for name in ("old", "new")]
    for orphan in orphans:
        orphan.write_bytes(part.read_bytes()[:100])
    two_hours_ago = time.time() - 7200
    os.utime(orphans[0], (two_hours_ago, two_hours_ago))
    os.utime(part, (two_hours_ago, two_hours_ago))
    assert held(tmp_path) == [1, 2, 3]
    assert tables.vacuum("quotes", root=tmp_path) == 1
    assert not orphans[0].exists()
    assert orphans[1].exists()
    assert held(tmp_path) == [1, 2, 3]


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="quotes"):
        add(quotes([1]), tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="read and write"):
            add(quotes([1]), tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_commit_that_fails_leaves_the_table_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    add(quotes([1]), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tables.DeltaTable, "create_write_transaction", full)
        with pytest.raises(StoreError, match="disk is full"):
            add(quotes([2]), tmp_path)
    assert {p.path for p in tables.parts("quotes", root=tmp_path)} == set((tmp_path / "quotes").glob("*.parquet"))
    assert add(quotes([1, 2]), tmp_path) == 1
    assert held(tmp_path) == [1, 2]


def test_an_error_after_the_commit_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = tables.DeltaTable.create_write_transaction

    def commit_then_fail(*args: object, **options: object) -> None:
        commit(*args, **options)
        raise DeltaError("the checkpoint after the commit could not be written")

    with monkeypatch.context() as patch:
        patch.setattr(tables.DeltaTable, "create_write_transaction", commit_then_fail)
        assert add(quotes([1, 2]), tmp_path) == 2
    assert add(quotes([1, 2]), tmp_path) == 0
    assert held(tmp_path) == [1, 2]


def test_a_damaged_log_is_a_store_error(tmp_path: Path) -> None:
    add(quotes([1]), tmp_path)
    (tmp_path / "quotes" / "_delta_log" / f"{1:020d}.json").write_text('{"add":')
    for use in (
        lambda: add(quotes([2]), tmp_path),
        lambda: tables.scan("quotes", root=tmp_path),
        lambda: tables.last_n("quotes", root=tmp_path),
    ):
        with pytest.raises(StoreError, match="quotes"):
            use()


def test_the_default_folder_is_the_settings(data_dir: Path) -> None:
    rows = quotes([1])
    tables.append("quotes", rows, np.array([1]), {(S, BTC): 1})
    assert (data_dir / "tables" / "quotes" / "_delta_log").is_dir()
    assert tables.scan("quotes").collect().height == 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system can't be told what to forget")
@pytest.mark.parametrize(("large_bytes", "left"), [(1, 1), (1 << 40, 0)])
def test_only_large_parts_leave_the_file_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_bytes: int, left: int
) -> None:
    told = []
    monkeypatch.setattr(table_parts, "LARGE_BYTES", large_bytes)
    monkeypatch.setattr(os, "posix_fadvise", lambda *what: told.append(what[1:]))
    table_parts.write_part(tmp_path, quotes([1, 2, 3]))
    assert told == [(0, 0, os.POSIX_FADV_DONTNEED)] * left
