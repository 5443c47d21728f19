"""From tables to three registered models, through the commands a person would type."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from feature_repo import contract
from infra import cli
from infra.settings import settings
from ingestion import tables
from ingestion.kernel.label import percentile_tau
from tests import training_tables
from training import artefact as art
from training.labels import labels

SECONDS = 4 * 3600


@pytest.fixture(scope="module")
def home(module_home):
    """Four hours of three products, one of which never moves; feature store applied."""
    training_tables.write(seconds=SECONDS, products=("BTC-USD", "ETH-USD", "DEAD-USD"), flat=("DEAD-USD",))
    from feature_repo.store import apply

    apply()
    return module_home


def volspike(capsys, *args):
    """Run a command; returns exit code, output and errors."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture(scope="module")
def trained(home):
    from training.options import TrainOptions
    from training.train import train

    return train(TrainOptions(service="spike_top30_v1", percentile=90.0, jobs=1))


def test_label_counts_every_row_and_says_why_one_has_none(home, capsys):
    code, out, _ = volspike(capsys, "label", "--json")
    assert code == 0
    said = {p["product"]: p for p in json.loads(out)["products"]}
    assert said["BTC-USD"]["rows"] == SECONDS
    assert said["BTC-USD"]["watermark"] == 60
    assert said["BTC-USD"]["labelled"] == SECONDS - 60
    assert said["BTC-USD"]["usable"] == SECONDS - 60 - 900
    assert said["BTC-USD"]["share"] == pytest.approx(0.05, abs=0.001)
    assert said["DEAD-USD"]["tau"] is None
    assert "DEAD-USD: tau is 0" in json.loads(out)["reasons"][0]


def test_split_keeps_the_purge_and_counts_what_it_costs(home, capsys):
    code, out, _ = volspike(capsys, "split", "--json")
    assert code == 0
    said = json.loads(out)
    times = [(datetime.fromisoformat(b["from"]), datetime.fromisoformat(b["to"])) for b in said["blocks"]]
    assert all((b[0] - a[1]).total_seconds() >= contract.PURGE_S for a, b in pairwise(times))
    assert said["lost"] == 2 * (contract.PURGE_S - 1) * 3


def test_one_product_is_refused_and_the_others_go_on(trained):
    assert sorted(trained.tau) == ["BTC-USD", "ETH-USD"]
    assert "must be > 0" in trained.refused["DEAD-USD"]
    assert [m.kind for m in trained.models] == ["zscore", "lr", "xgb"]


def test_tau_comes_from_the_training_block_alone(trained):
    end = trained.blocks["train"]["end_ns"]
    rows = labels().filter((pl.col("product_id") == "BTC-USD") & (pl.col("coverage_s") >= 900))
    before = rows.filter(pl.col("event_time_ns") <= end)["sigma_fwd"].drop_nulls().to_numpy()
    assert trained.tau["BTC-USD"] == percentile_tau(before, 90)
    assert trained.tau["BTC-USD"] != percentile_tau(rows["sigma_fwd"].drop_nulls().to_numpy(), 90)


def test_every_artefact_repeats_its_logged_figures_on_the_table(trained):
    from sklearn.metrics import average_precision_score

    block = trained.blocks["validation"]
    rows = labels().filter(
        pl.col("event_time_ns").is_between(block["start_ns"], block["end_ns"])
        & pl.col("product_id").is_in(list(trained.tau))
        & pl.col("sigma_fwd").is_not_null()
    )
    truth = rows["sigma_fwd"].to_numpy() >= rows["product_id"].replace_strict(trained.tau).to_numpy()
    table = tables.scan("spike_features").collect()
    for model in trained.models:
        loaded = art.load(settings().models / model.run_id)
        x = rows.select("product_id", "row_time").join(table, on=["product_id", "row_time"], how="left")
        x = x.select(pl.col(loaded.manifest.features).cast(float).fill_null(math.nan)).to_numpy()
        p = loaded.predict_proba(x)
        assert model.metrics["validation"]["pr_auc"] == pytest.approx(average_precision_score(truth, p), abs=1e-12)
        assert model.metrics["validation"]["prevalence"] == truth.mean()
        assert np.isfinite(p).all()


def test_baselines_are_the_same_whatever_the_models_read(trained):
    from training.baselines import BASELINES
    from training.options import TrainOptions
    from training.train import train

    core = train(TrainOptions(service="spike_core_v1", percentile=90.0, jobs=1, models=("zscore",)))
    assert sorted(core.baselines) == sorted(trained.baselines) == sorted(BASELINES)
    for name, figures in core.baselines.items():
        assert figures == pytest.approx(trained.baselines[name], abs=1e-12, nan_ok=True)


def test_the_best_is_named_by_product_with_a_baseline_that_beats_it():
    from training.summary import best_lines
    from training.train import ModelReport, TrainReport

    report = TrainReport("e", "s", 1, {}, 0, {}, {})
    for kind, product, score in (("lr", "A", 0.3), ("xgb", "A", 0.4), ("lr", "B", 0.2)):
        metrics = {"validation": {"pr_auc": score}}
        report.models.append(ModelReport(kind, f"{kind}-{product}", "1", metrics, product))
        report.baselines.update({f"har {product}": {"pr_auc": 0.35}, f"prevalence {product}": {"pr_auc": 0.1}})
    assert best_lines(report) == [
        "best on validation of A: xgb, PR-AUC 0.4000. Next: volspike evaluate xgb-A",
        "best on validation of B: lr, PR-AUC 0.2000, not above baseline har, 0.3500. Next: volspike evaluate lr-B",
    ]


