"""Tuning and making runs again, on tables: candidates as child runs, interruptions, parts rewritten or lost."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from feature_repo.errors import InputError, InsufficientDataError, StoreError, UsageError
from infra import cli
from infra.settings import settings
from ingestion import tables
from tests import training_tables
from training import provenance, snapshot, tuning
from training.folds import usable
from training.options import TrainOptions
from training.runs import Run, rebuild
from training.tracking import tracking

S = 1_000_000_000

pytestmark = pytest.mark.slow  # each trains many models; the parts of a tune have quick tests of their own


@pytest.fixture(scope="module")
def home(module_home):
    """Three hours of two products; feature store applied."""
    training_tables.write(seconds=3 * 3600)
    from feature_repo.store import apply

    apply()
    return module_home


@pytest.fixture(scope="module")
def tuned(home):
    from training.tune import tune

    return tune(TrainOptions(service="spike_core_v1", percentile=85.0, n_splits=2, jobs=1), kinds=("lr",), quick=True)


def volspike(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def problem(folder, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    excess = x[:, 0] - 1.5 + 0.5 * rng.normal(size=n)
    t = np.arange(n) * S
    np.save(folder / "x.npy", x)
    y = excess >= 0
    made = tuning.Problem(folder / "x.npy", y, excess, t, np.full(n, "A"), "f1", 1, "cpu", folder)
    return made, usable(t, y, n_splits=2, purge_s=100)[0]


def grids():
    return {kind: tuning.candidates(kind, quick=True) for kind in ("lr", "xgb")}


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    expected = grids()
    asked, folds = problem(whole)
    tuning.search(asked, folds, expected, jobs=1)

    asked, folds = problem(cut)
    fit, fits = tuning.crossval.LinearFold.tried, []

    def tried(self, hyper, score, *, seed):
        if len(fits) == 3:
            raise KeyboardInterrupt
        fits.append(hyper)
        return fit(self, hyper, score, seed=seed)

    monkeypatch.setattr(tuning.crossval.LinearFold, "tried", tried)
    with pytest.raises(KeyboardInterrupt):
        tuning.search(asked, folds, grids(), jobs=1)
    monkeypatch.setattr(tuning.crossval.LinearFold, "tried", lambda *a, **k: fits.append(a) or fit(*a, **k))
    kept = sorted(p for p in cut.glob("lr-*.json"))
    assert len(kept) == 3
    kept[0].write_text('{"curve": [0.')  # cut short: counts as not done
    found, told = grids(), []
    tuning.search(asked, folds, found, jobs=1, done=lambda c, resumed: told.append((c.name, resumed)))
    assert len(fits) == 3 + 8 - 2
    assert sorted(name for name, _ in told) == sorted(c.name for some in found.values() for c in some)
    for kind, some in expected.items():
        for a, b in zip(some, found[kind], strict=True):
            assert a.result[1] == pytest.approx(b.result[1], abs=1e-4)
    told.clear()
    tuning.search(asked, folds, grids(), jobs=1, done=lambda c, resumed: told.append(resumed))
    assert told == [True] * 8


def test_another_problem_has_another_journal(home):
    from training.preparation import prepare

    def journal(**changed):
        options = TrainOptions(service="spike_core_v1", percentile=85.0, n_splits=2, **changed)
        return tuning.journal_of(prepare(options), grids())

    assert journal() == journal(jobs=2)
    assert journal() != journal(seed=8)


def test_every_candidate_is_a_child_and_the_best_is_refitted(home, tuned):
    with tracking() as client:
        parent = client.get_run(tuned.run_id)
        where = f"tags.`mlflow.parentRunId` = '{tuned.run_id}'"
        children = client.search_runs([parent.info.experiment_id], where, max_results=100)
    assert parent.info.status == "FINISHED"
    by_kind = [c.data.tags["kind"] for c in children]
    assert sorted(by_kind) == ["candidate lr"] * 4 + ["lr", "zscore"]
    scores = {c.info.run_id: c.data.metrics["score_mean"] for c in children if c.data.tags["kind"] == "candidate lr"}
    assert scores == {c["run_id"]: c["score"] for c in tuned.candidates}
    best = max(tuned.candidates, key=lambda c: c["score"])
    refitted = next(m for m in tuned.trained.models if m.kind == "lr")
    run = Run.load(refitted.run_id)
    assert run.options.hyper == {"lr": best["hyper"]}
    assert not list((settings().data / "tune").glob("*/runs.json"))  # nothing is left to resume


def test_figures_are_of_folds_and_validation_with_every_baseline_beside_them(tuned):
    figures = next(m for m in tuned.trained.models if m.kind == "lr").metrics
    assert {"train", "validation", "folds", "baseline", "har.validation", "har.folds", "prevalence.validation"} <= set(
        figures
    )
    assert not any("test" in name for name in figures)
    assert set(tuned.trained.blocks["test"]) == {"rows", "start_ns", "end_ns"}


def test_a_run_is_found_by_all_its_names_and_rebuilt(home, tuned):
    model = tuned.trained.models[-1]
    names = (model.run_id, model.run_id[:10], f"volspike/{model.version}", settings().models / model.run_id)
    assert {Run.load(name).run_id for name in names} == {model.run_id}
    run = Run.load(model.run_id)
    data = rebuild(run)
    assert data.features == tuple(run.manifest.features)
    assert {b: int((data.frame["block"] == b).sum()) for b in ("train", "validation", "test")} == {
        **{b: run.manifest.training.blocks[b]["rows"] for b in ("train", "validation")},
        "test": 0,
    }
    with tracking() as client:
        stored = client.download_artifacts(model.run_id, "options.json", str(home))
    with open(stored) as stream:
        assert json.load(stream)["hyper"] == run.options.hyper


@pytest.mark.parametrize("name", ["deadbeef", "nonsense!", "volspike@nobody", "volspike/999", "nobody/1"])
def test_a_run_that_does_not_exist_is_named(home, tuned, capsys, name):
    with pytest.raises(InputError, match=name):
        Run.load(name)
    code, _, err = volspike(capsys, "reproduce", name)
    assert (code, name in err) == (1, True)


def test_a_candidate_run_holds_no_model(home, tuned):
    with pytest.raises(InputError, match="holds no model"):
        Run.load(tuned.candidates[0]["run_id"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "svm"], "--model is 'svm'"),
        (["--n-splits", "0"], "--n-splits is 0"),
        (["--objective", "f3"], "--objective is 'f3'"),
        (["--device", "gpu"], "--device is 'gpu'"),
    ],
)
def test_tune_says_what_is_wrong(home, capsys, args, said):
    code, _, err = volspike(capsys, "tune", *args)
    assert (code, said in err) == (2, True), err


def test_a_gpu_that_is_not_there_is_named(home):
    from training import models

    x = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(UsageError, match="--device is 'cuda'"):
        models.boosted(x, x[:, 0] > 0, ["a", "b"], seed=1, jobs=1, rounds=2, device="cuda")


def test_too_many_folds_for_the_data_are_refused(home):
    from training.tune import tune

    with pytest.raises(InsufficientDataError, match="n-splits"):
        tune(TrainOptions(service="spike_core_v1", percentile=85.0, n_splits=99_999, jobs=1), kinds=("lr",), quick=True)


def rows_of(root):
    keys = ["session", "product_id", "n", "k"]
    return {name: tables.scan(name, root=root).collect().sort(keys) for name in provenance.TABLES}


def test_tables_come_back_as_they_were_though_compacted_and_grown(data_dir, tmp_path):
    for part in range(3):
        start = training_tables.START + part * 600 * S
        training_tables.write(seconds=300, session=f"5e55101234567{part:03}", start=start)
    said = provenance.data_manifest()
    before = rows_of(None)
    assert snapshot.restore(said, tmp_path / "linked") == []
    training_tables.write(seconds=300, session="5e55109999999999", start=training_tables.START + 9000 * S)
    tables.compact("quotes")
    tables.vacuum("quotes", retention_hours=0)
    notes = snapshot.restore(said, tmp_path / "taken")
    assert len(notes) == 1
    assert "quotes" in notes[0]
    for root in (tmp_path / "linked", tmp_path / "taken"):
        for name, rows in rows_of(root).items():
            assert rows.equals(before[name])


def test_rows_that_are_gone_are_missed(data_dir, tmp_path):
    training_tables.write(seconds=100)
    said = provenance.data_manifest()
    lost = said["spike_features"]["parts"][0]
    shutil.rmtree(settings().tables / "spike_features")
    with pytest.raises(StoreError, match=lost["path"]):
        snapshot.restore(said, tmp_path / "taken")
    with pytest.raises(InputError, match="train the model again"):
        snapshot.restore({"quotes": {}}, tmp_path / "other")


def test_a_deleted_part_is_named_before_anything_is_trained(data_dir):
    from training.train import train

    training_tables.write(seconds=100)
    part = tables.parts("spike_features")[0].path
    part.unlink()
    with pytest.raises(StoreError, match=part.name):
        train(TrainOptions())


def test_labels_that_came_later_are_left_out(data_dir):
    from training.labels import labels
    from training.runs import as_of

    training_tables.write(seconds=200, products=("A-B",))
    said = provenance.data_manifest()
    before = as_of(labels(), said)
    assert before["event_time_ns"].max() == training_tables.START + 139 * S
    said["quotes"]["ranges"], said["spike_features"]["ranges"] = (
        {k: [a, b - 50 * S] for k, (a, b) in said[name]["ranges"].items()} for name in ("quotes", "spike_features")
    )
    assert as_of(labels(), said).height == before.height - 50
    assert before.select(pl.col("sigma_fwd").is_null().any()).item() is False


@pytest.mark.slow
def test_a_run_is_made_again_to_the_bit_in_a_fresh_process(home, tuned, capsys):
    tables.compact("spike_features")
    code, out, _ = volspike(capsys, "reproduce", f"volspike/{tuned.trained.models[-1].version}", "--json")
    said = json.loads(out)
    assert (code, said["same"], said["identical"]) == (0, True, True), said
    assert set(said["differences"]) == {"figures", "tau", "threshold", "calibration", "forecasts"}
    assert said["rows"] == sum(tuned.trained.blocks[b]["rows"] for b in ("train", "validation"))
