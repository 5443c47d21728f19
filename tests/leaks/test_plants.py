"""Each leak is planted in a clean run and must be found; clean runs must not be accused."""

from __future__ import annotations

import pytest

from tests.leaks import trials
from tests.leaks.market import Source, source
from tests.leaks.pipeline import build
from tests.leaks.plants import LEAKS, rolling
from training.audit import audit, skill

SEED = 1  # odd: the plants that may choose are planted in trees


@pytest.fixture(scope="module")
def market() -> Source:
    return source(SEED, products=("BTC-USD",))


@pytest.mark.parametrize("kind", ["zscore", "lr", "xgb"])
def test_clean_run_is_not_accused(market, kind):
    found = audit(build(market, kind=kind))
    assert found.clean, found.leaks
    assert {"tape", "shuffled", "time_shift"} <= set(found.checks)


def test_clean_run_with_a_rolling_tau_is_not_accused(market):
    found = audit(rolling(market), quick=True)
    assert found.clean, found.leaks


@pytest.mark.parametrize("name", LEAKS)
def test_planted_leak_is_found_and_named(market, name):
    plant, codes = LEAKS[name]
    found = audit(plant(market, SEED), quick=True)
    assert {f.code for f in found.leaks} & codes, found.findings
    assert all(len(f.evidence) > 40 for f in found.leaks)


def test_rows_drawn_at_random_are_learned_even_with_shuffled_labels(market):
    plant, _ = LEAKS["random_split"]
    assert [f.code for f in skill.shuffled(plant(market, SEED))] == ["LEARNS_SHUFFLED"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_more_clean_runs_are_not_accused_and_their_leaks_found(seed):
    clean = trials.clean(seed)
    planted = trials.planted(seed) if seed % 4 == 0 and clean else None
    if clean is None:
        pytest.skip("no spike where one is needed: nothing to train on")
    assert clean == (seed, "")
    if planted is not None:
        assert planted.missed == []
        assert len(planted.impossible) <= 1  # a leak that needs spikes where this market has none
