"""Each leak is planted in a clean run and must be found; clean runs must not be accused."""

from __future__ import annotations

import pytest

from tests.leaks.market import Source, source
from tests.leaks.pipeline import build
from tests.leaks.plants import LEAKS, rolling
from training.audit import audit

SEED = 2


@pytest.fixture(scope="module")
def market() -> Source:
    return source(SEED)


@pytest.mark.parametrize("kind", ["zscore", "lr", "xgb"])
def test_clean_run_is_not_accused(market, kind):
    found = audit(build(market, kind=kind))
    assert found.clean, found.leaks
    assert "shuffled" in found.checks


def test_clean_run_with_a_rolling_tau_is_not_accused(market):
    found = audit(rolling(market), quick=True)
    assert found.clean, found.leaks


@pytest.mark.parametrize("name", LEAKS)
def test_planted_leak_is_found_and_named(market, name):
    plant, codes = LEAKS[name]
    found = audit(plant(market, SEED), quick=True)
    assert {f.code for f in found.leaks} & codes, found.findings
    assert all(len(f.evidence) > 40 for f in found.leaks)
