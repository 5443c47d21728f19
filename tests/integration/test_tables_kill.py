"""The offline tables under fire: two writers of one tape, kill -9 at any moment, a disk that takes no more."""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext as Forks
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from ingestion import tables

SESSION = "00f1a2b3c4d5e6f7"
PRODUCTS = ("BTC-USD", "ETH-USD")
ROWS = 40
DEADLINE_S = 120

# A writer of the same rows whoever runs it: batch b holds messages b·ROWS+1 … (b+1)·ROWS, alternating products. It is
# text, not a function, since test modules can't be imported by name.
WRITER = """
from pathlib import Path
import numpy as np, pyarrow as pa
from feature_repo.errors import VolspikeError
from ingestion import tables

def batch(b):
    n = np.arange(b * rows + 1, (b + 1) * rows + 1)
    def text(value):
        return pa.array([value] * len(n))
    return n, pa.table({
        "product_id": pa.array(np.where(n % 2, "BTC-USD", "ETH-USD")), "session": text(session), "n": n,
        "k": np.zeros(len(n), np.int32), "kind": text("quote"), "event_time_ns": n * 1000,
        "created_timestamp": pa.array(n, pa.timestamp("us", "UTC")), "bid": np.sqrt(n), "ask": np.sqrt(n) + 1,
        "bid_size": 1 / n, "ask_size": pa.array([None] * len(n), pa.float64()),
    }, schema=tables.schema("quotes"))

conn.recv_bytes()
for b in range(batches):
    n, table = batch(b)
    versions = {(session, "BTC-USD"): int(n[-1]), (session, "ETH-USD"): int(n[-1])}
    try:
        conn.send_bytes(f"wrote {tables.append('quotes', table, n, versions, root=Path(root))}".encode())
    except VolspikeError as error:
        conn.send_bytes(f"{type(error).__name__} {error}".encode())
        break
conn.close()
"""


@dataclass
class Writer:
    """A process that waits for ``go``, and the line it reports on."""

    process: ForkServerProcess
    line: Connection

    def go(self) -> None:
        self.line.send_bytes(b"go")

    def report(self) -> str:
        assert self.line.poll(DEADLINE_S), "the writer reported nothing"
        return self.line.recv_bytes().decode()

    def finish(self) -> list[str]:
        reports = []
        while True:
            try:
                reports.append(self.report())
            except EOFError:
                self.process.join(DEADLINE_S)
                return reports


