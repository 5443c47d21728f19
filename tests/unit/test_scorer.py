"""The scorer's rules, at their edges, with a model whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.online import Row
from serving.schemas import Model, Status
from serving.scorer import Limits, iso, matrix, row_status, score
from tests.contract.serving_kit import FEATURES, TAU, write_artefact
from training.artefact import Manifest

NOW = 1_700_000_000_000_000_000
LIMITS = Limits(max_age_s=10.0, min_coverage_s=900.0)


def row(age_ns: int = 0, book_state: int | None = 1, coverage_s: float | None = 900.0, product: str = "BTC-USD") -> Row:
    values = {name: float(i) for i, name in enumerate(FEATURES)}
    return Row(product, NOW - age_ns, {**values, "book_state": book_state, "coverage_s": coverage_s})


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, "missing"),
        (row(), "ok"),
        (row(age_ns=10_000_000_000), "ok"),
        (row(age_ns=10_000_001_000), "stale"),
        (row(age_ns=-2_000_000_000), "ok"),
        (row(age_ns=-2_000_001_000), "stale"),
        (row(book_state=0), "ok"),
        (row(book_state=None), "ok"),
        (row(book_state=2), "unsynced"),
        (row(book_state=3), "unsynced"),
        (row(coverage_s=899.999), "insufficient_coverage"),
        (row(coverage_s=None), "insufficient_coverage"),
        (row(age_ns=11_000_000_000, book_state=3, coverage_s=0), "stale"),
        (row(book_state=3, coverage_s=0), "unsynced"),
    ],
)
def test_first_reason_that_holds_is_the_status(given: Row | None, status: Status) -> None:
    assert row_status(given, NOW, LIMITS) == status


def test_matrix_follows_the_names_and_not_the_order_of_the_values() -> None:
    x = matrix([{"b": 2, "a": 1.5, "c": None}, {"c": 3.0, "a": None, "b": 0}], ["a", "b", "c"])
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, [[1.5, 2, math.nan], [math.nan, 0, 3]])


class Sum:
    """A model whose probability says which values it saw, in which order."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.rows = 0

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self.rows += len(x)
        return np.asarray(x @ 10.0 ** -np.arange(1, x.shape[1] + 1))


@pytest.fixture
def model(tmp_path: Path) -> Sum:
    return Sum(write_artefact(tmp_path / "model").manifest)


def test_only_rows_that_are_ok_reach_the_model(model: Sum) -> None:
    rows = {"BTC-USD": row(), "ETH-USD": None, "NEW-USD": row(product="NEW-USD"), "OLD-USD": row(10**12)}
    answers = score(rows, model, Model("volspike", "3"), NOW, LIMITS)
    assert [(a.product_id, a.status) for a in answers] == [
        ("BTC-USD", "ok"), ("ETH-USD", "missing"), ("NEW-USD", "no_threshold"), ("OLD-USD", "stale"),
    ]  # fmt: skip
    assert model.rows == 1
    assert answers[0].spike_probability == pytest.approx(0.01234)  # 0 1 2 3 4 in the order of the manifest
    assert [a.spike_probability for a in answers[1:]] == [None] * 3
    assert len({a.prediction_id for a in answers}) == 4


def test_answer_carries_the_models_threshold_and_the_products_tau(model: Sum) -> None:
    (answer,) = score({"BTC-USD": row(age_ns=1_500_000)}, model, Model("volspike", "3"), NOW, LIMITS)
    assert (answer.threshold, answer.tau, answer.spike) == (0.5, TAU["BTC-USD"], False)
    assert answer.feature_age_ms == 1.5
    assert answer.event_time == "2023-11-14T22:13:19.998500Z"


def test_time_is_written_to_the_microsecond() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000000Z"
    assert iso(4_102_444_799_999_999_000) == "2099-12-31T23:59:59.999999Z"
