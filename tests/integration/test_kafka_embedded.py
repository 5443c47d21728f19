"""The embedded broker: found by others, honest about its limits, gone with its command; a configured one is used."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_repo.errors import StoreError
from infra import services
from infra.broker import EmbeddedKafka, ensure_kafka
from infra.settings import ROOT, settings
from ingestion import cluster, kafka, topics

Until = Callable[..., bool]


def test_it_has_our_topics_and_says_where_it_is_and_what_it_cannot(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with EmbeddedKafka(partitions=3) as broker:
        said = capfd.readouterr().err
        assert "5 MiB" in said and "make kafka" in said and said.count("\n") == 1
        (entry,) = services.running(data_dir / "run", "kafka")
        assert (entry.pid, entry.address) == (broker.pid, broker.address)
        assert cluster.require_topics(broker.address, topics.TOPICS, 3) == dict.fromkeys(topics.TOPICS, 3)
    assert json.loads((data_dir / "run" / "services.json").read_text()) == []
    assert not services.alive(broker.pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_command_leaves_nothing_running(data_dir: Path, until: Until, how: signal.Signals) -> None:
    command = (
        "from infra.broker import EmbeddedKafka; import signal\n"
        "with EmbeddedKafka(): print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        (service,) = services.running(data_dir / "run", "kafka")
        process.send_signal(how)
    assert until(lambda: not services.alive(service.pid)), "the broker outlived its command"
    assert until(lambda: json.loads((data_dir / "run" / "services.json").read_text()) == [])


def test_second_broker_of_one_folder_is_refused(data_dir: Path) -> None:
    with EmbeddedKafka() as broker:
        with pytest.raises(StoreError, match="runs already"), EmbeddedKafka():
            pass
        cluster.ping(broker.address)


def test_messages_survive_an_outage_of_the_network(data_dir: Path, until: Until) -> None:
    delivered: list[int] = []
    with EmbeddedKafka(partitions=1) as broker:
        writer = kafka.producer(broker.address)

        def send(value: bytes) -> None:
            writer.produce(
                "ticks.raw", value=value, on_delivery=lambda error, m: delivered.append(m.offset())
            )

        send(b"before")
        assert writer.flush(10) == 0
        broker.down()
        assert until(lambda: refused(broker.port))
        send(b"during")
        assert writer.flush(0.3) == 1, "nobody was there to acknowledge it"
        broker.up()
        assert writer.flush(10) == 0
    assert delivered == [0, 1]


def refused(port: int) -> bool:
    """Whether a connection is refused, or closed at once."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return True
        probe.settimeout(0.1)
        try:
            return probe.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


def test_ensure_starts_one_shares_it_and_points_settings_at_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOLSPIKE_KAFKA_SERVERS", raising=False)
    settings.cache_clear()
    with ensure_kafka() as address:
        assert settings().kafka_servers == address
        monkeypatch.delenv("VOLSPIKE_KAFKA_SERVERS")  # another command, which knows only the data folder
        settings.cache_clear()
        with ensure_kafka() as again:
            assert again == address
        cluster.ping(address)
    assert settings().kafka_servers == ""
    assert services.running(data_dir / "run") == []


def test_ensure_uses_the_configured_broker_and_makes_its_topics(
    data_dir: Path, kafka_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_KAFKA_SERVERS", kafka_broker)
    settings.cache_clear()
    with ensure_kafka() as address:
        assert address == kafka_broker
        assert services.running(data_dir / "run") == []
        assert min(cluster.require_topics(address, topics.TOPICS, 1).values()) >= settings().partitions


def test_unreachable_configured_broker_is_told_within_ten_seconds(
    data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_KAFKA_SERVERS", f"127.0.0.1:{free_port}")
    settings.cache_clear()
    began = time.monotonic()
    with (
        pytest.raises(StoreError, match=rf"127.0.0.1:{free_port} \(VOLSPIKE_KAFKA_SERVERS\)"),
        ensure_kafka(),
    ):
        pass
    assert time.monotonic() - began < 10


def test_a_client_without_a_broker_says_what_to_set(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOLSPIKE_KAFKA_SERVERS", raising=False)
    settings.cache_clear()
    with pytest.raises(StoreError, match="VOLSPIKE_KAFKA_SERVERS is empty"):
        kafka.producer()
