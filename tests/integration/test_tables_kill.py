"""The offline tables under fire: two writers of one tape, kill -9 at any moment, a disk that takes no more."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from infra.settings import ROOT
from ingestion import tables

SESSION = "00f1a2b3c4d5e6f7"
PRODUCTS = ("BTC-USD", "ETH-USD")
ROWS = 40
DEADLINE_S = 60

# A writer of the same rows whoever runs it: batch b holds messages b·ROWS+1 … (b+1)·ROWS, alternating products.
WRITER = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from feature_repo.errors import VolspikeError
from ingestion import tables

root, session, batches, rows_a_batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def batch(b):
    n = np.arange(b * rows_a_batch + 1, (b + 1) * rows_a_batch + 1)
    text = lambda value: pa.array([value] * len(n))
    return n, pa.table({
        "product_id": pa.array(np.where(n % 2, "BTC-USD", "ETH-USD")), "session": text(session), "n": n,
        "k": np.zeros(len(n), np.int32), "kind": text("quote"), "event_time_ns": n * 1000,
        "created_timestamp": pa.array(n, pa.timestamp("us", "UTC")), "bid": np.sqrt(n), "ask": np.sqrt(n) + 1,
        "bid_size": 1 / n, "ask_size": pa.array([None] * len(n), pa.float64()),
    }, schema=tables.schema("quotes"))

print("ready", flush=True)
sys.stdin.readline()
for b in range(batches):
    n, rows = batch(b)
    versions = {(session, "BTC-USD"): int(n[-1]), (session, "ETH-USD"): int(n[-1])}
    try:
        print("wrote", tables.append("quotes", rows, n, versions, root=root), flush=True)
    except VolspikeError as error:
        print(type(error).__name__, error, flush=True)
        sys.exit(1)
"""


@contextmanager
def writer(root: Path, batches: int, *, session: str = SESSION, rows: int = ROWS) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything and waits for ``go``; killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), session, str(batches), str(rows)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    process.wait(DEADLINE_S)
    return lines


def written(lines: list[str]) -> int:
    assert all(line.startswith("wrote ") for line in lines), lines
    return sum(int(line.removeprefix("wrote ")) for line in lines)


def assert_each_row_once(root: Path, count: int, session: str = SESSION) -> None:
    frame = tables.scan("quotes", root=root).filter(session=session).sort("n").collect()
    assert frame["n"].to_list() == list(range(1, count + 1))
    assert frame["event_time_ns"].to_list() == [1000 * n for n in range(1, count + 1)]
    assert frame["product_id"].to_list() == [PRODUCTS[n % 2 == 0] for n in range(1, count + 1)]
    assert frame["bid"].to_list() == pytest.approx([n**0.5 for n in range(1, count + 1)])


def test_two_processes_writing_the_same_rows_write_each_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(writer(tmp_path, 25)) for _ in range(2)]
        for racer in racers:
            go(racer)
        totals = [written(finish(racer)) for racer in racers]
    assert sum(totals) == 25 * ROWS
    assert_each_row_once(tmp_path, 25 * ROWS)
    assert tables.last_n("quotes", root=tmp_path) == {(SESSION, p): 25 * ROWS for p in PRODUCTS}
    # What lost a race was cleaned up by whoever lost it.
    files = {p.path for p in tables.parts("quotes", root=tmp_path)}
    assert set((tmp_path / "quotes").glob("*.parquet")) == files


def test_processes_of_different_sessions_do_not_hinder_each_other(tmp_path: Path) -> None:
    other = "2222222222222222"
    with writer(tmp_path, 15) as one, writer(tmp_path, 15, session=other) as two:
        go(one)
        go(two)
        assert written(finish(one)) == written(finish(two)) == 15 * ROWS
    for session in (SESSION, other):
        assert_each_row_once(tmp_path, 15 * ROWS, session)


def test_a_compaction_beside_a_writer_loses_nothing(tmp_path: Path) -> None:
    with writer(tmp_path, 25) as one:
        go(one)
        while one.poll() is None and len(tables.parts("quotes", root=tmp_path)) < 8:
            pass
        tables.compact("quotes", root=tmp_path)
        lines = finish(one)
    assert written(lines) == 25 * ROWS
    assert_each_row_once(tmp_path, 25 * ROWS)


@pytest.mark.chaos
def test_kill_nine_at_any_moment_leaves_a_whole_table_that_a_repeat_completes(tmp_path: Path) -> None:
    dice = random.Random(20260809)
    batches, rows = 30, 400
    for _ in range(5):
        with writer(tmp_path, batches, rows=rows) as victim:
            go(victim)
            assert victim.stdout is not None
            for _ in range(dice.randrange(4)):
                assert victim.stdout.readline().startswith("wrote ")
            # Wait for nothing that ever comes: the kill falls somewhere inside an append.
            select.select([], [], [], dice.random() * 0.04)
            os.kill(victim.pid, signal.SIGKILL)
            assert victim.wait(DEADLINE_S) == -signal.SIGKILL
        held = tables.last_n("quotes", root=tmp_path)
        count = max(held.values(), default=0)
        assert count % rows == 0
        assert_each_row_once(tmp_path, count)
    with writer(tmp_path, batches, rows=rows) as last:
        go(last)
        assert written(finish(last)) == batches * rows - count
    assert_each_row_once(tmp_path, batches * rows)


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="limits the file size of another process, which only Linux can")
def test_a_disk_that_takes_no_more_is_a_store_error_and_changes_nothing(tmp_path: Path) -> None:
    with writer(tmp_path, 2) as one:
        go(one)
        assert written(finish(one)) == 2 * ROWS
    log = sorted((tmp_path / "quotes" / "_delta_log").iterdir())
    # No file may grow beyond 20 kB: a write fails inside the part, as on a full disk, with no need for root.
    with writer(tmp_path, 3, rows=20_000) as starved:
        resource.prlimit(starved.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        go(starved)
        (line,) = finish(starved)
    assert starved.returncode == 1
    assert line.startswith("StoreError")
    assert "disk is full" in line
    assert sorted((tmp_path / "quotes" / "_delta_log").iterdir()) == log
    files = {p.path for p in tables.parts("quotes", root=tmp_path)}
    assert set((tmp_path / "quotes").glob("*.parquet")) == files
    assert_each_row_once(tmp_path, 2 * ROWS)
    with writer(tmp_path, 4) as other:
        go(other)
        assert written(finish(other)) == 2 * ROWS
    assert_each_row_once(tmp_path, 4 * ROWS)
