"""A run is measured on rows that were sealed, once, and judged on rows that nobody chose by."""

from __future__ import annotations

import dataclasses
import json
import math
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from infra import cli
from infra.settings import settings
from ingestion import tables
from tests import training_tables
from training import artefact as art
from training.labels import labels

SECONDS = 13 * 3600
S = 1_000_000_000


@pytest.fixture(scope="module")
def trained(module_home):
    """Thirteen hours of one product, half of them sealed: twenty-five quarters of an hour."""
    training_tables.write(seconds=SECONDS, products=("BTC-USD",), seed=3)
    from feature_repo.store import apply
    from training.options import TrainOptions
    from training.train import train

    apply()
    chosen = TrainOptions(
        service="spike_core_v1", models=("zscore", "lr"), ratios=(0.3, 0.18, 0.52), percentile=90.0, jobs=1
    )
    return {m.kind: m for m in train(chosen).models}


def volspike(capsys, *args):
    """Run a command; returns exit code, output and errors."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


class Page(HTMLParser):
    """What a page holds, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in ("meta", "path", "line", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "path", "line", "circle", "rect", "br"):
            assert self.open.pop() == tag


def read_page(path):
    text = path.read_text()
    page = Page()
    page.feed(text)
    return text, page


def truth(run, block):
    """Rows of a block and the run's forecasts of them, straight from the tables."""
    manifest = art.load(settings().models / run).manifest
    b = manifest.training.blocks[block]
    table = tables.scan("spike_features").collect().select("product_id", "row_time", *manifest.features)
    rows = (
        labels()
        .filter(pl.col("event_time_ns").is_between(b["start_ns"], b["end_ns"]) & pl.col("sigma_fwd").is_not_null())
        .join(table, on=["product_id", "row_time"], how="left")
    )
    x = rows.select(pl.col(manifest.features).cast(float).fill_null(math.nan)).to_numpy()
    y = rows["sigma_fwd"].to_numpy() >= manifest.label.tau["BTC-USD"]
    return art.load(settings().models / run).predict_proba(x), y


def test_without_final_the_block_stays_sealed_and_the_reader_is_warned(trained, capsys):
    from training.sealed import opening

    run = trained["zscore"].run_id
    code, out, _ = volspike(capsys, "evaluate", run[:10], "--json")
    said = json.loads(out)
    assert (code, said["block"], said["opening"]) == (0, "validation", None)
    assert "flatter" in said["warnings"][0]
    assert opening(run) is None


