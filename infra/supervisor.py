"""How a command starts a server of ours, and how that server never outlives it.

::

    command ──starts──► supervisor ──starts──► server            bound to 127.0.0.1
       │   pipe on its standard input │  SIGTERM, wait   ▲
       └── closed on exit or kill -9 ─┘──────────────────┘        entry in <data>/run/services.json

The supervisor holds the reading end of a pipe whose writing end only the command has. However the command ends, the
pipe closes and the server is stopped in order. On Linux the kernel also stops the server should the supervisor itself
be killed. `Supervised` is the command's side; the functions below it are the supervisor's.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from feature_repo.errors import StoreError
from infra import services

HOST = "127.0.0.1"
STOP_S = 20.0
"""Bound on stopping in order; after it the server is killed. What it had acknowledged is on disk by then."""
WATCH_S = 1.0
"""How often the supervisor looks whether server and parent are there, beside being told by the pipe."""


class Supervised:
    """A server in a process of its own for the time of a ``with`` block.

    Parameters
    ----------
    command
        Arguments after ``python -m``: the supervisor's module and options. It prints one JSON object when the server
        answers, ``{"error": …}`` where it can't, and ends when its standard input closes.

    Raises
    ------
    StoreError
        On entering, with what the supervisor said.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._supervisor: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self.ready["pid"])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", *self._command, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
            start_new_session=True,  # Ctrl-C on the terminal is the command's to handle; the server outlives it
        )
        assert self._supervisor.stdout is not None  # noqa: S101
        try:
            answer = json.loads(self._supervisor.stdout.readline() or '{"error": "its supervisor ended silently"}')
            if "error" in answer:
                raise StoreError(answer["error"])
            self.ready = answer
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server in order; nothing to stop is no error."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        for pipe in (supervisor.stdin, supervisor.stdout):
            if pipe is not None:
                pipe.close()
        try:
            supervisor.wait(STOP_S + 5)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()


@contextmanager
def ensure(
    name: str,
    setting: str,
    ping: Callable[[str], None],
    answers: Callable[[str, int], bool],
    start: Callable[[], AbstractContextManager[Any]],
) -> Iterator[str]:
    """Have a service for the time of the block, and point the settings of this process at it.

    Parameters
    ----------
    name
        Of the service in ``services.json``.
    setting
        Field of the settings that holds its address; empty means none is configured.
    ping
        Raises StoreError where the configured one doesn't answer.
    answers
        Whether the one of ``services.json`` does.
    start
        Makes an embedded one: a context manager with an ``address``.

    Yields
    ------
    str
        Its address.
    """
    from infra.settings import settings

    configured: str = getattr(settings(), setting)
    if configured:
        ping(configured)
        yield configured
        return
    for service in services.running(settings().run, name):
        if answers(service.host, service.port):
            with _pointed_at(setting, service.address):
                yield service.address
            return
    with start() as server, _pointed_at(setting, server.address):
        yield server.address


@contextmanager
def _pointed_at(setting: str, address: str) -> Iterator[None]:
    from infra.settings import settings

    variable = f"VOLSPIKE_{setting.upper()}"
    os.environ[variable] = address
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        settings.cache_clear()


def busy(port: int) -> bool:
    """Whether somebody has this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


@contextmanager
def folder_to_itself(folder: Path, what: str) -> Iterator[IO[str]]:
    """Have a folder, made where missing, that no second server uses, and the server's log in it.

    Raises
    ------
    StoreError
        If another server holds the folder, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, log = (folder / "lock").open("w"), (folder / "server.log").open("a+")
    except OSError as error:
        raise StoreError(
            f"{what} can't write to {folder}: {error.strerror}. Set VOLSPIKE_DATA to a folder of yours"
        ) from error
    with lock, log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{what} of {folder} runs already: use it (its port stands in run/services.json), or set "
                "VOLSPIKE_DATA to another folder"
            ) from None
        yield log


@contextmanager
def child(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, its output to ``log``; stop it in order at the end."""
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C on the terminal is its supervisor's to handle
        preexec_fn=stop_with_parent(),
    )
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_ready(
    server: subprocess.Popen[bytes], answers: Callable[[], bool], seconds: float, what: str, log: Path
) -> None:
    """Wait until a server answers.

    Raises
    ------
    StoreError
        If it ends or ``seconds`` pass before that; with the last line of its log.
    """
    deadline = time.monotonic() + seconds
    while not answers():
        if server.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise StoreError(f"{what} didn't start: {''.join(last)}. See {log}")
        time.sleep(0.01)


@contextmanager
def announced(run: Path, name: str, pid: int, port: int) -> Iterator[None]:
    """Have an entry in ``services.json``."""
    services.announce(run, services.Service(name, pid, HOST, port, datetime.now(UTC).isoformat(timespec="seconds")))
    try:
        yield
    finally:
        services.withdraw(run, pid)


def watch(alive: Callable[[], bool], parent: int | None) -> None:
    """Wait until the server is gone, or the parent (None: there is none) is, or has closed the pipe."""
    while alive() and (parent is None or os.getppid() == parent):
        readable, _, _ = select.select([sys.stdin] if parent is not None else [], [], [], WATCH_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def run(serve: Callable[[], None], *, as_json: bool = True) -> None:
    """Run a supervisor to its end: SIGTERM and SIGINT stop it in order, an error becomes its answer.

    Parameters
    ----------
    serve
        Runs the server.
    as_json
        A command reads the answer; otherwise a person does, on standard error.

    Raises
    ------
    SystemExit
        With 1 after an error.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        serve()
    except BrokenPipeError:
        sys.exit(1)  # whom it would have told is gone
    except StoreError as error:
        if as_json:
            print(json.dumps({"error": str(error)}), flush=True)
        else:
            print(f"volspike: {error}", file=sys.stderr)
        sys.exit(1)


def _end(number: int, frame: FrameType | None) -> None:
    # a second one, as a terminal sends it to the whole group, must not interrupt the stopping
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def stop_with_parent() -> Callable[[], None] | None:
    """Have the kernel send SIGTERM to a process when the one that started it dies; Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    return lambda: prctl(set_parent_death_signal, signal.SIGTERM)
