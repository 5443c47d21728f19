"""The jobs that are done in time, each a `volspike` command in a process of its own, and how one is run.

So this room needs none of the others, and a job that fails or leaks takes nothing along.
"""

from __future__ import annotations

import fcntl
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
from typing import Final

import structlog

from feature_repo.errors import StoreError, UsageError
from infra.settings import child_environment, settings
from monitoring.jobstore import database

SIGNAL_S: Final = 1.0
"""Longest wait without a look at what came in: a signal that arrives just before an endless wait would not end it."""
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
        with held(settings().run / f"schedule-{name}.lock") as free:
            if not free:
                structlog.get_logger().warning("job runs already", job=name)
                return None
            began, started = time.monotonic(), datetime.now(UTC)
            process = self._start(plan.arguments(started))
            if process is None:
                return None
            code = _wait(process)
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


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait(SIGNAL_S)
        except subprocess.TimeoutExpired:
            continue


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


def file() -> Path:
    """Return the SQLite file of jobs and runs."""
    return settings().data / "schedule.db"


def _note(name: str, started: datetime, seconds: float, code: int) -> None:
    with database(file()) as db:
        db.execute(_RUNS)
        db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (name, started.timestamp(), seconds, code))
        db.execute(
            "DELETE FROM runs WHERE rowid <= (SELECT max(rowid) FROM runs) - ?",
            (_KEPT_RUNS,),
        )


@contextmanager
def held(path: Path, patience_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock over processes for the block; False where another has it for longer than ``patience_s``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} can't be written: {error.strerror}. Set VOLSPIKE_DATA to a folder of yours"
        ) from error
    try:
        yield _locked(file, time.monotonic() + patience_s)
    finally:
        os.close(file)


def _locked(file: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True
