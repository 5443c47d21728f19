"""``volspike doctor`` tells what stands in the way; ``volspike clean`` removes ours and nothing else."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from infra import cleaning, cli, services
from infra.settings import settings


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    assert isinstance(end.value.code, int)
    return end.value.code


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


@pytest.fixture
def quiet_machine(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Default ports may be in use where the tests run, so take free ones."""
    monkeypatch.delenv("VOLSPIKE_REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    for name in ("REDIS", "SERVICE", "MLFLOW"):
        monkeypatch.setenv(f"VOLSPIKE_{name}_PORT", str(free_port))
    settings.cache_clear()
    return free_port


def test_healthy(quiet_machine: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    found = checks(capsys)
    assert found["feast"]["found"] == "0.67.0"
    assert all(check["ok"] for check in found.values())


def test_busy_port_is_named_with_its_setting(quiet_machine: int, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", quiet_machine)):
        assert run("doctor", "--json") == 1
    found = checks(capsys)
    for name in ("redis", "service port", "mlflow port"):
        assert not found[name]["ok"]
        assert str(quiet_machine) in str(found[name]["found"]) and "VOLSPIKE_" in str(found[name]["found"])


def test_unreachable_redis_and_its_password_hidden(
    quiet_machine: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", f"127.0.0.1:{quiet_machine},password=hunter2")
    settings.cache_clear()
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert "NO  redis" in out and "hunter2" not in out


def test_unreadable_registry(quiet_machine: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be looked at" * 40)
    assert run("doctor", "--json") == 1
    assert not checks(capsys)["mlflow"]["ok"]


def test_what_runs_is_listed(quiet_machine: int, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services.announce(data_dir / "run", services.Service("scorer", os.getpid(), "127.0.0.1", 1, "2026-01-01"))
    run("doctor", "--json")
    assert "127.0.0.1:1" in str(checks(capsys)["running scorer"]["found"])


def fill(data: Path) -> None:
    for name in ("raw", "tables", "models"):
        (data / name).mkdir()
        (data / name / "file").write_text("x")


def test_clean_keeps_tapes(data_dir: Path) -> None:
    fill(data_dir)
    assert run("clean", "--yes") == 0
    assert [p.name for p in data_dir.iterdir()] == ["raw"]
    assert run("clean", "--yes", "--tapes") == 0
    assert list(data_dir.iterdir()) == []
    assert run("clean", "--yes") == 0


def test_clean_never_follows_a_link(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (data_dir / "tables").symlink_to(tmp_path / "precious")
    assert run("clean", "--yes") == 0
    assert not (data_dir / "tables").is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_clean_without_a_terminal_asks_for_yes(data_dir: Path) -> None:
    fill(data_dir)
    assert run("clean") == 2
    assert (data_dir / "tables" / "file").exists()


@pytest.mark.parametrize("kind", ["project", "home", "root", "above the repository"])
def test_clean_refuses_a_folder_that_is_not_ours(
    kind: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(data_dir)
    folder = {"root": Path("/"), "above the repository": cleaning.ROOT.parent}.get(kind, data_dir)
    if kind == "project":
        (data_dir / "pyproject.toml").touch()
    if kind == "home":
        monkeypatch.setenv("HOME", str(data_dir))
    monkeypatch.setenv("VOLSPIKE_DATA", str(folder))
    monkeypatch.setattr(cleaning, "remove", lambda path: pytest.fail(f"would have removed {path}"))
    settings.cache_clear()
    assert run("clean", "--yes") == 2
    assert "VOLSPIKE_DATA" in capsys.readouterr().err


def test_clean_waits_for_what_runs(data_dir: Path) -> None:
    fill(data_dir)
    services.announce(data_dir / "run", services.Service("redis", os.getpid(), "127.0.0.1", 1, "2026-01-01"))
    assert run("clean", "--yes") == 1
    assert (data_dir / "tables" / "file").exists()