def test_the_sealed_block_opens_once_and_every_figure_is_of_its_rows(trained, capsys):
    from sklearn.metrics import average_precision_score, roc_auc_score

    from training.sealed import opening

    run = trained["lr"].run_id
    code, out, _ = volspike(capsys, "evaluate", run, "--final", "--json")
    said = json.loads(out)
    p, y = truth(run, "test")
    assert (code, said["block"], said["opening"]["run_id"]) == (0, "test", run)
    assert said["pooled"]["rows"] == len(y)
    assert said["pooled"]["pr_auc"] == pytest.approx(average_precision_score(y, p), abs=1e-12)
    assert said["pooled"]["roc_auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    low, high = said["intervals"]["pr_auc"]
    assert low < said["pooled"]["pr_auc"] < high
    assert {g["by"] for g in said["groups"]} == {"product", "session", "hour"}
    for by in ("product", "session", "hour"):
        assert sum(g["figures"]["rows"] for g in said["groups"] if g["by"] == by) == len(y)
    assert said["differences"][0]["value"] == pytest.approx(
        said["pooled"]["pr_auc"] - said["baselines"][said["best_baseline"]]["pr_auc"]
    )
    assert said["events"]["episodes"] == said["pooled"]["episodes"]
    assert len(said["events"]["lead_s"]) == said["events"]["caught"]

    for again in (run, trained["zscore"].run_id):
        code, _, err = volspike(capsys, "evaluate", again, "--final")
        assert (code, "opens once" in err) == (1, True)
    found = opening(run)
    assert found is not None
    assert found.run_id == run
    assert len(found.refused) == 2


def test_the_report_needs_nothing_beside_it_and_is_kept_with_the_run(trained, tmp_path, capsys):
    run = trained["lr"].run_id
    code, out, _ = volspike(capsys, "evaluate", run, "--out", str(tmp_path / "r.html"))
    assert code == 0
    assert str(tmp_path / "r.html") in out.replace("\n", "")
    text, page = read_page(tmp_path / "r.html")
    assert page.fetched == []
    assert page.open == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert page.tags.count("svg") >= 9
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in text.lower().replace("finance", "")
    from training.tracking import tracking

    with tracking() as client:
        kept = [f.path for f in client.list_artifacts(run, "evaluation/validation")]
    assert "evaluation/validation/r.html" in kept


def test_features_a_second_late_are_those_of_the_second_before(trained):
    from training.scoring import read

    rows = labels().slice(2000, 50)
    names = ["w60_return_std", "w30_spread_mean"]
    now, late = read(rows, names), read(rows, names, delay_ms=1000)
    assert np.array_equal(late[1:], now[:-1], equal_nan=True)
    assert np.array_equal(read(rows, names, delay_ms=1), late, equal_nan=True)
    assert not np.array_equal(late, now, equal_nan=True)


def test_the_gate_judges_rows_that_nobody_chose_by(trained):
    from training import contest
    from training.runs import Run
    from training.sealed import openings

    lr, zscore = (Run.load(trained[kind].run_id) for kind in ("lr", "zscore"))
    rows, left_out = contest.evidence(lr, None, openings())
    blocks = lr.manifest.training.blocks
    assert rows["event_time_ns"].min() >= blocks["validation"]["end_ns"] + 960 * S
    assert rows.height >= blocks["test"]["rows"]
    assert set(left_out.values()) == {0}
    # a session that training left out may judge it: so one that isn't there leaves out none
    elsewhere = dataclasses.replace(lr, options=dataclasses.replace(lr.options, sessions=("ffff",)))
    assert contest.evidence(elsewhere, None, openings())[0].equals(rows)
    # the block was opened for lr: what zscore is judged on must be newer, and nothing is
    rows, left_out = contest.evidence(zscore, lr, openings())
    assert rows.height == 0
    assert left_out["in sealed blocks that were opened for other runs"] >= blocks["test"]["rows"]
    # a champion that was trained on later rows pushes the evidence back
    later = {**blocks, "validation": blocks["validation"] | {"end_ns": blocks["test"]["end_ns"] - 5000 * S}}
    manifest = art.msgspec.structs.replace(
        lr.manifest, training=art.msgspec.structs.replace(lr.manifest.training, blocks=later)
    )
    newer = dataclasses.replace(zscore, artefact=art.Artefact(manifest, "", lr.artefact.model))
    rows, _ = contest.evidence(lr, newer, openings())
    assert 0 < rows.height <= 5000
    assert rows["event_time_ns"].min() >= blocks["test"]["end_ns"] - 5000 * S + 960 * S


def test_promote_compares_on_the_sealed_rows_and_refuses_who_has_none(trained, capsys):
    from training import promotion

    run = trained["lr"].run_id
    code, out, err = volspike(capsys, "promote", run, "--force", "to go on", "--json")
    assert code == 0, err
    evidence = json.loads(out)["evidence"]
    _, y = truth(run, "test")
    assert (evidence["attempt"], evidence["spikes"]) == (1, int(y.sum()))
    assert evidence["comparison"]["alpha"] == 0.025
    assert evidence["comparison"]["lower_bound"] < evidence["comparison"]["difference"]
    code, _, err = volspike(capsys, "promote", trained["zscore"].run_id)
    assert (code, "INSUFFICIENT_EVIDENCE: 0 blocks" in err) == (1, True)
    assert len(promotion.attempts()) == 1
    code, out, _ = volspike(capsys, "promote", "--log", "--json")
    assert [e["run_id"] for e in json.loads(out)] == [run]


@pytest.mark.parametrize("kind", ["none", "all", "short"])
def test_rows_that_say_nothing_give_a_report_that_says_so(trained, tmp_path, monkeypatch, kind):
    from training import evaluate as module
    from training.report import verdict, write
    from training.runs import Run, spikes_of

    run = Run.load(trained["lr"].run_id)
    found = spikes_of(run)
    frame = found.frame
    held = pl.col("block") == "validation"
    if kind == "short":
        rows = frame.with_row_index().filter(held)["index"][:40].to_list()
        frame = frame.with_row_index().filter(~held | pl.col("index").is_in(rows)).drop("index")
        frame = frame.with_columns(spike=pl.when(held).then(pl.int_range(pl.len()) % 2 == 0).otherwise("spike"))
    else:
        frame = frame.with_columns(spike=pl.when(held).then(kind == "all").otherwise("spike"))
    monkeypatch.setattr(module, "spikes_of", lambda run: dataclasses.replace(found, frame=frame))
    e = module.measure(run, "validation")
    write(tmp_path / "r.html", e, run.manifest)
    _, page = read_page(tmp_path / "r.html")
    assert page.open == []
    assert e.intervals["pr_auc"] is None
    assert any("under 20" in w for w in e.warnings)
    if kind != "short":
        assert e.pooled["pr_auc"] is None
        assert verdict(e).startswith("Nothing can be said")
    else:
        assert "too few blocks" in verdict(e)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["0123456789abcdef"], 1, "does not exist"),
        (["volspike@nobody"], 1, "volspike@nobody"),
        (["volspike/99"], 1, "volspike/99"),
        ([], 2, "Missing argument"),
        (["0123456789abcdef", "--final", "--out", "report.json"], 2, "would replace the report"),
    ],
)
def test_a_call_that_cannot_be_answered_is_named(trained, capsys, args, code, said):
    got, _, err = volspike(capsys, "evaluate", *args)
    assert (got, said in err) == (code, True), err