@pytest.mark.parametrize(("days", "calendar"), [(range(7), True), (range(6), False), ((0, 1, 2000), False)])
def test_calendar_columns_need_rows_of_a_week(days, calendar):
    from training.datasets import feature_names

    hours = [day * 24 + hour for day in days for hour in range(24)]
    frame = pl.DataFrame({"event_time_ns": [h * 3600 * 10**9 for h in [*hours, days[-1] * 24 + 24]], "block": "train"})
    assert set(contract.CALENDAR).isdisjoint(feature_names("spike_model_v1", frame)) != calendar


def test_models_learn_what_the_features_half_know_and_no_more(trained):
    for model in trained.models:
        held = model.metrics["validation"]
        assert 1.1 * held["prevalence"] < held["pr_auc"] < 0.95


def test_the_manifest_says_what_it_was_made_of(trained):
    manifest = art.load(settings().models / trained.best.run_id).manifest
    assert manifest.label.tau == trained.tau
    assert manifest.label.rule == art.Rule("percentile", 90.0)
    assert manifest.training.blocks == trained.blocks
    parts = manifest.data["spike_features"]["parts"]
    assert sum(p["rows"] for p in parts) == 3 * SECONDS
    assert all(not p["path"].startswith("/") for p in parts)
    assert set(manifest.features) <= set(contract.SERVICES["spike_top30_v1"])


def test_pictures_and_their_numbers_are_logged(home, trained):
    folder = home / "mlartifacts" / trained.best.run_id / "artifacts" / "plots"
    names = ("pr_curve", "roc_curve", "confusion_matrix", "importances")
    assert {p.name for p in folder.iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "csv")}
    with (folder / "confusion_matrix.csv").open() as stream:
        cells = [int(v) for row in csv.DictReader(stream) for k, v in row.items() if k != "truth"]
    assert sum(cells) == trained.blocks["validation"]["rows"]


def test_promote_refuses_then_obeys_a_reason_and_rollback_needs_a_past(home, trained, capsys):
    run = trained.best.run_id
    code, _, err = volspike(capsys, "promote", run)
    assert (code, "INSUFFICIENT_EVIDENCE" in err) == (1, True)
    code, out, _ = volspike(capsys, "promote", run, "--force", "demo", "--json")
    assert (code, json.loads(out)["run_id"]) == (0, run)
    code, out, _ = volspike(capsys, "promote", "--log", "--json")
    assert [e["force"] for e in json.loads(out)] == ["demo"]
    assert volspike(capsys, "rollback")[0] == 1
    assert volspike(capsys, "promote")[0] == 2


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--tau", "0"], 2, "--tau is 0"),
        (["--tau", "1"], 1, "train block has 0 spikes"),
        (["--service", "spike_best_v9"], 2, "spike_best_v9"),
        (["--exclude-products", "XRP-USD"], 2, "XRP-USD"),
        (["--session", "ffff"], 2, "fits 0 sessions"),
        (["--train-ratio", "0.9"], 2, "sum to 1"),
        (["--exclude-products", "BTC-USD,ETH-USD"], 1, "no product is left"),
        (["--threshold-percentile", "100"], 2, "--threshold-percentile is 100"),
        (["--min-coverage", "-1"], 2, "--min-coverage"),
        (["--use-top-features", "--service", "spike_core_v1"], 2, "give one of them"),
    ],
)
def test_train_says_what_is_wrong(home, capsys, args, code, said):
    got, _, err = volspike(capsys, "train", *args)
    assert (got, said in err) == (code, True), err


def test_empty_tables_are_an_answer(data_dir, capsys):
    for command in ("label", "split", "train"):
        code, _, err = volspike(capsys, command)
        assert (code, "volspike replay" in err) == (1, True)


def test_a_tape_of_a_minute_is_too_short(data_dir, capsys):
    training_tables.write(seconds=50, products=("BTC-USD",))
    code, _, err = volspike(capsys, "label")
    assert (code, "has a label" in err) == (1, True)


def test_half_an_hour_is_labelled_but_cannot_be_split(data_dir, capsys):
    training_tables.write(seconds=1800, products=("BTC-USD",))
    code, out, _ = volspike(capsys, "label", "--json")
    assert code == 0
    assert json.loads(out)["products"][0]["usable"] == 1800 - 960
    assert "replay a longer tape" in json.loads(out)["reasons"][0]
    assert volspike(capsys, "train")[0] == 1


def test_times_are_utc(home, capsys):
    _, out, _ = volspike(capsys, "split", "--json")
    first = datetime.fromisoformat(json.loads(out)["blocks"][0]["from"]).replace(tzinfo=UTC)
    assert first.timestamp() == training_tables.START / 1e9 + 900
