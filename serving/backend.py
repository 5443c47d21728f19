"""Backend of the routes: one object that owns the reader, the champion and the clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from feature_repo.errors import StoreError
from infra.settings import Settings
from serving.champion import Champion, Loaded
from serving.metrics import Metrics
from serving.online import OnlineReader, Read, Row
from serving.problems import Problem
from serving.schemas import Prediction
from serving.scorer import STATUS_FEATURES, Limits, answer, score

RETRY_MODEL_S: Final = 5
RETRY_STORE_S: Final = 2
RETRY_ROW_S: Final = 1
"""Seconds put into ``Retry-After``: for a champion to be promoted, a store to come back, the next grid row."""
_log = structlog.get_logger("volspike.serving")


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes need, made once per worker by :func:`make` on its event loop."""

    reader: OnlineReader
    champion: Champion
    metrics: Metrics
    limits: Limits
    stream_clock: bool
    products: frozenset[str]

    def loaded(self) -> Loaded:
        """Return the champion; Problem 503 that says why while there is none."""
        current = self.champion.current
        if current is None:
            why = self.champion.refused_in_public or "it is still being read; try again"
            raise Problem(503, f"no champion is loaded: {why}", retry_after_s=RETRY_MODEL_S)
        return current

    async def read(self, products: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Row | None], int]:
        """Read rows and the time that is now for them, ns UTC; Problem 503 while the store is away."""
        try:
            found: Read = await self.reader.read(products, names, newest=self.stream_clock)
        except StoreError as error:
            _log.warning("online store", error=str(error))
            raise Problem(503, "the online store is unreachable", retry_after_s=RETRY_STORE_S) from error
        now = found.newest_ns if self.stream_clock and found.newest_ns is not None else time.time_ns()
        return dict(found.rows), now

    async def predict(self, products: Sequence[str]) -> list[Prediction]:
        """Answer for products, in order, a status each; one that nobody knows has ``unknown_product``."""
        loaded = self.loaded()
        manifest = loaded.artefact.manifest
        rows, now = await self.read(products, names(manifest.features))
        by_product = {p.product_id: p for p in score(rows, loaded.artefact, loaded.model, now, self.limits)}
        for product, row in rows.items():
            if row is None and not self.known(product, loaded):
                by_product[product] = answer(product, None, "unknown_product", None, manifest, loaded.model, now)
        answers = [by_product[p] for p in products]
        for given in answers:
            self.record(given)
        return answers

    def known(self, product: str, loaded: Loaded | None) -> bool:
        """Say whether a product without a row is one of ours: in the settings or in the model's tau table."""
        return product in self.products or (loaded is not None and product in loaded.artefact.manifest.label.tau)

    def record(self, given: Prediction) -> None:
        """Count an answer and log it at debug level."""
        self.metrics.predictions.labels(given.status).inc()
        if given.spike_probability is not None:
            self.metrics.probability.observe(given.spike_probability)
            if given.feature_age_ms is not None:
                self.metrics.feature_age.observe(given.feature_age_ms / 1e3)
        _log.debug(
            "prediction",
            origin="http",
            prediction_id=given.prediction_id,
            product_id=given.product_id,
            spike_probability=given.spike_probability,
            status=given.status,
        )

    async def store_is_up(self) -> bool:
        """Ask the store."""
        try:
            await self.reader.ping()
        except StoreError as error:
            _log.warning("online store", error=str(error))
            return False
        return True


def names(features: Sequence[str]) -> tuple[str, ...]:
    """Features to read: the model's and those of the status, each once."""
    return tuple(dict.fromkeys((*features, *STATUS_FEATURES)))


def make(settings: Settings, champion: Champion, project: str) -> Backend:
    """Build the backend of one worker from its settings."""
    return Backend(
        reader=OnlineReader(settings.redis, project),
        champion=champion,
        metrics=Metrics(),
        limits=Limits(settings.max_feature_age_s, settings.min_coverage_s),
        stream_clock=settings.clock == "stream",
        products=frozenset(settings.products),
    )
