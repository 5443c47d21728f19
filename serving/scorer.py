"""Scorer: from a row to an answer. Pure, so the HTTP service and the scheduled scorer share it to the last digit.

A row gets a probability iff its status is ``ok``. The first of these that holds is the status:

====================== =====================================================================================
missing                the store has no row of the product
stale                  the feed is silent: the row's event time lies further back than ``max_feature_age_s``
                       (a quiet market goes on making grid rows), or ahead of the clock by more than 2 s
unsynced               the row was made from a book that is RESYNCING or STALE
insufficient_coverage  fewer than ``min_coverage_s`` seconds without a gap lie behind the row, or it isn't known
no_threshold           the model was not trained on the product: it has no tau to say what a spike is
====================== =====================================================================================
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import FUTURE_NS
from feature_repo.online_format import Value
from serving.online import Row
from serving.schemas import ItemStatus, Model, Prediction, Status
from training.artefact import Manifest

BOOK_STATE: Final = "book_state"
COVERAGE: Final = "coverage_s"
STATUS_FEATURES: Final = (BOOK_STATE, COVERAGE)
"""Features that the status needs, whether the model reads them or not."""
_UNSYNCED: Final = (2, 3)

WHY: Final[dict[ItemStatus, str]] = {
    "missing": "no row of this product is in the online store; run `volspike materialize`, or wait for the feed",
    "stale": "the newest row is too old (or ahead of the clock): the feed is silent; "
    "see VOLSPIKE_MAX_FEATURE_AGE_S, and VOLSPIKE_CLOCK=stream for a tape",
    "unsynced": "the order book is being resynchronised; wait for the exchange's snapshot",
    "insufficient_coverage": "too few seconds without a gap lie behind the row; see VOLSPIKE_MIN_COVERAGE_S",
    "no_threshold": "the champion was not trained on this product and has no tau for it; train with it",
    "unknown_product": "this product was never seen: not in the store, the settings (VOLSPIKE_PAIR) or the model",
}
"""What each status means and what to do next, in words for the client."""


class Predictor(Protocol):
    """What the scorer needs of :class:`training.artefact.Artefact`."""

    @property
    def manifest(self) -> Manifest: ...  # noqa: D102

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Limits:
    """How old a row may be and how much must lie behind it, in seconds."""

    max_age_s: float
    min_coverage_s: float


def row_status(row: Row | None, now_ns: int, limits: Limits) -> Status:
    """Say whether a row may be scored; the module's docstring has the rules, ``no_threshold`` aside."""
    if row is None:
        return "missing"
    age_ns = now_ns - row.time_ns
    if age_ns > limits.max_age_s * 1e9 or age_ns < -FUTURE_NS:
        return "stale"
    if row.values[BOOK_STATE] in _UNSYNCED:
        return "unsynced"
    coverage = row.values[COVERAGE]
    if coverage is None or coverage < limits.min_coverage_s:
        return "insufficient_coverage"
    return "ok"


def matrix(rows: Sequence[Mapping[str, Value]], names: Sequence[str]) -> NDArray[np.float64]:
    """Arrange values by name: float64[n, f] in the order of ``names``, NaN where null."""
    x = np.empty((len(rows), len(names)))
    for i, values in enumerate(rows):
        x[i] = [np.nan if (value := values[name]) is None else value for name in names]
    return x


def score(
    rows: Mapping[str, Row | None], predictor: Predictor, model: Model, now_ns: int, limits: Limits
) -> list[Prediction]:
    """Answer for each product, in order.

    Parameters
    ----------
    rows
        Product to its newest row, or None; values hold the model's features and :data:`STATUS_FEATURES`.
    predictor
        The verified artefact.
    model
        Its name, version and alias.
    now_ns
        Now, ns UTC, on the configured clock.
    limits
        Of age and coverage.
    """
    manifest = predictor.manifest
    tau = manifest.label.tau
    statuses: dict[str, Status] = {}
    for product, row in rows.items():
        status = row_status(row, now_ns, limits)
        statuses[product] = "no_threshold" if status == "ok" and product not in tau else status
    good = [row for product, row in rows.items() if row is not None and statuses[product] == "ok"]
    x = matrix([row.values for row in good], manifest.features)
    found = dict(zip((r.product_id for r in good), predictor.predict_proba(x), strict=True)) if good else {}
    return [
        answer(product, row, statuses[product], found.get(product), manifest, model, now_ns)
        for product, row in rows.items()
    ]


def answer(
    product: str,
    row: Row | None,
    status: ItemStatus,
    probability: float | None,
    manifest: Manifest,
    model: Model,
    now_ns: int,
) -> Prediction:
    """Put one answer together; a row that isn't there leaves its fields null."""
    book_state = None if row is None else row.values[BOOK_STATE]
    return Prediction(
        prediction_id=uuid.uuid4().hex,
        product_id=product,
        spike_probability=None if probability is None else float(probability),
        spike=None if probability is None else bool(probability >= manifest.threshold),
        threshold=manifest.threshold,
        tau=manifest.label.tau.get(product),
        horizon_s=manifest.label.horizon_s,
        event_time=None if row is None else iso(row.time_ns),
        feature_age_ms=None if row is None else (now_ns - row.time_ns) / 1e6,
        book_state=None if book_state is None else int(book_state),
        model=model,
        status=status,
    )


def iso(time_ns: int) -> str:
    """Write a time as RFC 3339 in UTC, microseconds.

    Examples
    --------
    >>> iso(1_700_000_000_123_456_000)
    '2023-11-14T22:13:20.123456Z'
    """
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
