"""One real Apache Kafka on this machine, without Docker: its published jars on a Java that is there.

::

    python -m infra.kafka_server [--port N] [--data DIR]      make kafka: in the foreground, Ctrl-C ends it
    python -m infra.kafka_server --download                   the jars only
    python -m infra.kafka_server --inside kafka:29092         in a container, for others of its network too

A KRaft broker, which is its own controller. It listens on loopback, keeps its log in ``<data>/kafka/log`` (over kill -9
too), writes itself to ``<data>/run/services.json``, and ends with the process that started it. `infra.kafka_jars` says
where the jars come from.

Source: Apache Kafka, ``config/server.properties`` and ``bin/kafka-server-start.sh``; no shell script of it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from feature_repo.errors import StoreError
from infra import supervisor
from infra.kafka_jars import Kafka, archiving, prepare
from infra.supervisor import HOST

START_S: Final = 60.0
"""Bound on starting: 3 s where idle; reading back a log after kill -9 on a busy machine takes longer."""


class RealKafka(supervisor.Supervised):
    """Apache Kafka for the time of a ``with`` block.

    Parameters
    ----------
    port
        Port on 127.0.0.1; None means the setting ``VOLSPIKE_KAFKA_PORT``. The controller picks another by itself.
    data
        Data folder; None means the setting ``VOLSPIKE_DATA``.

    Raises
    ------
    StoreError
        On entering, if Java, Maven or the jars are missing, the port is busy, or it doesn't start.
    """

    def __init__(self, port: int | None = None, data: Path | None = None) -> None:
        from infra.settings import settings

        self.port = settings().kafka_port if port is None else port
        self.data = settings().data if data is None else data
        super().__init__(["infra.kafka_server", "--port", str(self.port), "--data", str(self.data)])

    @property
    def address(self) -> str:
        """Bootstrap servers, ``host:port``."""
        return f"{HOST}:{self.port}"

    def kill(self) -> None:
        """End the broker as a power cut would: kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def restart(self) -> None:
        """Start it again on the same port and log."""
        self.stop()
        self.start()


def _properties(port: int, controller: int, log: Path, inside: str | None = None) -> str:
    every = HOST if inside is None else "0.0.0.0"  # noqa: S104  (only where --inside asks for it)
    listeners = {"PLAINTEXT": (f"{every}:{port}", f"{HOST}:{port}")}
    if inside is not None:
        listeners["INSIDE"] = (f"{every}:{inside.rpartition(':')[2]}", inside)
    at = ",".join(f"{name}://{where}" for name, (where, _) in listeners.items())
    return "\n".join(
        f"{key}={value}"
        for key, value in {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"{HOST}:{controller}",
            "listeners": f"{at},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": ",".join(f"{name}://{told}" for name, (_, told) in listeners.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*listeners, "CONTROLLER")),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": log,
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": 4,  # 50 by default: each a folder to make and to read back
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,  # lets a consumer ask for a quicker take-over than the usual 6 s
            # after kill -9 the broker is let in again only when its old session is over, 9 s by default
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "log.retention.hours": 168,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }.items()
    )


def _format(kafka: Kafka, properties: Path, log: Path) -> None:
    """Give the log folder its cluster id, the first time only: after a crash it is read back as it lies there."""
    if (log / "meta.properties").exists():
        return
    cluster = "-"
    while cluster.startswith("-"):  # the tool would read it as an option
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(properties)]
    once = kafka.command(*tool)
    done = subprocess.run(once, capture_output=True, text=True, timeout=START_S)
    if done.returncode:
        raise StoreError(f"Kafka's log folder {log} can't be made: {(done.stderr or done.stdout).strip()[-300:]}")


@contextmanager
def _broker(
    kafka: Kafka, folder: Path, port: int, inside: str | None = None, jvm: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a broker in ``folder``, ready when the block begins."""
    with supervisor.folder_to_itself(folder, "Kafka") as output:
        properties, log = folder / "server.properties", folder / "log"
        properties.write_text(_properties(port, _controller_port(properties), log, inside))
        _format(kafka, properties, log)
        with supervisor.child(kafka.command("kafka.Kafka", str(properties), jvm=jvm), output) as server:
            what = f"Kafka on port {port} (VOLSPIKE_KAFKA_PORT)"
            supervisor.wait_ready(server, lambda: _answers(port), START_S, what, folder / "server.log")
            yield server


def _warm(kafka: Kafka, folder: Path) -> None:
    with _broker(kafka, folder, _spare_port(), jvm=archiving(kafka)):
        pass


def _serve(port: int, data: Path, inside: str | None, parent: int | None) -> None:
    """Run the broker until the parent is gone, this process is told to end, or the broker ends by itself."""
    if supervisor.busy(port):
        raise StoreError(
            f"port {port} on {HOST} is busy, so Kafka can't start: set VOLSPIKE_KAFKA_PORT to a free port, or "
            f"VOLSPIKE_KAFKA_SERVERS={HOST}:{port} to use what runs there"
        )
    folder = data / "kafka"
    with _broker(prepare(_warm), folder, port, inside) as server:
        with supervisor.announced(data / "run", "kafka", server.pid, port):
            _say_ready(server.pid, port, folder / "log", parent)
            supervisor.watch(lambda: server.poll() is None, parent)
        if server.poll() is not None and parent is None:
            raise StoreError(f"Kafka ended by itself (code {server.returncode}): see {folder / 'server.log'}")


def _say_ready(pid: int, port: int, log: Path, parent: int | None) -> None:
    if parent is not None:
        print(json.dumps({"pid": pid, "port": port}), flush=True)
    else:
        print(f"Kafka answers at {HOST}:{port}; its log lies in {log}; Ctrl-C ends it", flush=True)


def _controller_port(properties: Path) -> int:
    """Return the one of the last start, which the log names, where it is still free."""
    last = re.search(r"CONTROLLER://.+:(\d+)", properties.read_text()) if properties.exists() else None
    if last is not None and not supervisor.busy(int(last[1])):
        return int(last[1])
    return _spare_port()


def _spare_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    """Whether the broker has registered itself: it listens earlier than it serves."""
    from ingestion import cluster

    try:
        socket.create_connection((HOST, port), timeout=1).close()
        cluster.ping(f"{HOST}:{port}", timeout_s=2)
    except (OSError, StoreError):
        return False
    return True


def main() -> None:
    """Run Kafka; see the module's docstring."""
    from infra.settings import settings

    parser = argparse.ArgumentParser(prog="python -m infra.kafka_server", description="Run Apache Kafka on loopback.")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; default: VOLSPIKE_KAFKA_PORT")
    parser.add_argument("--data", type=Path, help="data folder; default: VOLSPIKE_DATA")
    parser.add_argument("--inside", metavar="HOST:PORT", help="in a container: the name and port for other containers")
    parser.add_argument("--parent", type=int, help="process to end with; without it Ctrl-C ends it")
    parser.add_argument("--download", action="store_true", help="bring the jars and end")
    given = parser.parse_args()
    if given.inside is not None and not re.fullmatch(r"[\w.-]+:\d+", given.inside):
        parser.error(f"--inside must be HOST:PORT, was {given.inside!r}: write for example kafka:29092")
    port, data = given.port or settings().kafka_port, given.data or settings().data

    def serve() -> None:
        if given.download:
            print(prepare(_warm).jars)
        else:
            _serve(port, data.absolute(), given.inside, given.parent)

    supervisor.run(serve, as_json=given.parent is not None)


if __name__ == "__main__":
    main()
