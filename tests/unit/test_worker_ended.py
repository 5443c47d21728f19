"""A rebalance that ends while the featurizer closes its client: it takes nothing over that it could not commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition

from ingestion.featurize.checkpoint import Checkpoints
from ingestion.featurize.online_sink import OnlineSink
from ingestion.featurize.publisher import Publisher
from ingestion.featurize.worker import Worker
from ingestion.topics import FEATURES, QUOTES


class _Client:
    """A consumer that is given its partitions only when it is closed, and they are taken away at once."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def subscribe(
        self, topics: list[str], on_assign: Callable[..., None], on_revoke: Callable[..., None], on_lost: Any
    ) -> None:
        self._on_assign, self._on_revoke = on_assign, on_revoke

    def close(self) -> None:
        partitions = [TopicPartition("t", 0), TopicPartition("t", 1)]
        self._on_assign(self, partitions)
        self._on_revoke(self, partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.told.append("assigned")

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self.told.append("given back")


class _Producer:
    def flush(self, timeout_s: float) -> int:
        return 0


def test_partitions_that_come_at_the_end_are_given_back(data_dir: Path) -> None:
    client: Any = _Client()
    worker = Worker(
        lambda: client,
        "t",
        2,
        publisher=Publisher(_Producer(), {FEATURES: 1, QUOTES: 1}),
        online=OnlineSink(lambda parts: 0),
        checkpoints=Checkpoints(str(data_dir / "state"), "g", "t"),
        commit_every_s=60.0,
        checkpoint_every_s=60.0,
    )
    summary = worker.run(lambda: True)
    assert client.told == ["assigned", "given back"]
    assert summary.partitions == [] and not summary.counts
