"""The embedded Redis: found by others, kept over restarts, and never left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from feature_repo.errors import StoreError
from infra import services
from infra.embedded import EmbeddedRedis, ensure_redis
from infra.settings import ROOT, settings


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_rows_survive_a_restart(data_dir: Path, free_port: int) -> None:
    with EmbeddedRedis(port=free_port) as server, redis.Redis(port=server.port) as client:
        client.hset("row", mapping={"f": b"\x00\xff"})
    assert refused(free_port)
    with EmbeddedRedis(port=free_port) as server, redis.Redis(port=server.port) as client:
        assert client.hget("row", "f") == b"\x00\xff"


def test_entry_is_there_while_it_runs(data_dir: Path, free_port: int) -> None:
    with EmbeddedRedis(port=free_port):
        (entry,) = json.loads((data_dir / "run" / "services.json").read_text())
        assert (entry["name"], entry["host"], entry["port"]) == ("redis", "127.0.0.1", free_port)
        with redis.Redis(port=free_port) as client:
            assert client.info("server")["process_id"] == entry["pid"]
    assert json.loads((data_dir / "run" / "services.json").read_text()) == []
    assert not services.alive(entry["pid"])


def test_busy_port_is_named_with_its_setting(
    data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_PORT", str(free_port))
    settings.cache_clear()
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(StoreError, match=f"{free_port}.*VOLSPIKE_REDIS_PORT"), EmbeddedRedis():
            pass
    assert services.running(data_dir / "run") == []


def test_second_server_on_one_folder_is_refused(data_dir: Path, free_port: int) -> None:
    with EmbeddedRedis(port=free_port), socket.create_server(("127.0.0.1", 0)) as other:
        spare = other.getsockname()[1]
        other.close()
        with pytest.raises(StoreError, match="runs already"), EmbeddedRedis(port=spare):
            pass
        with redis.Redis(port=free_port) as client:
            assert client.ping()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_command_leaves_nothing_running(data_dir: Path, free_port: int, how: signal.Signals) -> None:
    command = (
        "from infra.embedded import EmbeddedRedis; import signal\n"
        f"with EmbeddedRedis(port={free_port}): print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        (service,) = services.running(data_dir / "run")
        process.send_signal(how)
    assert until(lambda: not services.alive(service.pid)), "the server outlived its command"
    assert until(lambda: json.loads((data_dir / "run" / "services.json").read_text()) == [])
    assert refused(free_port)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_killed_supervisor_takes_the_server_along(data_dir: Path, free_port: int) -> None:
    with EmbeddedRedis(port=free_port) as server:
        (service,) = services.running(data_dir / "run")
        assert server._supervisor is not None
        server._supervisor.kill()
        assert until(lambda: refused(free_port))
    assert until(lambda: services.running(data_dir / "run") == []), service


def test_ensure_starts_one_shares_it_and_points_settings_at_it(
    data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOLSPIKE_REDIS_URL", raising=False)
    monkeypatch.setenv("VOLSPIKE_REDIS_PORT", str(free_port))
    settings.cache_clear()
    with ensure_redis() as address:
        assert address == settings().redis == f"127.0.0.1:{free_port}"
        monkeypatch.delenv("VOLSPIKE_REDIS_URL")  # another command, which knows only the data folder
        settings.cache_clear()
        with ensure_redis() as again:
            assert again == address
        with redis.Redis(port=free_port) as client:
            assert client.ping()
    assert refused(free_port)
    assert settings().redis_url == ""


def test_ensure_uses_the_configured_server(
    data_dir: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis_server)
    settings.cache_clear()
    with ensure_redis() as address:
        assert address == redis_server
        assert services.running(data_dir / "run") == []


@pytest.mark.parametrize("given", ["127.0.0.1:{port}", "redis://localhost:6379", "localhost"])
def test_unreachable_or_malformed_configured_server(
    given: str, data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", given.format(port=free_port))
    settings.cache_clear()
    with pytest.raises(StoreError, match="VOLSPIKE_REDIS_URL"), ensure_redis():
        pass


def test_entry_of_a_dead_process_is_passed_over(data_dir: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    services.announce(data_dir / "run", services.Service("redis", process.pid, "127.0.0.1", 1, "2026-01-01"))
    services.announce(data_dir / "run", services.Service("other", os.getpid(), "127.0.0.1", 2, "2026-01-01"))
    assert [s.name for s in services.running(data_dir / "run")] == ["other"]
