"""Validation of a topic: healthy streams pass, and each shortcoming has its verdict and exit code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from confluent_kafka import Producer

from feature_repo.errors import StoreError, UsageError
from infra.cli import main
from infra.settings import settings
from ingestion import cluster, validation
from ingestion.exchange import Synthetic
from ingestion.feed.inbox import Opened, Received
from ingestion.feed.watch import Watch
from ingestion.market import generate
from ingestion.topics import Envelope, chunks, headers, partition_of
from ingestion.validation import Limits, validate
from tests.conftest import free_port
from tests.ingest_kit import CHANNELS, PRODUCTS, exchange, ingesting

Until = Callable[..., bool]
PARTITIONS = 4


def fill(servers: str, topic: str, log: Sequence[Envelope]) -> None:
    """Write a log to a topic with a client of our own."""
    cluster.require_topics(servers, [topic], PARTITIONS)
    producer = Producer({"bootstrap.servers": servers})
    for e in log:
        to = [partition_of(e.product_id, PARTITIONS)] if e.product_id else range(PARTITIONS)
        values = chunks(e.raw)
        for i, value in enumerate(values):
            for partition in to:
                producer.produce(topic, value, e.product_id or None, partition, headers=headers(e, i, len(values)))
    assert producer.flush(20) == 0


def log_of(seconds: int = 20, *, ago_s: float = 0.0, spoil: float = 0.0) -> list[Envelope]:
    made = list(generate(seed=3, seconds=seconds))
    shift = time.time_ns() - int(ago_s * 1e9) - made[-1][0]
    received = [Received((recv_ns + shift) // 1000 * 1000, raw) for recv_ns, _, raw in made]
    if spoil:
        every = round(1 / spoil)
        received = [Received(m.recv_ns, b"{" if i % every == 0 else m.raw) for i, m in enumerate(received)]
    watch = Watch(Opened("00f1a2b3c4d5e6f7", received[0].recv_ns, "exchange", PRODUCTS, CHANNELS))
    return watch.begin() + watch.take(received)


def verdicts(servers: str, topic: str, **limits: object) -> dict[str, bool | None]:
    findings = validate(servers, topic, Limits(**limits))  # type: ignore[arg-type]
    return {check.name: check.holds for check in findings.checks}


def test_a_live_stream_is_healthy_while_it_runs(data_dir: Path, kafka_broker: str, until: Until) -> None:
    with (
        exchange(Synthetic(seed=7)) as server,
        ingesting(server.url, kafka_broker, "valid-live") as running,
    ):
        assert until(lambda: running.report.acknowledged > 5)
        findings = validate(kafka_broker, "valid-live", Limits(least=20, duration_s=6.0, staleness=True))
    assert findings.healthy, findings.checks
    judged = {check.name: check.holds for check in findings.checks}
    assert judged["BTC-USD: seconds since the last message"] is True
    assert findings.as_dict()["products"]["BTC-USD"]["per_s"]["heartbeat"] == pytest.approx(1, abs=0.4)


def test_what_the_topic_holds_is_read_without_waiting(data_dir: Path, kafka_embedded: str) -> None:
    log = log_of()
    fill(kafka_embedded, "valid-held", log)
    began = time.monotonic()
    findings = validate(kafka_embedded, "valid-held", Limits(least=100))
    assert time.monotonic() - began < 10
    assert findings.healthy, findings.checks
    assert findings.stretch.messages == sum(e.kind == "feed" for e in log)


def test_max_messages_ends_it_early(data_dir: Path, kafka_embedded: str) -> None:
    fill(kafka_embedded, "valid-most", log_of())
    findings = validate(kafka_embedded, "valid-most", Limits(least=10, max_messages=50))
    assert 50 <= findings.stretch.messages <= 2050


def test_too_few_messages_fall_short(data_dir: Path, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "WAIT_S", 0.5)
    fill(kafka_embedded, "valid-few", log_of())
    assert verdicts(kafka_embedded, "valid-few", least=100_000)["messages"] is False


def test_an_old_stream_is_stale_only_where_that_is_asked(data_dir: Path, kafka_embedded: str) -> None:
    fill(kafka_embedded, "valid-old", log_of(ago_s=60))
    stale = "ETH-USD: seconds since the last message"
    assert stale not in verdicts(kafka_embedded, "valid-old")
    assert verdicts(kafka_embedded, "valid-old", staleness=True)[stale] is False


def test_on_stream_time_an_old_stream_is_fresh(
    data_dir: Path, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(kafka_embedded, "valid-tape", log_of(ago_s=600))
    monkeypatch.setenv("VOLSPIKE_CLOCK", "stream")
    settings.cache_clear()
    assert verdicts(kafka_embedded, "valid-tape", staleness=True)["ETH-USD: seconds since the last message"] is True


@pytest.mark.parametrize(("share", "holds"), [(0.03, True), (0.1, False)])
def test_five_percent_of_messages_may_be_unreadable(
    data_dir: Path, kafka_embedded: str, share: float, holds: bool
) -> None:
    topic = f"valid-errors-{share}"
    fill(kafka_embedded, topic, log_of(spoil=share))
    assert verdicts(kafka_embedded, topic)["schema errors, share"] is holds


def test_messages_of_somebody_else_are_schema_errors(data_dir: Path, kafka_embedded: str) -> None:
    cluster.require_topics(kafka_embedded, ["valid-foreign"], PARTITIONS)
    producer = Producer({"bootstrap.servers": kafka_embedded})
    for i in range(200):
        producer.produce("valid-foreign", b"%d" % i)
    producer.flush(10)
    findings = validate(kafka_embedded, "valid-foreign", Limits(least=100))
    assert not findings.healthy
    assert findings.stretch.errors == {"no envelope": 200}


def test_dropped_numbers_fall_short(data_dir: Path, kafka_embedded: str) -> None:
    log = log_of()
    fill(kafka_embedded, "valid-holes", [e for e in log if not 300 <= e.n < 310])
    assert verdicts(kafka_embedded, "valid-holes")["numbers missing"] is False


def test_a_subscribed_product_without_a_message_falls_short(data_dir: Path, kafka_embedded: str) -> None:
    fill(kafka_embedded, "valid-mute", [e for e in log_of() if e.product_id != "SOL-USD"])
    judged = verdicts(kafka_embedded, "valid-mute")
    assert judged["SOL-USD: messages"] is False


def test_a_topic_that_isn_t_there_is_named(data_dir: Path, kafka_embedded: str) -> None:
    with pytest.raises(StoreError, match="topic valid-nowhere isn't at"):
        validate(kafka_embedded, "valid-nowhere", Limits())


def test_a_broker_that_isn_t_there_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LIMIT_S", 0.5)
    with pytest.raises(StoreError, match="doesn't answer"):
        validate(f"127.0.0.1:{free_port()}", "ticks.raw", Limits())


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(least=-1), "--min was -1, must be >= 0"),
        (Limits(max_messages=0), "--max-messages was 0, must be >= 1"),
        (Limits(duration_s=0), "--duration was 0 s, must be > 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Limits, says: str) -> None:
    with pytest.raises(UsageError, match=f"^{says}$"):
        validate("127.0.0.1:1", "ticks.raw", limits)


def test_the_command_prints_findings_and_its_code_is_the_verdict(
    data_dir: Path, kafka_embedded: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(kafka_embedded, "valid-command", log_of())
    monkeypatch.setenv("VOLSPIKE_KAFKA_SERVERS", kafka_embedded)
    settings.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--topic", "valid-command", "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["healthy"] is True
    assert set(said["products"]) == set(PRODUCTS)
    monkeypatch.setattr(validation, "WAIT_S", 0.2)
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--topic", "valid-command", "--min", "1000000"])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "FALLS SHORT" in text
    assert text.rstrip().endswith("the stream falls short")


def test_without_any_broker_the_command_says_what_to_start(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate"])
    assert ended.value.code == 1
    assert "no Kafka runs" in capsys.readouterr().err
