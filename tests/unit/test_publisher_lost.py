"""A producer that can't go on: a line that says so, at once, instead of the same answer for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from ingestion.featurize.committer import Committer, Work
from ingestion.featurize.publisher import Publisher
from ingestion.kafka import ClientLost
from ingestion.topics import FEATURES, QUOTES


class _Lost:
    """Answers each call as librdkafka's idempotent producer does after a fatal error."""

    def flush(self, timeout_s: float) -> int:
        raise KafkaException(KafkaError(KafkaError._FATAL, "out of order sequence", fatal=True))


class _Refused:
    """Answers with an error that the next call may not meet."""

    def flush(self, timeout_s: float) -> int:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _publisher(producer: Any) -> Publisher:
    return Publisher(producer, {FEATURES: 1, QUOTES: 1})


def test_a_lost_producer_ends_the_commit_without_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLSPIKE_DATA", str(tmp_path))
    committer = Committer(_publisher(_Lost()).flush, lambda partition, state: None)
    try:
        committer.begin(Work(offsets={0: (1, 0)}))
        with pytest.raises(ClientLost, match="out of order sequence"):
            committer.finish()
    finally:
        committer.close()
    assert committer.counts["commits"] == 0
    assert committer.counts["commit_failures"] == 0


def test_what_is_not_fatal_is_no_lost_client() -> None:
    with pytest.raises(KafkaException):
        _publisher(_Refused()).flush()
