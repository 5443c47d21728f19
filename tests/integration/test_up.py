"""The live system as a user starts it: everything comes up, nothing is lost, and nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import services
from infra.settings import ROOT
from ingestion import tables
from ingestion.kernel.warm import warm_up
from ingestion.replay import replay
from tests.conftest import free_port


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Have the kernel compiled before anything here is timed."""
    warm_up()


def run_up(data: Path, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    given = {**os.environ, "VOLSPIKE_REDIS_PORT": str(free_port()), **(environment or {}), "VOLSPIKE_DATA": str(data)}
    command = [sys.executable, "-m", "infra.cli", "up", "--no-service", "--json", *options]
    return subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str], seconds: float = 120) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def assert_nothing_lost(found: dict[str, Any], data: Path) -> None:
    ingest, featurize = found["ingest"], found["featurize"]
    assert ingest["messages"] > 100
    assert (ingest["gaps"], ingest["dropped"], ingest["reconnects"], found["restarts"]) == ({}, 0, 0, {})
    assert ingest["logged"] == ingest["acknowledged"]
    assert featurize["rows"] == featurize["counts"]["spike_features_added"] > 50
    assert tables.scan("spike_features").collect().height == featurize["rows"]
    assert services.running(data / "run") == []
    assert json.loads((data / "run" / "services.json").read_text()) == []


@pytest.mark.slow
def test_it_runs_for_a_while_and_its_tape_adds_nothing(data_dir: Path) -> None:
    found = outcome(run_up(data_dir, "--seconds", "4", "--speed", "10", "--save-raw"))
    assert_nothing_lost(found, data_dir)
    assert {line["product_id"]: line["book"] for line in found["products"]} == dict.fromkeys(
        ("BTC-USD", "ETH-USD", "SOL-USD"), "synced"
    )
    again = replay([data_dir / "raw"])
    assert again.rows == found["featurize"]["rows"]
    assert (again.rows_added, again.quotes_added) == (0, 0)


@pytest.mark.slow
def test_it_runs_a_tape_on_given_servers_and_ends_at_a_signal(
    data_dir: Path, shared_data: Path, kafka_real: str, redis_debian: str, until: Callable[..., bool]
) -> None:
    tape = shared_data / "exchange_BTC-USD_20180416_2min.ndjson.gz"
    servers = {"VOLSPIKE_KAFKA_SERVERS": kafka_real, "VOLSPIKE_REDIS_URL": redis_debian, "VOLSPIKE_GROUP": "up-tape"}
    options = ("--feed", "tape", "--tape", str(tape), "--speed", "4")
    process = run_up(data_dir, *options, environment=servers)
    try:
        assert until(lambda: sum(tables.last_n("spike_features").values()) > 2_000, 180, 0.5)
    finally:
        process.send_signal(signal.SIGINT)
    assert_nothing_lost(outcome(process), data_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_killed_it_leaves_nothing_running(data_dir: Path, until: Callable[..., bool]) -> None:
    process = run_up(data_dir)
    names = {"exchange", "kafka", "redis"}
    try:
        assert until(lambda: {s.name for s in services.running(data_dir / "run")} == names, 60, 0.1)
    finally:
        process.kill()
    there = services.running(data_dir / "run")
    process.communicate()
    assert until(lambda: not any(services.alive(s.pid) for s in there), 30, 0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the embedded services stop with their supervisor there")
@pytest.mark.parametrize("name", ["redis", pytest.param("kafka", marks=pytest.mark.slow)])  # one and the same way
def test_an_embedded_service_that_dies_ends_it_with_a_line(
    data_dir: Path, until: Callable[..., bool], name: str
) -> None:
    process = run_up(data_dir)
    try:
        assert until(lambda: len(services.running(data_dir / "run")) == 3, 60, 0.1)
        os.kill(services.running(data_dir / "run", name)[0].pid, signal.SIGKILL)
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 1
    told = re.search(f"the embedded {name.capitalize()} has ended by itself, see (.*);", " ".join(err.split()))
    assert told is not None and Path(told[1]).is_file()
    assert services.running(data_dir / "run") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--feed", "tape"], "--tape"),
        (["--feed", "moon"], "live, tape or synthetic"),
        (["--feed", "tape", "--tape", "nowhere.ndjson"], "nowhere.ndjson"),
    ],
)
def test_it_says_what_is_wrong_with_a_call(data_dir: Path, options: list[str], says: str) -> None:
    process = run_up(data_dir, *options)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert says in err
    assert "Traceback" not in err