@pytest.fixture(scope="module")
def forks() -> Forks:
    """Processes from a server that has imported everything once, pandas for pyarrow too: else a start takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "pandas", "ingestion.tables"])
    return context


@contextmanager
def writer(
    forks: Forks,
    root: Path,
    batches: int,
    *,
    session: str = SESSION,
    rows: int = ROWS,
) -> Iterator[Writer]:
    """Start a writer; it is killed at the end whatever happens."""
    line, theirs = forks.Pipe()
    scope = {"conn": theirs, "root": str(root), "batches": batches, "session": session, "rows": rows}
    process = forks.Process(target=exec, args=(WRITER, scope))
    process.start()
    theirs.close()
    try:
        yield Writer(process, line)
    finally:
        process.kill()
        process.join(DEADLINE_S)
        process.close()
        line.close()


def written(lines: list[str]) -> int:
    assert all(line.startswith("wrote ") for line in lines), lines
    return sum(int(line.removeprefix("wrote ")) for line in lines)


def assert_each_row_once(root: Path, count: int, session: str = SESSION) -> None:
    frame = tables.scan("quotes", root=root).filter(session=session).sort("n").collect()
    n = np.arange(1, count + 1)
    np.testing.assert_array_equal(frame["n"], n)
    np.testing.assert_array_equal(frame["event_time_ns"], 1000 * n)
    np.testing.assert_array_equal(frame["product_id"] == PRODUCTS[0], n % 2 == 1)
    np.testing.assert_array_equal(frame["bid"], np.sqrt(n))


def test_two_processes_writing_the_same_rows_write_each_once(forks: Forks, tmp_path: Path) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(writer(forks, tmp_path, 25)) for _ in range(2)]
        for racer in racers:
            racer.go()
        totals = [written(racer.finish()) for racer in racers]
    assert sum(totals) == 25 * ROWS
    assert_each_row_once(tmp_path, 25 * ROWS)
    assert tables.last_n("quotes", root=tmp_path) == {(SESSION, p): 25 * ROWS for p in PRODUCTS}
    # What lost a race was cleaned up by whoever lost it.
    files = {p.path for p in tables.parts("quotes", root=tmp_path)}
    assert set((tmp_path / "quotes").glob("*.parquet")) == files


def test_processes_of_different_sessions_do_not_hinder_each_other(forks: Forks, tmp_path: Path) -> None:
    other = "2222222222222222"
    with writer(forks, tmp_path, 15) as one, writer(forks, tmp_path, 15, session=other) as two:
        one.go()
        two.go()
        assert written(one.finish()) == written(two.finish()) == 15 * ROWS
    for session in (SESSION, other):
        assert_each_row_once(tmp_path, 15 * ROWS, session)


def test_a_compaction_beside_a_writer_loses_nothing(forks: Forks, tmp_path: Path) -> None:
    with writer(forks, tmp_path, 25) as one:
        one.go()
        lines = [one.report() for _ in range(8)]
        tables.compact("quotes", root=tmp_path)
        lines += one.finish()
    assert written(lines) == 25 * ROWS
    assert_each_row_once(tmp_path, 25 * ROWS)


@pytest.mark.chaos
def test_kill_nine_at_any_moment_leaves_a_whole_table_that_a_repeat_completes(forks: Forks, tmp_path: Path) -> None:
    dice = random.Random(20260809)
    batches, rows = 60, 400
    for _ in range(12):
        with writer(forks, tmp_path, batches, rows=rows) as victim:
            victim.go()
            for _ in range(dice.randrange(4)):
                assert victim.report().startswith("wrote ")
            # At most so long, or until the next report: the kill falls somewhere inside an append.
            victim.line.poll(dice.random() * 0.04)
            victim.process.kill()
            victim.process.join(DEADLINE_S)
            assert victim.process.exitcode == -signal.SIGKILL
        held = tables.last_n("quotes", root=tmp_path)
        count = max(held.values(), default=0)
        assert count % rows == 0
        assert_each_row_once(tmp_path, count)
    with writer(forks, tmp_path, batches, rows=rows) as last:
        last.go()
        assert written(last.finish()) == batches * rows - count
    assert_each_row_once(tmp_path, batches * rows)


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="limits the file size of another process, which only Linux can")
def test_a_disk_that_takes_no_more_is_a_store_error_and_changes_nothing(forks: Forks, tmp_path: Path) -> None:
    with writer(forks, tmp_path, 2) as one:
        one.go()
        assert written(one.finish()) == 2 * ROWS
    log = sorted((tmp_path / "quotes" / "_delta_log").iterdir())
    # No file may grow beyond 20 kB: a write fails inside the part, as on a full disk, with no need for root.
    with writer(forks, tmp_path, 3, rows=20_000) as starved:
        assert starved.process.pid is not None
        resource.prlimit(starved.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        starved.go()
        (line,) = starved.finish()
    assert line.startswith("StoreError")
    assert "disk is full" in line
    assert sorted((tmp_path / "quotes" / "_delta_log").iterdir()) == log
    files = {p.path for p in tables.parts("quotes", root=tmp_path)}
    assert set((tmp_path / "quotes").glob("*.parquet")) == files
    assert_each_row_once(tmp_path, 2 * ROWS)
    with writer(forks, tmp_path, 4) as other:
        other.go()
        assert written(other.finish()) == 2 * ROWS
    assert_each_row_once(tmp_path, 4 * ROWS)
