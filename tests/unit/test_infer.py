"""Scoring files: the service's own numbers, mapped by name, and errors that say what is wrong."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from feature_repo import contract
from feature_repo.errors import ArtefactError, ContractError, InputError, StoreError, UsageError
from infra import cli
from ingestion import tables
from tests.feature_rows import feature_rows
from training import artefact as art
from training import infer as module
from training.importance import importance
from training.infer import infer

CORE = list(contract.SERVICES["spike_core_v1"])


def save(folder, kind="lr", threshold=0.6):
    rng = np.random.default_rng(1)
    if kind == "xgb":
        import xgboost

        x = rng.normal(size=(2000, 5))
        x[::7, 2] = np.nan
        y = rng.random(2000) < 1 / (1 + np.exp(-x[:, 0]))
        model = bytes(xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(x, y), 20).save_raw("ubj"))
    else:
        linear = art.Linear([0.5] * 5, [0.1] * 5, [2.0] * 5, [1.0, -1.0, 0.5, 0.0, 0.2], [0.3] * 5, 0.1)
        model = msgspec.json.encode(linear)
    manifest = art.Manifest(
        name="volspike",
        kind=kind,
        service=art.Service("spike_core_v1", contract.service_hash("spike_core_v1")),
        features=CORE,
        feature_hash=contract.feature_hash(CORE),
        label=art.Label(art.Rule("percentile", 95.0), {"BTC-USD": 2e-5}),
        threshold=threshold,
        calibration=art.Calibration("sigmoid", 0.9, 0.05),
        imputation=art.Imputation("native" if kind == "xgb" else "median"),
        training=art.Training({}, ["BTC-USD"], [], 900.0, 960),
        data={},
        metrics={},
        seeds={},
        versions={},
    )
    art.save(folder, manifest, model)
    return folder


def table(n=3000, seed=0):
    """Rows with columns in another order than the model's, of several types, with holes."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=n) for name in reversed(CORE)}
    columns[CORE[1]] = pa.array(rng.integers(0, 9, n), mask=rng.random(n) < 0.2)
    columns[CORE[2]] = pa.array(rng.normal(size=n).astype(np.float32), mask=rng.random(n) < 0.2)
    keys = {"product_id": ["BTC-USD"] * n, "event_time_ns": np.arange(n), "other": np.zeros(n)}
    return pa.table(keys | columns)


def matrix(rows):
    return rows.select(CORE).to_pandas().to_numpy(dtype=float)


@pytest.mark.parametrize("kind", ["lr", "xgb"])
def test_rows_are_scored_as_the_service_scores_them_and_keep_their_names(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "READ_ROWS", 700)
    monkeypatch.setattr(module, "BATCH_ROWS", 300)
    rows = table()
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=999)
    model = save(tmp_path / "model", kind)
    found = infer(str(model), tmp_path / "rows.parquet", tmp_path / "out" / "p.parquet")
    out = pq.read_table(tmp_path / "out" / "p.parquet")
    expected = art.load(model).predict_proba(matrix(rows))
    assert out["spike_probability"].to_numpy() == pytest.approx(expected, abs=1e-12)
    assert out["spike"].to_pylist() == (expected >= 0.6).tolist()
    assert out.column_names == ["product_id", "event_time_ns", "spike_probability", "spike"]
    assert out["event_time_ns"].to_pylist() == list(range(3000))
    assert (found.rows, found.spikes) == (3000, int((expected >= 0.6).sum()))
    assert found.latency_ms["p50"] <= found.latency_ms["p99"] <= found.latency_ms["max"]
    assert out.schema.metadata[b"volspike.model"].decode() == found.digest == art.load(model).digest


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "in").mkdir()
    for i in (1, 0):
        pq.write_table(table(100, seed=i), tmp_path / "in" / f"{i}.parquet")
    infer(str(save(tmp_path / "model")), tmp_path / "in", tmp_path / "p.parquet")
    both = np.concatenate([matrix(table(100, seed=i)) for i in (0, 1)])
    expected = art.load(tmp_path / "model").predict_proba(both)
    assert pq.read_table(tmp_path / "p.parquet")["spike_probability"].to_numpy() == pytest.approx(expected)


def test_of_a_table_the_rows_that_its_log_names_are_scored(tmp_path):
    model, root, out = save(tmp_path / "m"), tmp_path / "tables", tmp_path / "p.parquet"
    rows, key = feature_rows("BTC-USD", range(40)), ("00f1a2b3c4d5e6f7", "BTC-USD")
    for first, last in ((0, 10), (10, 30)):
        part = rows.slice(first, last - first)
        tables.append(contract.VIEW, part, np.arange(first + 1, last + 1), {key: last}, root=root)
    tables.compact(contract.VIEW, root=root)  # the two parts stay beside the one that took their rows
    tables.append(contract.VIEW, rows.slice(30), np.arange(31, 41), {key: 40}, root=root)
    DeltaTable(root / contract.VIEW).create_checkpoint()
    assert infer(str(model), root / contract.VIEW, out).rows == 40
    assert sorted(pq.read_table(out)["n"].to_pylist()) == list(range(1, 41))
    tables.parts(contract.VIEW, root=root)[0].path.unlink()
    with pytest.raises(StoreError, match="can't be read"):
        infer(str(model), root / contract.VIEW, out)


