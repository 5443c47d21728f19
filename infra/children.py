"""Commands of ours run beside each other: started, watched, begun again where they die, ended in order.

On Linux they are told to end where the one that started them is killed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from feature_repo.errors import StoreError
from infra.settings import ROOT, child_environment, settings
from infra.supervisor import stop_with_parent

STOP_S: Final = 40.0
"""How long a command may take to end in order: a featurizer's last commit may wait 30 s."""
MOST_RESTARTS: Final = 5
"""Deaths in :data:`WITHIN_S` after which beginning again is no help."""
WITHIN_S: Final = 60.0


def volspike(*arguments: str) -> list[str]:
    """Return the command line of one of our commands, run by this interpreter.

    Examples
    --------
    >>> volspike("ingest", "--json")[1:]
    ['-m', 'infra.cli', 'ingest', '--json']
    """
    return [sys.executable, "-m", "infra.cli", *arguments]


class Child:
    """A command that runs until it is told to stop.

    Parameters
    ----------
    name
        What it is called in messages, and its files in ``folder``: ``<name>.log``, ``<name>.out``.
    command
        Its command line.
    folder
        Where what it says goes.
    environment
        Its environment.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = list(command)
        self.out = folder / f"{name}.out"
        self.log = folder / f"{name}.log"
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: list[float] = []
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Its process, 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; Ctrl-C on the terminal doesn't reach it, since whoever started it ends it in order."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        mode = "ab" if self.restarts else "wb"
        with self.log.open(mode) as log, self.out.open("wb") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                preexec_fn=stop_with_parent(),
            )

    def revive(self) -> bool:
        """Begin it again where it died; True if so.

        Raises
        ------
        StoreError
            If it dies again and again.
        """
        if self._process is None or self._process.poll() is None:
            return False
        now = time.monotonic()
        self._deaths = [t for t in self._deaths if now - t < WITHIN_S] + [now]
        if len(self._deaths) > MOST_RESTARTS:
            raise StoreError(
                f"{self.name} ended {len(self._deaths)} times within {WITHIN_S:.0f} s: {self.last_words()}"
            )
        self.restarts += 1
        self.start()
        return True

    def stop(self) -> int:
        """End it in order, by force where it doesn't; return its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def last_words(self) -> str:
        """Return the last line that it wrote to its log, and where that is."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return f"{lines[-1][:300] if lines else 'it said nothing'} (see {self.log})"


@contextmanager
def running(name: str, command: Sequence[str], **environment: str) -> Iterator[Child]:
    """Run a command as long as the block, in the settings' run folder; it is ended in order after it."""
    child = Child(name, command, settings().run, child_environment(**environment))
    child.start()
    try:
        yield child
    finally:
        child.stop()
