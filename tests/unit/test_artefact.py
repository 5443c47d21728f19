"""An artefact is whole and true, or it is refused; its numbers do not depend on how many rows are asked at once."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from feature_repo import contract
from feature_repo.errors import ArtefactError, ContractError, InputError, StoreError
from training import artefact as a
from training.inplace import Margins

CORE = list(contract.SERVICES["spike_core_v1"])
W = [0.7, -0.2, 0.0, 1.5, -3.0]
FILL = [0.1, 0.2, 0.3, 0.4, 0.5]
MISSING = [0.0, 0.25, 0.0, 0.0, -0.5]


def manifest(kind="lr", **changes):
    values = dict(
        name="volspike",
        kind=kind,
        service=a.Service("spike_core_v1", contract.service_hash("spike_core_v1")),
        features=CORE,
        feature_hash=contract.feature_hash(CORE),
        label=a.Label(a.Rule("percentile", 95.0), {"BTC-USD": 2e-5}),
        threshold=0.3,
        calibration=a.Calibration("sigmoid", 0.5, -1.0),
        imputation=a.Imputation("median", dict(zip(CORE, FILL, strict=True)), CORE[1:2] + CORE[4:]),
        training=a.Training({"train": {"rows": 3}}, ["BTC-USD"], ["00" * 8], 900.0, 960),
        data={},
        metrics={"test": {"pr_auc": 0.1}},
        seeds={"model": 1},
        versions={},
    )
    return a.Manifest(**(values | changes))


def linear():
    return msgspec.json.encode(a.Linear(FILL, [1.0] * 5, [2.0] * 5, W, MISSING, 0.125))


@pytest.fixture(scope="module")
def booster():
    import xgboost

    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 5))
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nansum(x, axis=1) > 1
    params = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": 0}
    trained = xgboost.train(params, xgboost.DMatrix(x, y), num_boost_round=20)
    return x, trained, bytes(trained.save_raw("ubj"))


@pytest.fixture(params=["lr", "xgb"])
def saved(request, tmp_path, booster):
    model = linear() if request.param == "lr" else booster[2]
    m = manifest() if request.param == "lr" else manifest("xgb", imputation=a.Imputation("native"))
    folder = tmp_path / "model"
    a.save(folder, m, model)
    return folder


def rows(n=300, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


def test_what_was_saved_is_loaded(saved):
    loaded = a.load(saved)
    assert loaded.manifest.features == CORE
    assert loaded.manifest.label.tau == {"BTC-USD": 2e-5}
    assert set(loaded.manifest.files) == {p.name for p in saved.iterdir()} - {a.MANIFEST, a.SEAL}
    assert [p.name for p in saved.parent.iterdir()] == ["model"]  # no temporary folder is left


def test_linear_probability_by_hand(tmp_path):
    a.save(tmp_path / "m", manifest(), linear())
    x = [0.3, math.nan, -1.0, 2.0, math.nan]
    z = 0.125
    for value, fill, w, gone in zip(x, FILL, W, MISSING, strict=True):
        z += gone if math.isnan(value) else 0
        z += w * ((fill if math.isnan(value) else value) - 1.0) / 2.0
    expected = 1 / (1 + math.exp(-(0.5 * z - 1.0)))
    assert a.load(tmp_path / "m").predict_proba(np.array([x]))[0] == pytest.approx(expected, rel=1e-14)


def test_trees_answer_as_xgboost_itself(tmp_path, booster):
    import xgboost

    x, trained, raw = booster
    plain = manifest("xgb", imputation=a.Imputation("native"), calibration=a.Calibration())
    a.save(tmp_path / "m", plain, raw)
    assert a.load(tmp_path / "m").predict_proba(x) == pytest.approx(trained.predict(xgboost.DMatrix(x)), abs=1e-6)


def test_margins_are_those_of_inplace_predict_to_the_bit(booster):
    x, trained, _ = booster
    margins = Margins(trained)
    for given in (x, x[:1], x[:0], np.asfortranarray(x), x[::-3], x.astype(np.float32)):
        expected = trained.inplace_predict(np.ascontiguousarray(given, np.float64), predict_type="margin")
        found = margins(given)
        assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()
    first = margins(x[:1])
    kept = first.copy()
    margins(x[1:2])
    assert first == kept  # the next answer does not overwrite the last one
    assert len(np.unique(margins(x))) > 20


def test_margins_of_a_wrong_table_or_of_several_outputs_are_refused(booster):
    import xgboost

    x, trained, _ = booster
    with pytest.raises(RuntimeError, match="XGBoost"):
        Margins(trained)(x[:, :3])
    several = {"objective": "multi:softprob", "num_class": 3, "nthread": 1}
    classes = xgboost.train(several, xgboost.DMatrix(x, np.arange(len(x)) % 3), num_boost_round=2)
    with pytest.raises(RuntimeError, match="one margin a row"):
        Margins(classes)(x)


def test_one_row_answers_as_in_a_batch(saved):
    model = a.load(saved)
    x = rows(600)
    batch = model.predict_proba(x)
    single = np.array([model.predict_proba(row[None])[0] for row in x])
    assert np.abs(batch - single).max() <= 1e-12
    assert len(np.unique(batch)) > 20


def test_extreme_margins_stay_probabilities(tmp_path):
    a.save(tmp_path / "m", manifest(), linear())
    p = a.load(tmp_path / "m").predict_proba(np.array([[1e300] * 5, [-1e300] * 5]))
    assert set(p.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("position", [0, 0.1, 0.5, 0.9, 1])
def test_a_flipped_bit_in_any_file_is_refused(saved, position):
    for path in list(saved.iterdir()):
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[int(position * (len(damaged) - 1))] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=path.name):
            a.load(saved)
        path.write_bytes(original)
    a.load(saved)


def test_a_missing_or_cut_file_is_refused(saved, tmp_path):
    for path in list(saved.iterdir()):
        copy = tmp_path / f"copy-{path.name}"
        shutil.copytree(saved, copy)
        (copy / path.name).write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ArtefactError):
            a.load(copy)
        (copy / path.name).unlink()
        with pytest.raises(ArtefactError, match=path.name):
            a.load(copy)
    with pytest.raises(ArtefactError, match="nowhere"):
        a.load(tmp_path / "nowhere")


def reseal(folder, change):
    """Rewrite the manifest with valid digests, as somebody who means well and runs other code would."""
    import hashlib

    document = json.loads((folder / a.MANIFEST).read_bytes())
    change(document)
    text = json.dumps(document).encode()
    (folder / a.MANIFEST).write_bytes(text)
    (folder / a.SEAL).write_text(hashlib.sha256(text).hexdigest() + "\n")


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda d: d["service"].update(hash="0" * 16), ContractError, "hash of service spike_core_v1"),
        (lambda d: d["service"].update(name="spike_core_v9"), ContractError, "spike_core_v9"),
        (lambda d: d.update(feature_hash="0" * 16), ContractError, "feature_hash"),
        (lambda d: d["features"].__setitem__(0, "w60_moon_phase"), ContractError, "w60_moon_phase"),
        (lambda d: d["label"].update(version=99), ContractError, "label version"),
        (lambda d: d["label"]["tau"].update({"BTC-USD": 0.0}), ArtefactError, "label.tau"),
        (lambda d: d.update(schema_version=2), ArtefactError, "schema_version"),
        (lambda d: d.update(threshold=1.5), ArtefactError, "threshold"),
        (lambda d: d["files"].update({"../../etc/passwd": "0"}), ArtefactError, "files"),
        (lambda d: d.pop("label"), ArtefactError, "label"),
        (lambda d: d["features"].append(d["features"][0]), ArtefactError, "distinct"),
    ],
)
def test_a_manifest_of_another_contract_is_refused(saved, change, error, named):
    reseal(saved, change)
    with pytest.raises(error, match=named):
        a.load(saved)


def test_a_model_of_another_width_is_refused(tmp_path, booster):
    short = CORE[:4]
    m = manifest(features=short, feature_hash=contract.feature_hash(short))
    a.save(tmp_path / "lr", m, linear())
    a.save(tmp_path / "xgb", msgspec.structs.replace(m, kind="xgb", imputation=a.Imputation("native")), booster[2])
    for name in ("lr", "xgb"):
        with pytest.raises(ArtefactError, match=r"features|weights"):
            a.load(tmp_path / name)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    a.save(tmp_path / "lr", manifest(), b"{}")
    a.save(tmp_path / "xgb", manifest("xgb", imputation=a.Imputation("native")), b"not a booster")
    for name in ("lr", "xgb"):
        with pytest.raises(ArtefactError, match="is not a"):
            a.load(tmp_path / name)


def test_an_artefact_is_never_overwritten(saved):
    with pytest.raises(StoreError, match="exists"):
        a.save(saved, manifest(), linear())


def test_infinity_and_a_wrong_shape_are_errors(saved):
    model = a.load(saved)
    x = rows(3)
    x[2, 1] = -math.inf
    with pytest.raises(InputError, match=f"{CORE[1]} is infinite in row 2"):
        model.predict_proba(x)
    with pytest.raises(ValueError, match="5"):
        model.predict_proba(x[:, :4])


def test_the_service_can_import_it_without_the_training_stack():
    heavy = ("sklearn", "mlflow", "pandas", "feast", "xgboost")
    code = f"import sys, training.artefact; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
