"""What is done in time: the drift report every hour, compaction of the tables, retention.

::

    <data>/schedule.db ──► APScheduler ──due──► a `volspike` command in a process of its own ──► runs, in the same file

`monitoring.jobs` has the jobs. A job runs once at a time, over all processes of a data folder; one that was due while
nobody was there runs once at the next start, if that is within `LATE_S`. All times are UTC.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from feature_repo.errors import StoreError
from infra.settings import settings
from monitoring import jobs
from monitoring.jobs import SIGNAL_S, Runner, held
from monitoring.jobstore import JsonJobStore, cron_fields, database

PROBE_S: Final = 1.0
"""How long a starting scheduler waits for its lock, which a look at the schedule takes for a moment too."""
LATE_S: Final = 3600
"""How late a job may still start: a machine that slept runs the last hour's report, not last week's."""


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

    with held(_lock_file(), PROBE_S) as free:
        if not free:
            raise StoreError(
                f"a scheduler runs already on {settings().data}: one is enough; volspike schedule --list shows its jobs"
            )
        runner = runner or Runner()
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # its events come to our log below
        scheduler = BackgroundScheduler(
            jobstores={"default": JsonJobStore(jobs.file(), runner.run)},
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
            while not stop.wait(SIGNAL_S):
                pass
        finally:
            scheduler.pause()
            runner.stop()
            scheduler.shutdown(wait=True)


def _plan(scheduler: Any, runner: Runner) -> None:
    """Bring the stored jobs to what this program plans, keeping when each is due where its times are the same."""
    from apscheduler.triggers.cron import CronTrigger

    stored = {job.id: job for job in scheduler.get_jobs()}
    for name in stored.keys() - jobs.PLANS.keys():
        scheduler.remove_job(name)
    for name, plan in jobs.PLANS.items():
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
    if jobs.file().exists():
        with database(jobs.file()) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            if "jobs" in tables:
                due = dict(db.execute("SELECT id, next_run FROM jobs"))
            if "runs" in tables:
                found = db.execute("SELECT job, max(started), seconds, code FROM runs GROUP BY job")
                last = {job: (started, seconds, code) for job, started, seconds, code in found}
    rows = []
    for name, plan in jobs.PLANS.items():
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
    with held(_lock_file()) as free:
        if free:
            return f"no scheduler runs on {settings().data}"
    late = datetime.now(UTC) - timedelta(seconds=LATE_S)
    overdue = [row["job"] for row in listing() if row["next"] and datetime.fromisoformat(row["next"]) < late]
    return f"overdue: {', '.join(overdue)}" if overdue else None


def _lock_file() -> Path:
    return settings().run / "schedule.lock"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