def test_what_is_wrong_is_named(tmp_path):
    model = str(save(tmp_path / "model"))
    rows = table(10)
    data, out = tmp_path / "rows.parquet", tmp_path / "p.parquet"

    def scored(what):
        pq.write_table(what, data)
        return infer(model, data, out)

    with pytest.raises(ContractError, match=rf"lacks 1 .*{CORE[0]}"):
        scored(rows.drop_columns([CORE[0]]))
    with pytest.raises(ContractError, match="must be numbers"):
        scored(rows.drop_columns([CORE[0]]).append_column(CORE[0], pa.array(["x"] * 10)))
    with pytest.raises(InputError, match="infinite"):
        scored(rows.drop_columns([CORE[0]]).append_column(CORE[0], pa.array([np.inf] * 10)))
    with pytest.raises(InputError, match="no row"):
        scored(rows[:0])
    with pytest.raises(ContractError, match=rf"several columns .*{CORE[1]}"):
        scored(rows.append_column(CORE[1], rows[CORE[1]]))
    (tmp_path / "mixed").mkdir()
    pq.write_table(rows, tmp_path / "mixed" / "0.parquet")
    times = pa.array(["now"] * 10)
    pq.write_table(
        rows.drop_columns(["event_time_ns"]).append_column("event_time_ns", times), tmp_path / "mixed" / "1.parquet"
    )
    with pytest.raises(ContractError, match=r"event_time_ns is string, in 0\.parquet it is int64"):
        infer(model, tmp_path / "mixed", out)
    scored(rows)
    with pytest.raises(UsageError, match="the data itself"):
        infer(model, data, data)
    with pytest.raises(InputError, match="must be a parquet file"):
        infer(model, tmp_path / "model" / "model.json", out)
    with pytest.raises(InputError, match=r"no \.parquet file"):
        infer(model, tmp_path / "model", out)
    with pytest.raises(InputError, match=r"holds no manifest"):
        infer(str(tmp_path), data, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't write"):
        infer(model, data, tmp_path / "file" / "p.parquet")
    assert not list(tmp_path.glob(".*"))


def test_rows_without_any_feature_are_counted(tmp_path, capsys):
    rows = table(10)
    for name in CORE:  # three rows lack all, the others at most what they lacked
        values = [None] * 3 + rows[name].to_pylist()[3:]
        rows = rows.drop_columns([name]).append_column(name, pa.array(values, pa.float64()))
    pq.write_table(rows, tmp_path / "rows.parquet")
    arguments = ["--data", str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "p.parquet")]
    with pytest.raises(SystemExit):
        cli.main(["infer", "--model", str(save(tmp_path / "model")), *arguments])
    assert "3 rows hold none of the model's features" in capsys.readouterr().out


def test_a_flipped_bit_is_refused(tmp_path):
    model = save(tmp_path / "model")
    pq.write_table(table(10), tmp_path / "rows.parquet")
    content = bytearray((model / "model.json").read_bytes())
    content[20] ^= 1
    (model / "model.json").write_bytes(content)
    with pytest.raises(ArtefactError, match="sha256"):
        infer(str(model), tmp_path / "rows.parquet", tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_the_command_exits_1_past_the_limit(tmp_path, capsys):
    pq.write_table(table(100), tmp_path / "rows.parquet")
    given = ["--model", str(save(tmp_path / "model")), "--data", str(tmp_path / "rows.parquet")]
    given += ["--out", str(tmp_path / "p.parquet"), "--json"]
    for limit, code in (("0", 1), ("60000", 0)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["infer", *given, "--max-latency-ms", limit])
        assert stop.value.code == code
        said = json.loads(capsys.readouterr().out)
        assert said["within_limit"] is (code == 0)
        assert said["rows"] == 100


@pytest.mark.parametrize("kind", ["lr", "xgb"])
def test_contributions_sum_to_the_margin(tmp_path, kind):
    model = art.load(save(tmp_path / "model", kind))
    found = importance(model, matrix(table(500)))
    assert found.worst_sum < (1e-12 if kind == "lr" else 1e-5)
    assert found.rows == 500
    assert (found.contribution >= 0).all()
    if kind == "lr":
        assert found.direction[0] == pytest.approx(1)
        assert found.direction[3] != 1  # weight 0, only its absence counts
        assert found.ranked(1)[0][0] in CORE[:2]
    else:
        assert found.ranked(1)[0][0] == CORE[0]
