"""Questions to a broker that has just started, or is gone for a while."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from feature_repo.errors import StoreError
from ingestion import kafka


def test_a_broker_that_still_finds_its_coordinator_is_asked_again() -> None:
    answers = [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, None]
    left: list[float] = []

    def ask(left_s: float) -> int:
        left.append(left_s)
        code = answers.pop(0)
        if code is not None:
            raise KafkaException(KafkaError(code))
        return 7

    assert kafka.patiently(ask, 5.0) == 7
    assert left == sorted(set(left), reverse=True), "less is left each time"
    assert len(left) == 3 and left[0] <= 5.0


def test_patience_has_an_end() -> None:
    def ask(left_s: float) -> int:
        raise KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))

    with pytest.raises(StoreError, match="Kafka doesn't answer"):
        kafka.patiently(ask, 0.15)


def test_a_refusal_is_not_asked_again() -> None:
    asked = []

    def ask(left_s: float) -> int:
        asked.append(left_s)
        raise KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))

    with pytest.raises(StoreError):
        kafka.patiently(ask, 60.0)
    assert len(asked) == 1


def test_a_broker_that_is_gone_is_waited_for_until_told_to_stop() -> None:
    answers = [KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT]
    asked = []

    def ask(left_s: float) -> int:
        asked.append(left_s)
        raise KafkaException(KafkaError(answers.pop(0)))

    with pytest.raises(StoreError, match="Kafka doesn't answer"):
        kafka.patiently(ask, 60.0, stop=lambda: not answers)
    assert len(asked) == 3
    assert max(asked) <= kafka.ANSWER_S
