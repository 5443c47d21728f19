"""Apache Kafka from its jars: its log outlives kill -9, and what is missing is said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from feature_repo.errors import StoreError
from infra import services
from infra.kafka_jars import find_java, prepare
from infra.kafka_server import RealKafka
from infra.settings import ROOT
from ingestion import cluster, kafka

Until = Callable[..., bool]


@pytest.fixture
def tools(kafka_real: str) -> str:
    """Java, Maven and the jars are there: what `kafka_real` has proved, or skipped."""
    return kafka_real


@pytest.mark.slow
def test_acknowledged_messages_and_offsets_outlive_kill_9(
    tools: str, data_dir: Path, free_port: int, until: Until
) -> None:
    with RealKafka(port=free_port) as broker:
        (entry,) = services.running(data_dir / "run", "kafka")
        assert (entry.pid, entry.address) == (broker.pid, broker.address)
        cluster.require_topics(broker.address, ["kept"], 1)
        writer = kafka.producer(broker.address)
        for i in range(500):
            writer.produce("kept", value=b"%d" % i)
        assert writer.flush(15) == 0
        reader = kafka.consumer("g", broker.address)
        reader.commit(offsets=[TopicPartition("kept", 0, 123)], asynchronous=False)
        formatted = (data_dir / "kafka" / "log" / "meta.properties").read_text()

        broker.kill()
        assert not services.alive(entry.pid)
        assert services.running(data_dir / "run") == []
        broker.restart()

        assert (data_dir / "kafka" / "log" / "meta.properties").read_text() == formatted, "formatted again"
        (committed,) = reader.committed([TopicPartition("kept", 0)], timeout=10)
        assert committed.offset == 123
        reader.assign([TopicPartition("kept", 0, 0)])
        seen: list[bytes] = []

        def all_there() -> bool:
            seen.extend(m.value() for m in kafka.batch(reader, 500, 0.1))
            return len(seen) >= 500

        assert until(all_there, 15)
        assert seen == [b"%d" % i for i in range(500)]
        reader.close()
        for i in range(500, 510):  # the producer of before goes on
            writer.produce("kept", value=b"%d" % i)
        assert writer.flush(15) == 0


def test_a_second_member_of_one_static_id_stops_the_first(tools: str, until: Until) -> None:
    # the embedded broker fences nobody, which is one more of its limits
    group = f"g-{uuid.uuid4().hex[:8]}"
    topic = f"test.{group}"
    cluster.require_topics(tools, [topic], 4)
    first = kafka.consumer(group, tools, instance="worker-1")
    first.subscribe([topic])
    assert until(lambda: first.poll(0.05) is None and len(first.assignment()) == 4, 20)
    second = kafka.consumer(group, tools, instance="worker-1")
    second.subscribe([topic])

    def fenced() -> bool:
        second.poll(0.05)
        kafka.batch(first, 100, 0.05)
        return False

    with pytest.raises(StoreError, match="another process runs under the same static id"):
        until(fenced, 20)
    first.close()
    second.close()


def test_in_the_foreground_it_says_when_it_is_ready_and_ends_by_ctrl_c(
    tools: str, data_dir: Path, free_port: int
) -> None:
    command = [sys.executable, "-m", "infra.kafka_server", "--port", str(free_port), "--data", str(data_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert f"127.0.0.1:{free_port}" in server.stdout.readline()
            cluster.ping(f"127.0.0.1:{free_port}")
            (entry,) = services.running(data_dir / "run", "kafka")
            server.send_signal(signal.SIGINT)
            assert server.wait(25) == 0
        finally:
            server.kill()
    assert not services.alive(entry.pid)
    assert services.running(data_dir / "run") == []


def test_it_listens_on_loopback_only(tools: str) -> None:
    port = int(tools.rpartition(":")[2])
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    listening += [
        line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    at = [address.rpartition(":")[0] for address in listening if int(address.rpartition(":")[2], 16) == port]
    loopback = ("0100007F", "0000000000000000FFFF00000100007F")
    assert at and all(address in loopback for address in at), at


def test_busy_port_is_named_with_its_setting(tools: str, data_dir: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(StoreError, match=f"{free_port}.*VOLSPIKE_KAFKA_PORT"), RealKafka(port=free_port):
            pass
    assert services.running(data_dir / "run") == []


@pytest.mark.parametrize("said", ["", 'openjdk version "11.0.2" 2019-01-15'])
def test_a_missing_or_old_java_is_told_with_what_to_install(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said:
        old = tmp_path / "bin" / "java"
        old.parent.mkdir()
        old.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(StoreError, match=r"Java 17 or later, found .*apt-get install openjdk-17-jre-headless"):
        find_java()


def test_a_missing_maven_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\" 2023-10-17' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(StoreError, match="apt-get install maven"):
        prepare(lambda kafka, folder: None)
    assert os.listdir(tmp_path / "volspike") == ["lock"]
