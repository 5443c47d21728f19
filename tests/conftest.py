"""Fixtures of every suite: a data folder of its own, one Redis a session, the recorded tapes beside the repository."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded import EmbeddedRedis
from infra.settings import ROOT, settings

SHARED = ROOT.parent / "shared" / "data"


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
def shared_data() -> Path:
    """Folder of the recorded tapes."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail("the recorded tapes (../shared/data) are missing: in CI their proofs must run")
        pytest.skip("the recorded tapes (../shared/data) are not on this machine")
    return SHARED
