"""Settings: sources in order, the seeds' names, bounds, and paths that don't depend on the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra import settings as module
from infra.settings import ROOT, Settings, child_environment, settings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine: neither its environment nor its files."""
    for name in list(os.environ):
        if name.startswith("VOLSPIKE_") or name in {"PAIR", "KAFKA_SERVERS", "REDIS_URL", "THRESHOLD_TAU"}:
            monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    monkeypatch.setitem(Settings.model_config, "yaml_file", tmp_path / "config.yaml")


def test_first_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().redis_port == 16379
    (tmp_path / "config.yaml").write_text("redis_port: 1001\nservice_port: 1001\nmlflow_port: 1001\nlog_level: error\n")
    (tmp_path / ".env").write_text("VOLSPIKE_REDIS_PORT=1002\nVOLSPIKE_SERVICE_PORT=1002\nVOLSPIKE_MLFLOW_PORT=1002\n")
    monkeypatch.setenv("VOLSPIKE_REDIS_PORT", "1003")
    monkeypatch.setenv("VOLSPIKE_SERVICE_PORT", "1003")
    found = Settings(redis_port=1004)
    assert (found.redis_port, found.service_port, found.mlflow_port, found.log_level) == (1004, 1003, 1002, "error")


@pytest.mark.parametrize(
    ("alias", "field", "value"),
    [
        ("PAIR", "pair", "SOL-USD"),
        ("KAFKA_SERVERS", "kafka_servers", "broker:9092"),
        ("MLFLOW_TRACKING_URI", "mlflow_tracking_uri", "http://localhost:5000"),
        ("THRESHOLD_TAU", "threshold_tau", 0.00025),
    ],
)
def test_names_of_the_first_two_projects(
    alias: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(alias, str(value))
    assert getattr(Settings(), field) == value
    monkeypatch.setenv(f"VOLSPIKE_{alias}", "0.5" if isinstance(value, float) else "own")
    assert getattr(Settings(), field) == (0.5 if isinstance(value, float) else "own")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VOLSPIKE_REDIS_PORT", "0"),
        ("VOLSPIKE_REDIS_PORT", "65536"),
        ("VOLSPIKE_REDIS_PORT", "many"),
        ("VOLSPIKE_THRESHOLD_TAU", "0"),
        ("VOLSPIKE_THRESHOLD_TAU", "nan"),
        ("VOLSPIKE_THRESHOLD_PERCENTILE", "100"),
        ("VOLSPIKE_MIN_COVERAGE_S", "901"),
        ("VOLSPIKE_CLOCK", "sun"),
    ],
)
def test_value_out_of_bounds_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_empty_tau_means_a_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRESHOLD_TAU", "")
    assert Settings().threshold_tau is None


def test_products_are_split_and_trimmed() -> None:
    assert Settings(pair=" BTC-USD, ETH-USD ,").products == ("BTC-USD", "ETH-USD")


def test_relative_data_folder_starts_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(data=Path("elsewhere")).data == ROOT / "elsewhere"
    assert Settings(data=tmp_path).tables == tmp_path / "tables"


def test_child_sees_the_same_settings(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "settings", lambda: Settings(data=data_dir, redis_port=4242, clock="stream"))
    code = "from infra.settings import settings as s; print(s().data, s().redis, s().mlflow_uri, s().clock)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**child_environment(), "PYTHONPATH": str(ROOT)},
        cwd=data_dir,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(data_dir), "127.0.0.1:4242", settings().mlflow_uri, "stream"]


def test_wrong_setting_is_a_wrong_call(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "infra.cli", "doctor"],
        env={**os.environ, "VOLSPIKE_REDIS_PORT": "many"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "VOLSPIKE_REDIS_PORT" in run.stderr and "many" in run.stderr
    assert "Traceback" not in run.stderr
