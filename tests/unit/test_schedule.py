"""The schedule: what is due runs once, as a command of its own; nothing is pickled, nothing outlives Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from feature_repo.errors import StoreError, UsageError
from infra import cli, upkeep
from infra.settings import ROOT, settings
from ingestion import tables
from monitoring import jobs, schedule
from monitoring.jobs import Runner
from monitoring.jobstore import JsonJobStore
from tests.feature_rows import feature_rows, write_table

Until = Callable[..., bool]
TOUCH = (sys.executable, "-c", "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write('x')")
WAIT = (
    sys.executable,
    "-c",
    "import sys, pathlib, signal, time\n"
    "try: pathlib.Path(sys.argv[1]).write_text('on'); time.sleep(60)\n"
    "except KeyboardInterrupt: pathlib.Path(sys.argv[1]).write_text('ended')",
)


@pytest.fixture
def mark(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One job, at minute 0 of midnight, that is given a path."""
    path = data_dir / "mark"
    plan = jobs.Plan("test", {"hour": "0", "minute": "0"}, lambda now: [str(path)])
    monkeypatch.setattr(jobs, "PLANS", {"job": plan})
    return path


@contextmanager
def serving(program: tuple[str, ...]) -> Iterator[None]:
    """A scheduler for the time of the block."""
    stop, failed = threading.Event(), []

    def serve() -> None:
        try:
            schedule.serve(stop, Runner(program))
        except StoreError as error:
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert not failed, failed


def due(data: Path) -> dict[str, float]:
    """When each stored job is due; empty while there is no schedule."""
    with closing(sqlite3.connect(data / "schedule.db")) as db:
        there = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'jobs'").fetchone() == (1,)
        return dict(db.execute("SELECT id, next_run FROM jobs")) if there else {}


def move(data: Path, job: str, seconds: float) -> None:
    """Make a job due so many seconds from now."""
    with closing(sqlite3.connect(data / "schedule.db")) as db, db:
        db.execute("UPDATE jobs SET next_run = ? WHERE id = ?", (time.time() + seconds, job))


def planned(data: Path, until: Until) -> None:
    """Have a schedule that was stored by a scheduler which is gone."""
    with serving(TOUCH):
        assert until(lambda: (data / "schedule.db").exists() and "job" in due(data))


def test_a_job_that_was_missed_for_less_than_an_hour_runs_once(
    mark: Path, data_dir: Path, until: Until
) -> None:
    planned(data_dir, until)
    move(data_dir, "job", -1800)
    with serving(TOUCH):
        assert until(lambda: schedule.listing()[0]["code"] == 0)
    assert mark.read_text() == "x"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert due(data_dir)["job"] == pytest.approx(midnight.timestamp(), abs=86_400)
    assert due(data_dir)["job"] % 86_400 == 0


def test_a_job_that_was_missed_for_longer_waits_for_its_next_time(
    mark: Path, data_dir: Path, until: Until
) -> None:
    planned(data_dir, until)
    move(data_dir, "job", -3 * 3600)
    with serving(TOUCH):
        assert until(lambda: due(data_dir)["job"] > time.time())
    assert not mark.exists()


def test_when_a_job_is_due_is_kept_over_a_restart_and_a_job_of_old_goes(
    mark: Path, data_dir: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(data_dir, until)
    move(data_dir, "job", 1234)
    before = due(data_dir)
    planned(data_dir, until)
    assert due(data_dir) == before
    monkeypatch.setattr(jobs, "PLANS", {"other": jobs.PLANS["job"]})
    with serving(TOUCH):
        assert until(lambda: set(due(data_dir)) == {"other"})


def test_stopping_ends_the_running_job_as_ctrl_c_would(mark: Path, data_dir: Path, until: Until) -> None:
    planned(data_dir, until)
    move(data_dir, "job", -1)
    with serving(WAIT):
        assert until(lambda: mark.exists() and mark.read_text() == "on")
    assert mark.read_text() == "ended"


def test_a_job_runs_once_at_a_time_over_all_processes(mark: Path, until: Until) -> None:
    first, codes = Runner(WAIT), []
    thread = threading.Thread(target=lambda: codes.append(first.run("job")))
    thread.start()
    assert until(lambda: mark.exists() and mark.read_text() == "on")
    assert Runner(TOUCH).run("job") is None
    first.stop()
    thread.join(10)
    assert codes == [0] and mark.read_text() == "ended"
    assert Runner(TOUCH).run("job") == 0


def test_a_second_scheduler_on_one_folder_is_refused(mark: Path, data_dir: Path, until: Until) -> None:
    assert "no scheduler" in str(schedule.ill())
    with serving(TOUCH):
        assert until(lambda: schedule.ill() is None and "job" in due(data_dir))
        with pytest.raises(StoreError, match="runs already"):
            schedule.serve(threading.Event())
        move(data_dir, "job", 90_000)
    assert "no scheduler" in str(schedule.ill())


def test_an_unknown_job_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="drift, compact, retention, was 'nope'"):
        Runner().run("nope")


