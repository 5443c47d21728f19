"""What runs embedded: ``<data>/run/services.json``, one entry per service, read by the other commands.

The file is replaced whole (temporary name, then rename), so a reader never sees half of it; writers take turns by a
lock on a file beside it. An entry whose process is gone (kill -9, power cut) is passed over by readers and dropped by
the next writer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "services.json"


@dataclass(frozen=True, slots=True)
class Service:
    """One running service.

    Attributes
    ----------
    name
        What it is, such as ``redis``.
    pid
        Process that serves.
    host, port
        Where it listens.
    started
        When it was ready, ISO 8601 UTC.
    """

    name: str
    pid: int
    host: str
    port: int
    started: str

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


def alive(pid: int) -> bool:
    """Whether a process of this id runs; a child of ours that has ended doesn't, though nobody has waited for it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if hasattr(os, "waitid"):  # not on macOS before Python 3.13
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return True


def running(folder: Path, name: str | None = None) -> list[Service]:
    """Services whose process is alive.

    Parameters
    ----------
    folder
        ``settings().run``.
    name
        Only services of this name.
    """
    return [s for s in _read(folder / FILE) if (name is None or s.name == name) and alive(s.pid)]


def announce(folder: Path, service: Service) -> None:
    """Add an entry."""
    _edit(folder, lambda there: [*(s for s in there if s.pid != service.pid), service])


def withdraw(folder: Path, pid: int) -> None:
    """Remove the entry of a process; no entry is no error."""
    _edit(folder, lambda there: [s for s in there if s.pid != pid])


def _read(path: Path) -> list[Service]:
    try:
        return [Service(**entry) for entry in json.loads(path.read_text())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, TypeError, AttributeError):
        return []  # damaged: it only says what runs, and whoever starts next writes it anew


def _edit(folder: Path, change: Callable[[list[Service]], list[Service]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with _locked(folder / f"{FILE}.lock"):
        kept = change([s for s in _read(path) if alive(s.pid)])
        new = path.with_name(f"{FILE}.{os.getpid()}")
        new.write_text(json.dumps([asdict(s) for s in kept], indent=2) + "\n")
        new.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
