"""What the benchmarks of the live path share: brokers, Redis, commands in processes of their own, processor time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 180.0
"""Bound on anything that another process is to do: the kernel may be compiled first."""


@dataclass
class Place:
    """A broker, a Redis and a data folder of their own.

    Attributes
    ----------
    kind
        ``real`` or ``embedded``: which broker.
    servers, redis
        Addresses.
    data
        Folder.
    broker
        Its supervisor; ``pid`` is the broker's.
    """

    kind: str
    servers: str
    redis: str
    data: Path
    broker: Any

    def environment(self, data: str = "data") -> dict[str, str]:
        """Settings of a command that belongs to this place."""
        return {
            **os.environ,
            "VOLSPIKE_DATA": str(self.data / data),
            "VOLSPIKE_KAFKA_SERVERS": self.servers,
            "VOLSPIKE_REDIS_URL": self.redis,
            "VOLSPIKE_LOG_LEVEL": "warning",
        }


@contextmanager
def place(kind: str) -> Iterator[Place]:
    """Start a broker and a Redis, and end both."""
    from infra.broker import EmbeddedKafka
    from infra.embedded import EmbeddedRedis
    from infra.kafka_server import RealKafka

    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        broker: Any = RealKafka(free_port(), folder) if kind == "real" else EmbeddedKafka(4, folder)
        stack.enter_context(broker)
        redis = stack.enter_context(EmbeddedRedis(free_port(), folder))
        yield Place(kind, broker.address, redis.address, folder, broker)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One process of the live path; its JSON on standard output is read at the end.

    Parameters
    ----------
    command
        Arguments after the interpreter.
    environment
        All of it.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._out: IO[str] = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=self._out)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def cpu_s(self) -> float:
        """Processor time that it used so far, s."""
        return cpu_s(self.pid)

    def end(self) -> dict[str, Any]:
        """Stop it as a user would, and return what it said."""
        self.process.send_signal(signal.SIGINT)
        return self.result()

    def result(self) -> dict[str, Any]:
        """Wait for its end and return the JSON object that it printed last."""
        code = self.process.wait(WAIT_S)
        self._out.seek(0)
        said = self._out.read()
        self._out.close()
        if code:
            raise RuntimeError(f"{self.process.args} ended with code {code}: {said[-500:]}")
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return found

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[Process]:
    """Run a process for the time of the block at most."""
    process = Process(command, environment)
    try:
        yield process
    finally:
        process.kill()


def volspike(*arguments: str) -> list[str]:
    """Return the arguments that run a ``volspike`` command with JSON as its output."""
    return ["-m", "infra.cli", *arguments, "--json"]


def address_of(folder: Path, name: str) -> str:
    """Wait for a service's entry under a data folder and return its address."""
    from infra import services

    def there() -> bool:
        return bool(services.running(folder / "run", name))

    wait(there, f"{name} to listen")
    return services.running(folder / "run", name)[0].address


def wait(holds: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what} in vain")
        time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """Processor time that a process used so far, s."""
    used = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory that a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def figure(
    metric: str,
    value: float,
    unit: str,
    target: float | None = None,
    op: str | None = None,
    versus: float | None = None,
) -> dict[str, Any]:
    """Return one result."""
    op = op if target is not None else None
    return {"metric": metric, "value": value, "unit": unit, "target": target, "op": op, "versus": versus}
