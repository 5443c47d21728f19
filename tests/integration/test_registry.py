"""The registry on a real MLflow database: who is champion, why, and how to go back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import msgspec
import pytest

from feature_repo import contract
from feature_repo.errors import ArtefactError, ContractError, InputError, PromotionRefused, StoreError
from infra.settings import settings
from training import artefact as art
from training import registry
from training.tracking import MODEL_DIR, experiment_id, log_run, tracking

CORE = list(contract.SERVICES["spike_core_v1"])
GOOD = {"pr_auc": 0.3, "prevalence": 0.1, "episodes": 25.0, "blocks": 30.0}
THIN = GOOD | {"episodes": 3.0}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Tables of MLflow, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLSPIKE_MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        settings.cache_clear()
        with tracking() as client:
            client.search_experiments()
    settings.cache_clear()
    return path


@pytest.fixture
def mlflow_home(data_dir, empty_database):
    home = data_dir.parent
    shutil.copy(empty_database, home / "mlflow.db")
    return home


def add(test=GOOD, baseline=0.2, seed=0):
    """Log and register one model as train does; returns run id and version."""
    linear = art.Linear([0.0] * 5, [0.0] * 5, [1.0] * 5, [float(seed)] * 5, [0.0] * 5, 0.0)
    manifest = art.Manifest(
        name="volspike",
        kind="lr",
        service=art.Service("spike_core_v1", contract.service_hash("spike_core_v1")),
        features=CORE,
        feature_hash=contract.feature_hash(CORE),
        label=art.Label(art.Rule("percentile", 95.0), {"BTC-USD": 2e-5}),
        threshold=0.3,
        calibration=art.Calibration(),
        imputation=art.Imputation("median"),
        training=art.Training({}, ["BTC-USD"], [], 900.0, 960),
        data={},
        metrics={"test": test, "baseline": {"pr_auc": baseline}},
        seeds={"model": seed},
        versions={},
    )
    with tracking() as client:
        run_id = client.create_run(experiment_id(client, "tests"), run_name="lr").info.run_id
        folder = settings().models / run_id
        art.save(folder, manifest, msgspec.json.encode(linear))
        log_run(client, run_id, params={"kind": "lr"}, metrics=manifest.metrics, folders={MODEL_DIR: folder})
        return run_id, registry.register(client, run_id)


def pointer():
    return json.loads((settings().models / "champion.json").read_text())


def test_a_good_model_becomes_champion_and_the_view_names_its_artefact(mlflow_home):
    run_id, version = add()
    entry = registry.promote(run_id)
    assert (entry.version, entry.previous, entry.force, entry.overridden) == (version, None, None, [])
    assert registry.resolve() == registry.resolve_fast() == (settings().models / run_id, version, run_id)
    assert art.load(registry.resolve_fast().path).digest == pointer()["sha256"] == entry.digest


def test_files_of_a_run_lie_beside_the_database_where_the_ui_looks(mlflow_home):
    run_id, _ = add()
    there = mlflow_home / "mlartifacts" / run_id / "artifacts" / "model"
    assert art.load(there).digest == art.load(settings().models / run_id).digest
    with tracking() as client:
        run = client.get_run(run_id)
    assert run.data.metrics["test_pr_auc"] == 0.3
    assert run.info.status == "FINISHED"


def test_an_artefact_that_is_not_here_is_fetched_from_the_run(mlflow_home):
    run_id, version = add()
    digest = art.load(settings().models / run_id).digest
    shutil.rmtree(settings().models / run_id)
    registry.promote(version)
    assert art.load(registry.resolve().path).digest == digest


def test_thin_evidence_is_refused_unless_forced_and_both_are_on_record(mlflow_home):
    run_id, _ = add(THIN)
    with pytest.raises(PromotionRefused, match=r"^INSUFFICIENT_EVIDENCE: .*3 spike episodes"):
        registry.promote(run_id)
    assert not (settings().models / "champion.json").exists()
    with pytest.raises(InputError, match="reason"):
        registry.promote(run_id, force=" ")
    registry.promote(run_id, force="demo")
    [entry] = registry.history()
    assert (entry.force, entry.overridden) == ("demo", ["INSUFFICIENT_EVIDENCE"])
    assert entry.evidence["test"] == THIN


def test_rollback_walks_back_through_the_champions(mlflow_home):
    versions = [add(seed=i)[1] for i in range(3)]
    for version in versions:
        registry.promote(version)
    registry.promote(versions[-1])  # again: no new step to go back
    assert registry.rollback().version == versions[1]
    assert registry.rollback().version == versions[0]
    assert pointer()["version"] == registry.resolve().version == versions[0]
    with pytest.raises(InputError, match="needs 2"):
        registry.rollback()
    registry.promote(versions[2])
    assert registry.rollback().version == versions[0]
    assert [e.number for e in registry.history()] == list(range(1, 9))


def test_what_does_not_exist_or_is_not_unique_is_named(mlflow_home):
    with pytest.raises(InputError, match="none"):
        registry.promote("deadbeef")
    with pytest.raises(InputError, match="no version"):
        registry.resolve()
    with pytest.raises(InputError, match="no champion"):
        registry.resolve_fast()
    run_id, version = add()
    with pytest.raises(InputError, match="fits 0"):
        registry.promote("99")
    assert registry.promote(run_id[:8]).version == version


def test_a_damaged_artefact_cannot_be_forced(mlflow_home):
    first, _ = add()
    registry.promote(first)
    run_id, _ = add(seed=1)
    path = settings().models / run_id / "model.json"
    path.write_bytes(path.read_bytes().replace(b"1.0", b"2.0", 1))
    with pytest.raises(ArtefactError, match=r"model\.json"):
        registry.promote(run_id, force="now")
    assert pointer()["run_id"] == first


def test_a_model_of_another_contract_cannot_be_forced(mlflow_home, monkeypatch):
    run_id, _ = add()
    monkeypatch.setattr(art, "service_hash", lambda name: "0" * 16)
    with pytest.raises(ContractError, match="hash of service spike_core_v1"):
        registry.promote(run_id, force="now")


def test_a_locked_database_is_an_error_within_seconds(mlflow_home):
    run_id, _ = add()
    with closing(sqlite3.connect(mlflow_home / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StoreError, match="locked"):
            registry.promote(run_id)
        assert time.monotonic() - began < 5
        other.execute("ROLLBACK")
    registry.promote(run_id)


def test_a_damaged_view_is_named(mlflow_home):
    settings().models.mkdir()
    for text in ("", "{}", "[]", '{"path": 1}'):
        (settings().models / "champion.json").write_text(text)
        with pytest.raises(InputError, match="promote again"):
            registry.resolve_fast()


def test_the_view_is_read_without_mlflow(mlflow_home):
    code = "import sys, training.registry; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
