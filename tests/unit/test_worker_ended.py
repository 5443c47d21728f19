"""How a featurizer ends: with nothing taken over that it could not commit, and by the failure that ended it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from feature_repo.errors import StoreError
from ingestion.featurize import publisher
from ingestion.featurize import worker as worker_module
from ingestion.featurize.checkpoint import Checkpoints
from ingestion.featurize.committer import Work
from ingestion.featurize.online_sink import OnlineSink
from ingestion.featurize.partition import Partition
from ingestion.featurize.publisher import ProducerLost, Publisher
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


class _Gone(_Client):
    """A consumer whose broker dies while it hands a partition out."""

    def poll(self, timeout_s: float) -> None:
        self._on_assign(self, [TopicPartition("t", 0)])

    def get_watermark_offsets(self, *_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def close(self) -> None:
        self.told.append("closed")


class _Dead(_Client):
    """A consumer in whose rebalance the topics' producer is found dead."""

    def poll(self, timeout_s: float) -> None:
        raise ProducerLost("out of order sequence")

    def close(self) -> None:
        self.told.append("closed")


class _Deaf(_Producer):
    """A producer whose broker is gone: nothing is ever acknowledged."""

    def flush(self, timeout_s: float) -> int:
        threading.Event().wait(timeout_s)
        return 1


def worker_of(client: Any, data_dir: Path, producer: Any = None) -> Worker:
    return Worker(
        lambda: client,
        "t",
        2,
        publisher=Publisher(producer or _Producer(), {FEATURES: 1, QUOTES: 1}),
        online=OnlineSink(lambda parts: 0),
        checkpoints=Checkpoints(str(data_dir / "state"), "g", "t"),
        commit_every_s=60.0,
        checkpoint_every_s=60.0,
    )


def test_partitions_that_come_at_the_end_are_given_back(data_dir: Path) -> None:
    client = _Client()
    summary = worker_of(client, data_dir).run(lambda: True)
    assert client.told == ["assigned", "given back"]
    assert summary.partitions == [] and not summary.counts


def test_a_stop_while_the_broker_is_gone_is_no_failure(data_dir: Path) -> None:
    client, asked = _Gone(), iter([False])
    summary = worker_of(client, data_dir).run(lambda: next(asked, True))
    assert client.told == ["assigned", "closed"]
    assert summary.partitions == []


def test_a_dead_producer_is_not_taken_for_a_fenced_consumer(data_dir: Path) -> None:
    client = _Dead()
    worker = worker_of(client, data_dir)
    with pytest.raises(ProducerLost):
        worker.run(lambda: False)
    assert client.told == ["closed"] and not worker.summary.counts["fenced"]


def test_a_commit_that_waits_for_a_broker_does_not_outlast_the_end(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "END_S", 0.1)
    monkeypatch.setattr(publisher, "LOOK_S", 0.05)
    client = _Client()
    worker = worker_of(client, data_dir, _Deaf())
    worker._committer.begin(Work(offsets={0: (1, 0)}))
    began = time.monotonic()
    with pytest.raises(StoreError, match="1 messages not acknowledged"):
        worker.run(lambda: True)
    assert time.monotonic() - began < 5


def test_partitions_that_are_lost_with_the_broker_do_not_hold_the_end_up(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for the commit under way is in a callback of the client then, and no look at the stop comes by."""
    monkeypatch.setattr(worker_module, "END_S", 0.1)
    monkeypatch.setattr(publisher, "LOOK_S", 0.05)
    worker = worker_of(_Client(), data_dir, _Deaf())
    worker._stop = lambda: True
    worker._mine[0] = Partition(0, 2, None, 0)
    worker._committer.begin(Work(offsets={0: (1, 0)}))
    began = time.monotonic()
    with pytest.raises(StoreError, match="1 messages not acknowledged"):
        worker._lost(worker._consumer, [TopicPartition("t", 0)])
    worker._committer.close()
    assert time.monotonic() - began < 5
