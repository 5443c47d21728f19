"""Kafka without an installation: the broker for tests that librdkafka carries, from the client's own wheel.

It speaks the real protocol on loopback, in a process of its own (``python -m infra.broker --parent PID``) that dies
with the command that started it. It picks its port itself; the one it got stands in ``<data>/run/services.json``.

What it is not: durable. It holds about 5 MiB and 100,000 messages a partition and then drops the oldest without a word,
and nothing over its own end. Its transactions are a façade, and of two group members with one static id it stops
neither. ``make kafka`` runs a real one.

Source: librdkafka, ``src/rdkafka_mock.h``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from feature_repo.errors import StoreError
from infra import supervisor
from infra.supervisor import HOST

LIMITS: Final = (
    "the embedded Kafka broker keeps about 5 MiB a partition, then drops the oldest silently, and nothing over a "
    "restart; `make kafka` and VOLSPIKE_KAFKA_SERVERS give a real one"
)
DOWN, UP = signal.SIGUSR1, signal.SIGUSR2
"""Signals that take the broker off the network and put it back, its messages kept: what a test of an outage needs."""


class EmbeddedKafka(supervisor.Supervised):
    """A Kafka broker of our own for the time of a ``with`` block, with the topics of `ingestion.topics`.

    Parameters
    ----------
    partitions
        Of each topic; None means the setting ``VOLSPIKE_PARTITIONS``.
    data
        Data folder; the entry lies in its ``run``, the log in its ``kafka-embedded``. None means the setting
        ``VOLSPIKE_DATA``.

    Raises
    ------
    StoreError
        On entering, if it doesn't start, or another one runs for the same folder.
    """

    def __init__(self, partitions: int | None = None, data: Path | None = None) -> None:
        from infra.settings import settings

        self.partitions = settings().partitions if partitions is None else partitions
        self.data = settings().data if data is None else data
        super().__init__(["infra.broker", "--partitions", str(self.partitions), "--data", str(self.data)])

    @property
    def port(self) -> int:
        """Port that the broker picked."""
        return int(self.ready["port"])

    @property
    def address(self) -> str:
        """Bootstrap servers, ``host:port``."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start it, and say on standard error what it can't do."""
        super().start()
        print(f"volspike: {LIMITS}", file=sys.stderr)

    def down(self) -> None:
        """Take it off the network, messages kept: clients lose their connections and get no new ones."""
        os.kill(self.pid, DOWN)

    def up(self) -> None:
        """Put it back on the network."""
        os.kill(self.pid, UP)


@contextmanager
def ensure_kafka() -> Iterator[str]:
    """Have a Kafka broker with all topics for the time of the block, and point the settings of this process at it.

    The one of ``VOLSPIKE_KAFKA_SERVERS`` where that is set, else one that runs already by ``services.json`` (``make
    kafka`` writes itself there too), else an embedded one, stopped at the end.

    Yields
    ------
    str
        Bootstrap servers, ``host:port[,host:port…]``.

    Raises
    ------
    StoreError
        If the configured broker doesn't answer within ``cluster.LIMIT_S``, a topic has too few partitions, or an
        embedded one can't be started.
    """
    from infra.settings import settings
    from ingestion import cluster, topics

    def answers(host: str, port: int) -> bool:
        try:
            cluster.ping(f"{host}:{port}", timeout_s=3)
        except StoreError:
            return False
        return True

    with supervisor.ensure("kafka", "kafka_servers", cluster.ping, answers, EmbeddedKafka) as address:
        cluster.require_topics(address, topics.TOPICS, settings().partitions)
        yield address


class _Cluster:
    """librdkafka's mock cluster of one broker, by its C interface."""

    def __init__(self) -> None:
        self._lib = _library()
        why = ctypes.create_string_buffer(512)
        client = self._lib.rd_kafka_new(0, self._lib.rd_kafka_conf_new(), why, len(why))
        self._mock = self._lib.rd_kafka_mock_cluster_new(client, 1) if client else None
        if not self._mock:
            raise StoreError(f"the embedded Kafka broker didn't start: {why.value.decode() or 'no memory or no port'}")
        # a real broker's default, 3 s, would make every start wait for members that never come
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._mock, 0)

    @property
    def port(self) -> int:
        return int(self._lib.rd_kafka_mock_cluster_bootstraps(self._mock).decode().rpartition(":")[2])

    def create(self, topic: str, partitions: int) -> None:
        failed = self._lib.rd_kafka_mock_topic_create(self._mock, topic.encode(), partitions, 1)
        if failed:
            raise StoreError(f"the embedded Kafka broker refused topic {topic} with {partitions} partitions: {failed}")

    def reachable(self, yes: bool) -> None:
        call = self._lib.rd_kafka_mock_broker_set_up if yes else self._lib.rd_kafka_mock_broker_set_down
        call(self._mock, 1)


def _library() -> ctypes.CDLL:
    """Load the library that the Python client itself uses; its file's name differs between platforms."""
    import confluent_kafka

    package = Path(confluent_kafka.__file__).parent
    folders = (package.parent / "confluent_kafka.libs", package / ".dylibs", package)
    found = next((file for folder in folders for file in sorted(folder.glob("librdkafka*"))), None)
    lib = ctypes.CDLL(str(found or "librdkafka.so.1"))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    signatures = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_new": (pointer, [number, pointer, ctypes.c_char_p, ctypes.c_size_t]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, ctypes.c_char_p, number, number]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_broker_set_down": (number, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_broker_set_up": (number, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _serve(partitions: int, data: Path, parent: int) -> None:
    from ingestion.topics import TOPICS

    folder = data / "kafka-embedded"
    with supervisor.folder_to_itself(folder, "the embedded Kafka broker") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # librdkafka writes there by itself
        cluster = _Cluster()
        for topic in TOPICS:
            cluster.create(topic, partitions)

        def reach(number: int, frame: FrameType | None) -> None:
            cluster.reachable(number == UP)

        signal.signal(DOWN, reach)
        signal.signal(UP, reach)
        with supervisor.announced(data / "run", "kafka", os.getpid(), cluster.port):
            print(json.dumps({"pid": os.getpid(), "port": cluster.port}), flush=True)
            supervisor.watch(lambda: True, parent)


def main() -> None:
    """Run the embedded broker; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m infra.broker", description="Run the embedded Kafka broker.")
    parser.add_argument("--parent", type=int, required=True, help="process to end with: the one that starts this")
    parser.add_argument("--partitions", type=int, required=True, help="partitions of each topic")
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    given = parser.parse_args()
    supervisor.run(lambda: _serve(given.partitions, given.data, given.parent))


if __name__ == "__main__":
    main()
