"""Prometheus metrics of the service, right with one worker and with many.

BentoML gives its workers a ``PROMETHEUS_MULTIPROC_DIR``: each then counts in files of its own there, and whichever
worker answers ``/metrics`` adds them up. Without it (tests, one process) the registry itself is read. Only counters and
histograms are used, since their sum over workers is what they mean.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_PROBABILITY = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


class Metrics:
    """Counters and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "volspike_http_requests", "Requests by route and status code.", ("route", "code"), registry=self._registry
        )
        self.seconds = Histogram(
            "volspike_http_request_seconds", "Time to answer.", ("route",), registry=self._registry, buckets=_SECONDS
        )
        self.predictions = Counter(
            "volspike_predictions", "Predictions by status, origin http.", ("status",), registry=self._registry
        )
        self.probability = Histogram(
            "volspike_spike_probability", "Probabilities given.", registry=self._registry, buckets=_PROBABILITY
        )
        self.feature_age = Histogram(
            "volspike_feature_age_seconds",
            "Age of the rows scored.",
            registry=self._registry,
            buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
        )

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
