"""An artefact whose tau rolls holds the state to go on from, verified like the rest; it is served with its last tau."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from feature_repo.errors import ArtefactError, StoreError
from serving.online import Row
from serving.schemas import Model
from serving.scorer import Limits, score
from tests.contract.serving_kit import SERVICE, write_artefact
from training import artefact as art
from training.rolling import RollingRule, rolling_tau
from training.rolling_state import encode, resume

S = 1_000_000_000
NOW = 1_700_000_000 * S
RULE = RollingRule(90, hours=1.0)


@pytest.fixture
def rolling(tmp_path):
    """The artefact, its folder, and the series that its state was cut from."""
    t = NOW - np.arange(7200, 60, -1) * S
    sigma = np.random.default_rng(4).lognormal(-11, 0.5, len(t))
    tau, _ = rolling_tau(np.array([NOW - 61 * S]), t, sigma, RULE)
    plain = write_artefact(tmp_path / "plain")
    label = art.Label(art.Rule("rolling", RULE.percentile, RULE.hours), {"BTC-USD": float(tau[0])})
    manifest = msgspec.structs.replace(plain.manifest, label=label)
    state = encode({"BTC-USD": (t, sigma)})
    model = (tmp_path / "plain" / "model.json").read_bytes()
    art.save(tmp_path / "rolling", manifest, model, state)
    return tmp_path / "rolling", manifest, model, state


def test_a_loaded_artefact_goes_on_where_training_stopped(rolling):
    folder, manifest, _, state = rolling
    loaded = art.load(folder)
    assert loaded.tau_state == state
    rule = RollingRule(loaded.manifest.label.rule.value, loaded.manifest.label.rule.hours or math.nan)
    assert resume(loaded.tau_state, rule)["BTC-USD"].at(NOW - 61 * S) == manifest.label.tau["BTC-USD"]


def test_the_service_answers_with_the_last_tau_and_says_it(rolling):
    folder, manifest, _, _ = rolling
    loaded = art.load(folder)
    values = dict.fromkeys(loaded.manifest.features, 1.0) | {"book_state": 1, "coverage_s": 900.0}
    rows = {p: Row(p, NOW, values) for p in ("BTC-USD", "ETH-USD")}
    known, unknown = score(rows, loaded, Model("volspike", "1", "champion"), NOW, Limits(10.0, 900.0))
    assert (known.status, known.tau) == ("ok", manifest.label.tau["BTC-USD"])
    assert known.spike_probability is not None
    assert (unknown.status, unknown.tau, unknown.spike) == ("no_threshold", None, None)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_state_that_was_touched_is_refused(rolling, damage):
    folder, _, _, state = rolling
    path = folder / art.TAU_FILE
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(state[:-1] if damage == "truncate" else bytes([state[0] ^ 1]) + state[1:])
    with pytest.raises(ArtefactError, match=r"tau\.json"):
        art.load(folder)


def test_a_rule_and_its_state_go_together(rolling, tmp_path):
    _, manifest, model, state = rolling
    with pytest.raises(ArtefactError, match="rolling tau has"):
        art.save(tmp_path / "no state", manifest, model)
    fixed = msgspec.structs.replace(manifest, label=art.Label(art.Rule("percentile", 95.0), {"BTC-USD": 1e-5}))
    with pytest.raises(ArtefactError, match="percentile tau has"):
        art.save(tmp_path / "a state too many", fixed, model, state)
    for hours in (None, 0.0, math.inf):
        label = art.Label(art.Rule("rolling", 90.0, hours), {"BTC-USD": 1e-5})
        with pytest.raises(ArtefactError, match="hours"):
            art.save(tmp_path / "no hours", msgspec.structs.replace(manifest, label=label), model, state)
    with pytest.raises(StoreError, match="never overwritten"):
        art.save(tmp_path / "rolling", manifest, model, state)
    assert manifest.service.name == SERVICE
