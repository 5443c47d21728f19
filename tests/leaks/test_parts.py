"""The parts of the audit against something independent of them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from feature_repo.contract import feature_hash, service_hash
from ingestion.kernel.label import sigma_fwd
from tests.oracle.label import label
from training import artefact as art
from training.audit import Evidence, features, skill, split, truth

S = 1_000_000_000
START = 1_700_000_000 * S


@pytest.mark.parametrize("returns", ["1s", "tick"])
def test_volatility_is_that_of_the_kernel_and_of_the_oracle(returns):
    rng = np.random.default_rng(3)
    times = START + np.cumsum(rng.choice([0, 1, 400_000_000, 5 * S], size=200))
    mid = 100 * np.exp(np.cumsum(rng.normal(0, 1e-4, 200)))
    t = START + np.arange(-3, 400) * S
    found = truth.volatility(t, times, mid, seconds=60, returns=returns)
    none = np.empty(0, np.int64)
    kernel = sigma_fwd(t, times, mid, mid, none, none, 2**62, returns=returns)
    np.testing.assert_allclose(found, kernel, rtol=1e-7, atol=1e-12)
    quotes = list(zip(times.tolist(), mid.tolist(), strict=True))
    for i in (0, 3, 150):
        wanted = label(int(t[i]), quotes, [], 2**62, returns)
        assert np.isnan(found[i]) if wanted is None else found[i] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_average_precision_and_auc_are_scikit_learns():
    rng = np.random.default_rng(0)
    y = rng.random(500) < 0.2
    p = np.round(rng.random(500) + 0.3 * y, 2)  # with ties
    assert skill.average_precision(p, y) == pytest.approx(average_precision_score(y, p), abs=1e-12)
    assert features._auc(p, y) == pytest.approx(roc_auc_score(y, p), abs=1e-12)


def test_nearest_is_the_least_distance():
    rng = np.random.default_rng(1)
    a, b = np.sort(rng.integers(0, 10_000, 80)), rng.integers(0, 10_000, 300)
    assert split.nearest(b, a).tolist() == np.abs(b[:, None] - a).min(axis=1).tolist()


def evidence(hours=4, sessions=2, *, knows_session=False, seed=0) -> Evidence:
    """Two recordings, a calm and a stormy one, all of them validation; one feature."""
    rng = np.random.default_rng(seed)
    parts, columns = [], []
    for i in range(sessions):
        n = hours * 3600
        storm = np.repeat(rng.random(n // 300) < (0.4 if i else 0.05), 300)
        spike = storm & (rng.random(n) < 0.7)
        rows = {
            "product_id": ["BTC-USD"] * n, "session": [f"s{i}"] * n, "n": np.arange(n), "k": np.full(n, -1),
            "event_time_ns": START + (np.arange(n) + i * 86_400) * S, "sigma_fwd": np.where(spike, 2.0, 0.5),
            "tau": np.ones(n), "spike": spike, "block": ["validation"] * n,
        }  # fmt: skip
        parts.append(pl.DataFrame(rows))
        columns.append(np.full(n, float(i)) if knows_session else storm + rng.normal(0, 0.5, n))
    linear = art.Linear([0.0], [0.0], [1.0], [1.0], [0.0], 0.0)
    name = "w60_realized_vol"
    manifest = art.Manifest(
        "volspike", "zscore", art.Service("spike_model_v1", service_hash("spike_model_v1")), [name],
        feature_hash([name]), art.Label(art.Rule("absolute", 1.0), {"BTC-USD": 1.0}), 0.5, art.Calibration(),
        art.Imputation("median", {name: 0.0}), art.Training({}, ["BTC-USD"], [], 900.0, 960), {}, {}, {}, {},
    )  # fmt: skip
    model = art.Artefact(manifest, "", msgspec.json.encode(linear))
    return Evidence(pl.concat(parts), np.concatenate(columns)[:, None], (name,), model)


def test_skill_that_does_not_fall_off_with_time_is_accused():
    assert [f.code for f in skill.time_shift(evidence(knows_session=True))] == ["SKILL_WITHOUT_TIME"]


@pytest.mark.parametrize("seed", range(5))
def test_skill_of_one_storm_ahead_falls_off_and_is_not_accused(seed):
    assert list(skill.time_shift(evidence(seed=seed))) == []


def test_session_number_is_accused_and_a_price_level_mentioned():
    assert [f.code for f in features.session(evidence(knows_session=True))] == ["FEATURE_IS_SESSION"]
    level = evidence()
    price = 1000.0 * (level.rows["session"] == "s1").to_numpy() + np.random.default_rng(0).random(level.rows.height)
    found = list(features.session(replace(level, x=price[:, None])))
    assert [(f.code, f.severity) for f in found] == [("FEATURE_TELLS_SESSION", "warning")]


def test_a_code_of_the_label_is_found_whatever_its_order():
    e = evidence()
    rng = np.random.default_rng(0)
    code = np.where(e.spike, rng.choice([2.0, 5.0], len(e.spike)), rng.choice([1.0, 3.0, 7.0], len(e.spike)))
    assert [f.code for f in features.determines(replace(e, x=code[:, None]))] == ["FEATURE_IS_LABEL"]
    gone = np.where(e.spike, np.nan, rng.random(len(e.spike)))
    assert [f.code for f in features.determines(replace(e, x=gone[:, None]))] == ["FEATURE_IS_LABEL"]
    assert list(features.determines(e)) == []


def test_evidence_of_the_wrong_shape_is_refused():
    e = evidence(hours=1)
    with pytest.raises(ValueError, match="shape"):
        replace(e, x=e.x[:-1])
    with pytest.raises(ValueError, match="tau"):
        replace(e, rows=e.rows.drop("tau"))
