"""APScheduler's jobs in SQLite as JSON: names, arguments and times, never a pickle.

APScheduler's own stores pickle each job, so that whoever may write the file may run code as the scheduler. Here a job
is its id, its trigger's fields and when it is due; what it runs is given by the program, not by the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore, ConflictingIdError, JobLookupError
from apscheduler.triggers.cron import CronTrigger

from feature_repo.errors import StoreError

if TYPE_CHECKING:
    from apscheduler.schedulers.base import BaseScheduler

_TABLE: Final = "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, next_run REAL, state TEXT NOT NULL)"
_KEPT: Final = ("name", "misfire_grace_time", "coalesce", "max_instances", "executor")


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file for one transaction.

    Raises
    ------
    StoreError
        If it can't be opened, or is no SQLite database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
            yield connection
    except (OSError, sqlite3.DatabaseError) as error:
        raise StoreError(
            f"the schedule's file {path} can't be used: {error}. Move it away to begin a new one"
        ) from error


class JsonJobStore(BaseJobStore):  # type: ignore[misc]  # apscheduler is untyped
    """Jobs of one function, with cron triggers in UTC and text arguments.

    Parameters
    ----------
    path
        SQLite file, made where missing.
    function
        What every job runs, with the job's arguments.
    """

    def __init__(self, path: Path, function: Callable[..., object]) -> None:
        super().__init__()
        self._path = path
        self._function = function

    def start(self, scheduler: BaseScheduler, alias: str) -> None:
        """Make the table where missing."""
        super().start(scheduler, alias)
        with database(self._path) as db:
            db.execute(_TABLE)

    def lookup_job(self, job_id: str) -> Job | None:
        """Return a job, or None."""
        return next(iter(self._jobs("WHERE id = ?", job_id)), None)

    def get_due_jobs(self, now: datetime) -> list[Job]:
        """Return the jobs whose time has come, the longest due first."""
        return self._jobs("WHERE next_run <= ? ORDER BY next_run", now.timestamp())

    def get_next_run_time(self) -> datetime | None:
        """Return when the next job is due, or None."""
        with database(self._path) as db:
            (first,) = db.execute("SELECT min(next_run) FROM jobs").fetchone()
        return None if first is None else datetime.fromtimestamp(first, UTC)

    def get_all_jobs(self) -> list[Job]:
        """Return all jobs, the next first."""
        return self._jobs("ORDER BY next_run IS NULL, next_run")

    def add_job(self, job: Job) -> None:
        """Add a job; ConflictingIdError where its id is taken."""
        with database(self._path) as db:
            try:
                db.execute("INSERT INTO jobs VALUES (?, ?, ?)", (job.id, *_packed(job)))
            except sqlite3.IntegrityError:
                raise ConflictingIdError(job.id) from None

    def update_job(self, job: Job) -> None:
        """Replace a job; JobLookupError where there is none."""
        self._change("UPDATE jobs SET next_run = ?, state = ? WHERE id = ?", job.id, *_packed(job))

    def remove_job(self, job_id: str) -> None:
        """Remove a job; JobLookupError where there is none."""
        self._change("DELETE FROM jobs WHERE id = ?", job_id)

    def remove_all_jobs(self) -> None:
        """Remove all jobs."""
        with database(self._path) as db:
            db.execute("DELETE FROM jobs")

    def _change(self, statement: str, job_id: str, *values: object) -> None:
        with database(self._path) as db:
            if db.execute(statement, (*values, job_id)).rowcount == 0:
                raise JobLookupError(job_id)

    def _jobs(self, which: str, *values: object) -> list[Job]:
        with database(self._path) as db:
            rows = db.execute(f"SELECT id, next_run, state FROM jobs {which}", values).fetchall()  # noqa: S608
        return [self._unpacked(*row) for row in rows]

    def _unpacked(self, job_id: str, next_run: float | None, text: str) -> Job:
        state = json.loads(text)
        job = Job.__new__(Job)
        job.__setstate__(
            {
                "version": 1,
                "id": job_id,
                "func": "builtins:callable",  # a reference is asked for; the function itself is set below
                "trigger": CronTrigger(**state["cron"], timezone=UTC),
                "args": tuple(state["args"]),
                "kwargs": {},
                "next_run_time": None if next_run is None else datetime.fromtimestamp(next_run, UTC),
                **{key: state[key] for key in _KEPT},
            }
        )
        job.func = self._function
        job._scheduler, job._jobstore_alias = self._scheduler, self._alias  # noqa: SLF001  (as its own stores do)
        return job


def cron_fields(trigger: CronTrigger) -> dict[str, str]:
    """Fields of a cron trigger that were given.

    Examples
    --------
    >>> cron_fields(CronTrigger(hour="3", minute="50", timezone=UTC))
    {'hour': '3', 'minute': '50'}
    """
    return {field.name: str(field) for field in trigger.fields if not field.is_default}


def _packed(job: Job) -> tuple[float | None, str]:
    state = {
        "cron": cron_fields(job.trigger),
        "args": list(job.args),
        **{key: getattr(job, key) for key in _KEPT},
    }
    return (job.next_run_time.timestamp() if job.next_run_time else None), json.dumps(state)
