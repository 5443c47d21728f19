"""What is done in time: the drift report every hour, compaction of the tables, retention.

::

    <data>/schedule.db ──► APScheduler ──due──► a `volspike` command in a process of its own ──► runs, in the same file

Each job is a command, so that this room needs none of the others and a job that fails or leaks takes nothing along. A
job runs once at a time, over all processes of a data folder; one that was due while nobody was there runs once at the
next start, if that is within `LATE_S`. All times are UTC.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from feature_repo.errors import StoreError, UsageError
from infra.settings import child_environment, settings
from monitoring.jobstore import database

LATE_S: Final = 3600
"""How late a job may still start: a machine that slept runs the last hour's report, not last week's."""
STOP_S: Final = 20.0
"""How long a running job may take to end after it is told to; then it is killed."""
_RUNS: Final = "CREATE TABLE IF NOT EXISTS runs (job TEXT, started REAL, seconds REAL, code INTEGER)"
_KEPT_RUNS: Final = 2000


@dataclass(frozen=True, slots=True)
class Plan:
    """One job.

    Attributes
    ----------
    what
        For people.
    cron
        When, as APScheduler's cron fields; UTC.
    arguments
        Of the ``volspike`` command, at the time of its start.
    """

    what: str
    cron: Mapping[str, str]
    arguments: Callable[[datetime], list[str]]


def _drift(now: datetime) -> list[str]:
    def text(hours: int) -> str:
        return (now - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")

    out = settings().reports / "scheduled" / now.strftime("%Y-%m-%dT%H%MZ")
    return ["drift", "--reference", f"{text(25)}..{text(1)}", "--current", f"{text(1)}..", "--out", str(out)]


PLANS: Final[Mapping[str, Plan]] = {
    "drift": Plan("the last hour's features against the day before", {"minute": "5"}, _drift),
    "compact": Plan("small parts of the tables merged", {"minute": "35"}, lambda now: ["clean", "--compact"]),
    "retention": Plan(
        "old tapes, reports and unused table files deleted",
        {"hour": "3", "minute": "50"},
        lambda now: ["clean", "--old"],
    ),
}


class Runner:
    """Starts the commands of jobs, waits for them, and notes how they ended.

    Parameters
    ----------
    program
        What the arguments of a job are given to; by default ``volspike`` of this environment.
    """

    def __init__(self, program: Sequence[str] = (sys.executable, "-m", "infra.cli")) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, name: str) -> int | None:
        """Run a job to its end.

        Returns
        -------
        int or None
            Exit code of its command; None where it runs already, here or in another process, or all is stopping.

        Raises
        ------
        UsageError
            If there is no such job.
        """
        plan = plan_of(name)
        with _held(settings().run / f"schedule-{name}.lock") as free:
            if not free:
                structlog.get_logger().warning("job runs already", job=name)
                return None
            began, started = time.monotonic(), datetime.now(UTC)
            process = self._start(plan.arguments(started))
            if process is None:
                return None
            code = process.wait()
            with self._lock:
                self._running.discard(process)
            seconds = round(time.monotonic() - began, 3)
            _note(name, started, seconds, code)
        log = structlog.get_logger()
        (log.warning if code else log.info)("job ended", job=name, code=code, seconds=seconds)
        return code

    def stop(self) -> None:
        """End what runs as Ctrl-C would, and start nothing more."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping:
                return None
            process = subprocess.Popen(
                [*self._program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,  # what a job says is log, whoever reads it
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is ours to hand on, once
            )
            self._running.add(process)
            return process


def plan_of(name: str) -> Plan:
    """Return a job by its name.

    Raises
    ------
    UsageError
        If there is none.
    """
    if name not in PLANS:
        raise UsageError(f"job must be one of {', '.join(PLANS)}, was {name!r}")
    return PLANS[name]


def serve(stop: threading.Event, runner: Runner | None = None) -> None:
    """Run all jobs in time until ``stop`` is set.

    Parameters
    ----------
    stop
        Ends it, after the running job, which is told to end as by Ctrl-C.
    runner
        Runs the jobs; by default as ``volspike`` commands.

    Raises
    ------
    StoreError
        If another scheduler runs on this data folder, or its file can't be used.
    """
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    from monitoring.jobstore import JsonJobStore

    with _held(_lock_file()) as free:
        if not free:
            raise StoreError(
                f"a scheduler runs already on {settings().data}: one is enough; volspike schedule --list shows its jobs"
            )
        runner = runner or Runner()
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # its events come to our log below
        scheduler = BackgroundScheduler(
            jobstores={"default": JsonJobStore(_file(), runner.run)},
            executors={
                "default": ThreadPoolExecutor(1)
            },  # one after the other: they share a disk and two cores
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": LATE_S},
            timezone=UTC,
        )
        _tell_events(scheduler)
        scheduler.start(paused=True)
        _plan(scheduler, runner)
        scheduler.resume()
        try:
            stop.wait()
        finally:
            scheduler.pause()
            runner.stop()
            scheduler.shutdown(wait=True)


def _plan(scheduler: Any, runner: Runner) -> None:
    """Bring the stored jobs to what this program plans, keeping when each is due where its times are the same."""
    from apscheduler.triggers.cron import CronTrigger

    from monitoring.jobstore import cron_fields

    stored = {job.id: job for job in scheduler.get_jobs()}
    for name in stored.keys() - PLANS.keys():
        scheduler.remove_job(name)
    for name, plan in PLANS.items():
        there = stored.get(name)
        if there is None or cron_fields(there.trigger) != plan.cron:
            trigger = CronTrigger(**plan.cron, timezone=UTC)
            scheduler.add_job(runner.run, trigger, args=[name], id=name, name=name, replace_existing=True)


def _tell_events(scheduler: Any) -> None:
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED

    def tell(event: Any) -> None:
        said = {EVENT_JOB_ERROR: "job failed", EVENT_JOB_MISSED: "job missed, it was due too long ago"}
        error = getattr(event, "exception", None)
        structlog.get_logger().warning(
            said.get(event.code, "job still runs, not started again"),
            job=event.job_id,
            error=str(error) if error else None,
        )

    scheduler.add_listener(tell, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)


def listing() -> list[dict[str, Any]]:
    """Jobs with their next and last run.

    Returns
    -------
    list of dict
        ``job what command next last code seconds``; times ISO 8601 UTC; None where unknown.

    Raises
    ------
    StoreError
        If the schedule's file can't be used.
    """
    due: dict[str, float] = {}
    last: dict[str, tuple[float, float, int]] = {}
    if _file().exists():
        with database(_file()) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            if "jobs" in tables:
                due = dict(db.execute("SELECT id, next_run FROM jobs"))
            if "runs" in tables:
                found = db.execute("SELECT job, max(started), seconds, code FROM runs GROUP BY job")
                last = {job: (started, seconds, code) for job, started, seconds, code in found}
    rows = []
    for name, plan in PLANS.items():
        started, seconds, code = last.get(name, (None, None, None))
        rows.append(
            {
                "job": name,
                "what": plan.what,
                "command": " ".join(["volspike", *plan.arguments(datetime.now(UTC))]),
                "next": _iso(due.get(name)),
                "last": _iso(started),
                "code": code,
                "seconds": seconds,
            }
        )
    return rows


def ill() -> str | None:
    """Say what is wrong with the scheduler of this data folder; None if it runs and no job is long overdue."""
    with _held(_lock_file()) as free:
        if free:
            return f"no scheduler runs on {settings().data}"
    late = datetime.now(UTC) - timedelta(seconds=LATE_S)
    overdue = [row["job"] for row in listing() if row["next"] and datetime.fromisoformat(row["next"]) < late]
    return f"overdue: {', '.join(overdue)}" if overdue else None


def _file() -> Path:
    return settings().data / "schedule.db"


def _lock_file() -> Path:
    return settings().run / "schedule.lock"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _note(name: str, started: datetime, seconds: float, code: int) -> None:
    with database(_file()) as db:
        db.execute(_RUNS)
        db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (name, started.timestamp(), seconds, code))
        db.execute(
            "DELETE FROM runs WHERE rowid <= (SELECT max(rowid) FROM runs) - ?",
            (_KEPT_RUNS,),
        )


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold a lock over processes for the block; False where another has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} can't be written: {error.strerror}. Set VOLSPIKE_DATA to a folder of yours"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)
