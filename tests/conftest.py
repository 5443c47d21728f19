"""Fixtures of every suite: a data folder of its own, servers that live as long as a session, the recorded tapes."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client  # noqa: F401  (before Feast, which sets it to count for many processes)
import pytest
import structlog

from infra.broker import EmbeddedKafka
from infra.embedded import EmbeddedRedis
from infra.kafka_server import RealKafka
from infra.settings import ROOT, settings

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def own_process_state() -> Iterator[None]:
    """Let no test leave the process changed for the next: its environment, its settings, where its log goes."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)
    settings.cache_clear()
    structlog.reset_defaults()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point VOLSPIKE_DATA and MLflow at a fresh folder for one test."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("VOLSPIKE_DATA", str(data))
    monkeypatch.setenv("VOLSPIKE_MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    settings.cache_clear()
    yield data
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, empty, in a file to copy: to make them takes seconds, so it is done once for all workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path = root / "mlflow-empty.db"
    with (root / "mlflow-empty.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = root / "mlflow-empty.new"
            patch.setenv("VOLSPIKE_MLFLOW_TRACKING_URI", f"sqlite:///{made}")
            settings.cache_clear()
            from training.tracking import tracking

            with tracking() as client:
                client.search_experiments()
            made.rename(path)
    settings.cache_clear()
    return path


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Path]:
    """Point VOLSPIKE_DATA and MLflow, its tables made, into a fresh folder for the tests of a module."""
    root = tmp_path_factory.mktemp("home")
    shutil.copy(mlflow_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLSPIKE_DATA", str(root / "data"))
        patch.setenv("VOLSPIKE_MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        settings.cache_clear()
        yield root
    settings.cache_clear()


def free_port() -> int:
    """Ask the system for a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(name="free_port")
def free_port_fixture() -> int:
    return free_port()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a Redis that lives as long as the session; its rows are shared, so use keys of your own."""
    with EmbeddedRedis(port=free_port(), data=tmp_path_factory.mktemp("redis")) as server:
        yield server.address


@pytest.fixture(scope="session")
def redis_debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of the Redis that the system has installed, as `redis_server` of the wheel's."""
    require_programs("redis-server")
    port, folder = free_port(), tmp_path_factory.mktemp("redis-debian")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            ready = until(lambda: "Ready to accept connections" in (folder / "log").read_text())
            assert ready, (folder / "log").read_text()
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def kafka_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of an embedded broker of 4 partitions that lives as long as the session: use topics of your own."""
    with EmbeddedKafka(partitions=4, data=tmp_path_factory.mktemp("kafka-embedded")) as broker:
        yield broker.address


@pytest.fixture(scope="session")
def kafka_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of Apache Kafka that lives as long as the session: use topics of your own."""
    require_programs("java", "mvn")
    with RealKafka(port=free_port(), data=tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.address


@pytest.fixture(params=["kafka_embedded", "kafka_real"])
def kafka_broker(request: pytest.FixtureRequest) -> str:
    """``host:port`` of each of the two brokers in turn: what must hold on both."""
    return str(request.getfixturevalue(request.param))


def require_programs(*names: str) -> None:
    """Skip where a program isn't installed; in CI that is a failure."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{' and '.join(missing)} missing: in CI these proofs must run")
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on this machine")


def until(condition: Callable[[], bool], seconds: float = 10, look_every_s: float = 0.01) -> bool:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], look_every_s)
    return True


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., bool]:
    return until


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the recorded tapes."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail("the recorded tapes (../shared/data) are missing: in CI their proofs must run")
        pytest.skip("the recorded tapes (../shared/data) are not on this machine")
    return SHARED
