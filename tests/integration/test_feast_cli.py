"""Stock ``feast`` in ``feature_repo/``, as a newcomer runs it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from feature_repo.store import REPO
from infra.settings import ROOT, settings

FEAST = Path(sys.executable).with_name("feast")


def feast(data: Path, *args: str, seed: str = "0") -> str:
    environment = {**os.environ, "VOLSPIKE_DATA": str(data), "PYTHONHASHSEED": seed}
    run = subprocess.run([FEAST, *args], cwd=REPO, env=environment, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow  # the same within one process is quick, below
def test_second_apply_changes_nothing(tmp_path):
    data = tmp_path / "not" / "there yet"
    feast(data, "apply", seed="1")
    registry = data / "registry.db"
    before = registry.read_bytes()
    feast(data, "apply", seed="2")
    assert registry.read_bytes() == before
    assert [path.name for path in data.iterdir()] == ["registry.db"]


def test_a_real_change_is_written(data_dir):
    from feature_repo import definitions
    from feature_repo.store import apply

    store = apply()
    before = (data_dir / "registry.db").read_bytes()
    apply()
    assert (data_dir / "registry.db").read_bytes() == before
    services = {service.name: service for service in store.list_feature_services()}
    other = services["spike_core_v1"]
    other.description = "changed"
    store.apply([other])
    assert (data_dir / "registry.db").read_bytes() != before
    assert {service.name for service in definitions.services} == set(services)


def test_only_the_definitions_are_parsed():
    from feast.repo_operations import get_repo_files

    assert get_repo_files(REPO) == [REPO / "definitions.py"]


def test_with_nothing_exported_feast_and_the_settings_name_the_same_places(monkeypatch):
    from infra.settings import Settings

    for name in [name for name in os.environ if name.startswith("VOLSPIKE_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setitem(Settings.model_config, "yaml_file", None)
    settings.cache_clear()
    from feature_repo.backends import DataFolderRegistryStore
    from feature_repo.store import config

    found = config()
    assert found.online_store.connection_string.split(",")[0] == settings().redis == "127.0.0.1:16379"
    registry = DataFolderRegistryStore(found.registry, REPO)
    assert registry._filepath == (REPO / found.registry.path).resolve() == ROOT / "data" / "registry.db"
    monkeypatch.undo()
    settings.cache_clear()


def test_registered_objects_are_those_of_the_contract(data_dir):
    from feature_repo.contract import BY_NAME, FEATURE_NAMES, SERVICES, service_hash
    from feature_repo.store import apply

    store = apply()
    view = store.get_feature_view("spike_features")
    assert [field.name for field in view.features] == list(FEATURE_NAMES)
    assert {f.name: f.dtype.to_value_type().name for f in view.features} == {
        name: {"float64": "DOUBLE", "int64": "INT64"}[feature.dtype] for name, feature in BY_NAME.items()
    }
    assert (view.join_keys, view.batch_source.timestamp_field) == (["product_id"], "row_time")
    assert view.batch_source.created_timestamp_column == "created_timestamp"
    assert view.stream_source.name == "spike_push"
    for service in store.list_feature_services():
        (projection,) = service.feature_view_projections
        assert [field.name for field in projection.features] == list(SERVICES[service.name])
        assert service.tags["hash"] == service_hash(service.name)


def test_rows_of_push_and_replay_have_one_schema():
    from feature_repo.source import row_schema
    from ingestion.tables import schema

    assert row_schema().equals(schema("spike_features"), check_metadata=False)


@pytest.mark.slow
def test_ui_serves_the_registry(data_dir, free_port):
    from feature_repo.store import apply

    apply()
    command = [FEAST, "ui", "--host", "127.0.0.1", "--port", str(free_port)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            started = next((line for line in server.stderr if "running on" in line), None)
            assert started is not None, "feast ui ended without serving"
            with closing(http.client.HTTPConnection("127.0.0.1", free_port, timeout=30)) as connection:
                connection.request("GET", "/projects-list.json")
                projects = json.loads(connection.getresponse().read())["projects"]
            assert "volspike" in [project["id"] for project in projects]
        finally:
            server.terminate()
