"""``volspike audit`` on runs in MLflow: clean ones, doctored ones, and none at all."""

from __future__ import annotations

import json

import msgspec
import pytest

from infra import cli
from infra.settings import settings
from tests import training_tables
from training import artefact as art


@pytest.fixture(scope="module")
def trained(module_home):
    from training.options import TrainOptions
    from training.train import train

    training_tables.write(seconds=3 * 3600, products=("BTC-USD",))
    from feature_repo.store import apply

    apply()
    return train(TrainOptions(service="spike_core_v1", percentile=85.0, models=("lr",), n_splits=1, jobs=1))


def volspike(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_trained_run_is_clean(trained, capsys):
    code, out, _ = volspike(capsys, "audit", trained.models[0].run_id, "--json")
    said = json.loads(out)
    assert (code, said["clean"], said["run_id"]) == (0, True, trained.models[0].run_id)
    assert {"tape", "shuffled", "time_shift"} <= set(said["checks"])
    assert [f["code"] for f in said["findings"] if f["severity"] == "unchecked"] == ["TAPE"]


def test_threshold_chosen_elsewhere_exits_1_and_says_where(trained, capsys, tmp_path):
    before = art.load(settings().models / trained.models[0].run_id)
    lower = msgspec.structs.replace(before.manifest, threshold=before.manifest.threshold / 2)
    art.save(tmp_path / "doctored", lower, before.model)
    code, out, _ = volspike(capsys, "audit", str(tmp_path / "doctored"), "--quick")
    assert code == 1
    assert "THRESHOLD_OUTSIDE_VALIDATION (leak)" in out
    assert f"{lower.threshold:.6g}" in out and f"{before.manifest.threshold:.6g}" in out


def test_tau_of_more_than_train_exits_1(trained, capsys, tmp_path):
    before = art.load(settings().models / trained.models[0].run_id)
    label = msgspec.structs.replace(before.manifest.label, tau={"BTC-USD": before.manifest.label.tau["BTC-USD"] * 1.01})
    art.save(tmp_path / "doctored", msgspec.structs.replace(before.manifest, label=label), before.model)
    code, out, _ = volspike(capsys, "audit", str(tmp_path / "doctored"), "--quick", "--json")
    assert code == 1
    assert [f["code"] for f in json.loads(out)["findings"]] == ["TAU_OUTSIDE_TRAIN"]


def test_run_that_does_not_exist_is_refused(trained, capsys):
    code, _, err = volspike(capsys, "audit", "0123456789")
    assert code == 1
    assert "0123456789" in err and "does not exist" in err