def test_stored_jobs_are_plain_text_and_run_what_the_program_says(tmp_path: Path) -> None:
    ran: list[str] = []
    path, scheduler = tmp_path / "jobs.db", BackgroundScheduler(timezone=UTC)
    store = JsonJobStore(path, ran.append)
    scheduler.add_jobstore(store)
    scheduler.start(paused=True)
    trigger = CronTrigger(day_of_week="mon-fri", hour="*/6", minute="5", timezone=UTC)
    scheduler.add_job(ran.append, trigger, args=["a"], id="one", misfire_grace_time=7)
    with closing(sqlite3.connect(path)) as db, db:
        ((state,),) = db.execute("SELECT state FROM jobs")
        evil = {**json.loads(state), "func": "os:abort"}
        db.execute("UPDATE jobs SET state = ?", (json.dumps(evil),))
    back = store.lookup_job("one")
    assert back is not None
    back.func(*back.args)
    assert ran == ["a"]
    at, times = datetime(2026, 1, 2, 20, tzinfo=UTC), []
    for _ in range(9):
        same = [t.get_next_fire_time(None, at) for t in (trigger, back.trigger)]
        assert same[0] == same[1]
        at = same[0] + timedelta(seconds=1)
        times.append(same[0])
    assert len(set(times)) == 9
    assert (back.misfire_grace_time, back.next_run_time) == (
        7,
        trigger.get_next_fire_time(None, datetime.now(UTC)),
    )
    scheduler.shutdown()


def test_a_damaged_file_is_named(data_dir: Path) -> None:
    (data_dir / "schedule.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"schedule\.db"):
        schedule.listing()


def test_the_command_serves_until_it_is_told_to_end(data_dir: Path, until: Until) -> None:
    command = [sys.executable, "-m", "infra.cli", "schedule"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "VOLSPIKE_DATA": str(data_dir)}) as process:
        try:
            assert until(lambda: schedule.ill() is None and len(due(data_dir)) == 3, 30)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert {row["job"] for row in schedule.listing()} == {"drift", "compact", "retention"}


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    assert isinstance(end.value.code, int)
    return end.value.code


def test_once_runs_the_real_command_and_hands_its_code_on(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("schedule", "--once", "drift", "--json") == 1  # there are no rows
    out = capfd.readouterr().out
    assert json.loads(out) == {"job": "drift", "code": 1, "ran": True}
    assert run("schedule", "--once", "drift", "--list") == 2


def test_compaction_merges_parts_and_keeps_every_row(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = feature_rows("BTC-USD", [i * 1_000_000 for i in range(6)])
    write_table(settings().tables, *(rows.slice(i, 1) for i in range(6)))
    before = tables.scan("spike_features").sort("row_time").collect()
    assert run("clean", "--compact", "--json") == 0
    many, few = json.loads(capsys.readouterr().out)["parts"]["spike_features"]
    assert many > few == 1
    assert tables.scan("spike_features").sort("row_time").collect().equals(before)
    assert isinstance(before, pl.DataFrame) and len(before) == 6


def test_what_is_old_goes_and_nothing_else(data_dir: Path, tmp_path: Path) -> None:
    raw, scheduled = data_dir / "raw", data_dir / "reports" / "scheduled" / "2026-01-01T0005Z"
    raw.mkdir()
    scheduled.mkdir(parents=True)
    outside = tmp_path / "outside.ndjson.zst"
    kept = [raw / "new.ndjson.zst", raw / "old.csv", data_dir / "reports" / "old.html", outside]
    gone = [raw / "old.ndjson.zst", scheduled / "drift.html"]
    for path in [*kept, *gone]:
        path.write_text("x")
        if path.name != "new.ndjson.zst":
            os.utime(path, (time.time() - 31 * 86_400,) * 2)
    (raw / "link.ndjson.zst").symlink_to(outside)
    assert upkeep.delete_old(0).tapes == []
    assert all(path.exists() for path in gone)
    done = upkeep.delete_old(30)
    assert (done.tapes, done.reports) == ([str(gone[0])], [str(gone[1])])
    assert not any(path.exists() for path in gone) and not scheduled.exists()
    assert all(path.exists() for path in kept) and (raw / "link.ndjson.zst").is_symlink()
