"""Registry and promotions on a real MLflow database: who is champion, why, and how to go back.

What the gate is told is made up here; how it is gathered is in ``test_evaluate.py``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import msgspec
import pytest

from feature_repo.errors import ArtefactError, ContractError, InputError, PromotionRefused, StoreError
from infra.settings import settings
from tests import manifests
from training import artefact as art
from training import promotion, registry
from training.gate import Comparison, Contest, Objection
from training.options import TrainOptions
from training.tracking import MODEL_DIR, experiment_id, log_run, tracking

FIGURES = {"pr_auc": 0.3, "prevalence": 0.1, "ece_equal_mass": 0.01, "brier_skill": 0.1}
WORSE = FIGURES | {"pr_auc": 0.2}
BETTER = Contest(
    "baseline har", 1.0, 0.1, 0, 9, 1000, 100, 30, 40, {}, 1, FIGURES, WORSE, WORSE, "har",
    Comparison(0.1, 0.05, 0.15, 0.02, 0.025, 40, 30),
)  # fmt: skip


def told(contest=BETTER, **changes):
    """A judge that says what it is told, numbered as the real one numbers."""

    def judge(run_id, champion, past):
        c = dataclasses.replace(contest, **changes)
        if c.comparison is None:
            return c
        number = promotion.number_of(run_id, c.opponent, c.start_ns, c.end_ns, c.rows, past)
        return dataclasses.replace(c, attempt=number)

    return judge


@pytest.fixture
def mlflow_home(data_dir, mlflow_database):
    home = data_dir.parent
    shutil.copy(mlflow_database, home / "mlflow.db")
    return home


def weights(seed):
    return msgspec.json.encode(art.Linear([0.0] * 5, [0.0] * 5, [1.0] * 5, [float(seed)] * 5, [0.0] * 5, 0.0))


def manifest(seed):
    return manifests.manifest(
        metrics={"validation": FIGURES}, seeds={"model": seed}, options=msgspec.to_builtins(TrainOptions())
    )


def add(seed=0):
    """Log and register one model as train does; returns run id and version."""
    with tracking() as client:
        run_id = client.create_run(experiment_id(client, "tests"), run_name="lr").info.run_id
        folder = settings().models / run_id
        art.save(folder, manifest(seed), weights(seed))
        log_run(client, run_id, params={"kind": "lr"}, metrics={"validation": FIGURES}, folders={MODEL_DIR: folder})
        return run_id, registry.register(client, run_id)


def pointer():
    return json.loads((settings().models / "champion.json").read_text())


def test_a_good_model_becomes_champion_and_the_view_names_its_artefact(mlflow_home):
    run_id, version = add()
    entry = promotion.promote(run_id, judge=told())
    assert (entry.version, entry.previous, entry.force, entry.overridden) == (version, None, None, [])
    assert registry.resolve() == registry.resolve_fast() == (settings().models / run_id, version, run_id)
    assert art.load(registry.resolve_fast().path).digest == pointer()["sha256"] == entry.digest


def test_files_of_a_run_lie_beside_the_database_where_the_ui_looks(mlflow_home):
    run_id, _ = add()
    there = mlflow_home / "mlartifacts" / run_id / "artifacts" / "model"
    assert art.load(there).digest == art.load(settings().models / run_id).digest
    with tracking() as client:
        run = client.get_run(run_id)
    assert run.data.metrics["validation_pr_auc"] == 0.3
    assert run.info.status == "FINISHED"


def test_an_artefact_that_is_not_here_is_fetched_from_the_run(mlflow_home):
    run_id, version = add()
    digest = art.load(settings().models / run_id).digest
    shutil.rmtree(settings().models / run_id)
    promotion.promote(version, judge=told())
    assert art.load(registry.resolve().path).digest == digest


def test_thin_evidence_is_refused_unless_forced_and_both_are_on_record(mlflow_home):
    run_id, _ = add()
    thin = told(comparison=None, episodes=0, blocks=3)
    with pytest.raises(PromotionRefused, match=r"^INSUFFICIENT_EVIDENCE: 3 blocks"):
        promotion.promote(run_id, judge=thin)
    assert not (settings().models / "champion.json").exists()
    with pytest.raises(InputError, match="reason"):
        promotion.promote(run_id, force=" ", judge=thin)
    promotion.promote(run_id, force="demo", judge=thin)
    [entry] = promotion.history()
    assert (entry.force, [text.split(":")[0] for text in entry.overridden]) == ("demo", ["INSUFFICIENT_EVIDENCE"])
    assert entry.evidence["blocks"] == 3
    assert promotion.attempts() == []  # nothing was compared, so no confidence was spent


def test_a_yes_records_no_force_and_the_evidence(mlflow_home):
    promotion.promote(add()[0], force="to be sure", judge=told())
    [entry] = promotion.history()
    assert (entry.force, entry.overridden) == (None, [])
    assert entry.evidence["comparison"]["lower_bound"] == 0.02
    assert entry.evidence["against"]["pr_auc"] == 0.2


def test_every_comparison_is_counted_once_whatever_came_of_it(mlflow_home):
    runs = [add(seed=i)[0] for i in range(3)]
    worse = told(comparison=Comparison(-0.1, -0.2, 0.0, -0.3, 0.025, 40, 30))
    for run_id in (runs[0], runs[1], runs[0]):
        with pytest.raises(PromotionRefused, match=r"^NOT_BETTER"):
            promotion.promote(run_id, judge=worse)
    promotion.promote(runs[2], judge=told())
    found = promotion.attempts()
    assert [(a.number, a.run_id, a.codes) for a in found] == [
        (1, runs[0], ["NOT_BETTER"]),
        (2, runs[1], ["NOT_BETTER"]),
        (3, runs[2], []),
    ]
    newer_rows = promotion.number_of(runs[0], "baseline har", 0, 10, 1000, found)
    assert (newer_rows, promotion.number_of(runs[0], "baseline har", 0, 9, 1000, found)) == (4, 1)


def test_the_judge_is_told_who_is_champion(mlflow_home):
    heard = []

    def judge(run_id, champion, past):
        heard.append(champion)
        return BETTER

    (first, version), (second, _) = add(), add(seed=1)
    promotion.promote(first, judge=judge)
    promotion.promote(second, judge=judge)
    promotion.promote(second, judge=judge)  # it is champion itself: the one to beat is the baseline
    assert heard == [None, promotion.Incumbent(version, first), None]


def test_two_promotions_at_once_are_not_judged_against_the_same_champion(mlflow_home):
    (first, version), (second, _) = add(), add(seed=1)

    def slow(run_id, champion, past):
        with pytest.raises(StoreError, match="one at a time"):
            promotion.promote(second, force="me too", judge=told())
        with pytest.raises(StoreError, match="one at a time"):
            promotion.rollback()
        return BETTER

    promotion.promote(first, judge=slow)
    assert [entry.version for entry in promotion.history()] == [version]
    assert promotion.promote(second, judge=told()).previous == version


def test_objections_and_texts_of_any_length_fit_into_a_tag(mlflow_home):
    found = tuple(Objection("NO_EVIDENCE", "x" * 5000) for _ in range(3))
    leaks = tuple("y" * 5000 for _ in range(20))
    judge = told(comparison=None, refused=found, audit=leaks)
    promotion.promote(add()[0], force="z" * 100, judge=judge)
    [entry] = promotion.history()
    assert [text[:11] for text in entry.overridden] == ["AUDIT_FAILE", *["NO_EVIDENCE"] * 3]


def test_a_champion_of_another_contract_or_damaged_is_an_objection_with_a_code(mlflow_home, monkeypatch):
    first, _ = add()
    promotion.promote(first, judge=told())
    second, _ = add(seed=1)
    incumbent = promotion.Incumbent("1", first)
    path = settings().models / first / "model.json"
    path.write_bytes(path.read_bytes().replace(b"0.0", b"9.0", 1))
    assert codes(promotion.examine(second, incumbent, [])) == ["CHAMPION_DAMAGED"]
    shutil.rmtree(settings().models / first)
    old = msgspec.structs.replace(manifest(0), service=art.Service("spike_core_v1", "0" * 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(art, "service_hash", lambda name: "0" * 16)
        art.save(settings().models / first, old, weights(0))
    assert codes(promotion.examine(second, incumbent, [])) == ["HASH_DIFFERS"]


def codes(contest):
    return [o.code for o in contest.refused]


def test_rollback_walks_back_through_the_champions(mlflow_home):
    versions = [add(seed=i)[1] for i in range(3)]
    for version in versions:
        promotion.promote(version, judge=told())
    promotion.promote(versions[-1], judge=told())  # again: no new step to go back
    assert promotion.rollback().version == versions[1]
    assert promotion.rollback().version == versions[0]
    assert pointer()["version"] == registry.resolve().version == versions[0]
    with pytest.raises(InputError, match="needs 2"):
        promotion.rollback()
    promotion.promote(versions[2], judge=told())
    assert promotion.rollback().version == versions[0]
    assert [e.number for e in promotion.history()] == list(range(1, 9))


def test_a_promotion_that_died_before_the_alias_moved_does_not_count(mlflow_home, monkeypatch):
    versions = [add(seed=i)[1] for i in range(3)]
    promotion.promote(versions[0], judge=told())
    asked = []

    def dies(*_):
        raise KeyboardInterrupt

    def judge(run_id, champion, past):
        asked.append(champion and champion.version)
        return told()(run_id, champion, past)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry, "point", dies)
        promotion.promote(versions[1], judge=judge)
    assert [(e.number, e.version) for e in promotion.history()] == [(1, versions[0])]
    promotion.promote(versions[2], judge=judge)
    assert asked == [versions[0], versions[0]]
    assert [(e.number, e.version) for e in promotion.history()] == [(1, versions[0]), (2, versions[2])]
    assert promotion.rollback().version == versions[0]


def test_what_does_not_exist_or_is_not_unique_is_named(mlflow_home):
    with pytest.raises(InputError, match="none"):
        promotion.promote("deadbeef", judge=told())
    with pytest.raises(InputError, match="no version"):
        registry.resolve()
    with pytest.raises(InputError, match="no champion"):
        registry.resolve_fast()
    run_id, version = add()
    with pytest.raises(InputError, match="fits 0"):
        promotion.promote("99", judge=told())
    assert promotion.promote(run_id[:8], judge=told()).version == version


def test_a_damaged_artefact_cannot_be_forced(mlflow_home):
    first, _ = add()
    promotion.promote(first, judge=told())
    run_id, _ = add(seed=1)
    path = settings().models / run_id / "model.json"
    path.write_bytes(path.read_bytes().replace(b"1.0", b"2.0", 1))
    with pytest.raises(ArtefactError, match=r"model\.json"):
        promotion.promote(run_id, force="now", judge=told())
    assert pointer()["run_id"] == first


def test_a_model_of_another_contract_cannot_be_forced(mlflow_home, monkeypatch):
    run_id, _ = add()
    monkeypatch.setattr(art, "service_hash", lambda name: "0" * 16)
    with pytest.raises(ContractError, match="hash of service spike_core_v1"):
        promotion.promote(run_id, force="now", judge=told())


def test_a_locked_database_is_an_error_within_seconds(mlflow_home):
    run_id, _ = add()
    with closing(sqlite3.connect(mlflow_home / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StoreError, match="locked"):
            promotion.promote(run_id, judge=told())
        assert time.monotonic() - began < 5
        other.execute("ROLLBACK")
    promotion.promote(run_id, judge=told())


def test_a_damaged_view_is_named(mlflow_home):
    settings().models.mkdir()
    for text in ("", "{}", "[]", '{"path": 1}'):
        (settings().models / "champion.json").write_text(text)
        with pytest.raises(InputError, match="promote again"):
            registry.resolve_fast()


def test_the_view_is_read_without_mlflow(mlflow_home):
    code = "import sys, training.registry; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
