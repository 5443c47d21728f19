"""``bentoml serve`` at the repository root, in a plain shell, with nothing but a data folder and free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from infra.settings import ROOT
from tests.contract.serving_kit import expected_probability, promote, some_values, write_artefact, write_row

BENTOML = str(Path(sys.executable).with_name("bentoml"))
DEADLINE_S = 90


def wait(what: str, condition: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        pause.wait(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def two_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def environment(data: Path, service: int, redis: int) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("VOLSPIKE_", "BENTOML_", "PYTHON"))}
    ports = {"VOLSPIKE_SERVICE_PORT": str(service), "VOLSPIKE_REDIS_PORT": str(redis)}
    return {**plain, **ports, "VOLSPIKE_DATA": str(data), "PYTHONHASHSEED": "2"}


def test_serves_the_champion_and_leaves_nothing_running(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    data = tmp_path / "data"
    artefact = write_artefact(data / "models" / "first", service="spike_model_v1")
    promote(data, artefact, "first")
    service, redis = two_ports()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BENTOML, "serve"], cwd=ROOT, env=environment(data, service, redis), stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{service}"
    try:
        wait("ready", lambda: process.poll() is not None or ready(url))
        assert process.poll() is None, log.read_text()
        values = some_values(3)
        write_row(f"127.0.0.1:{redis}", "volspike", "BTC-USD", time.time_ns(), values)
        body = httpx.post(f"{url}/predict", json={"product_id": "BTC-USD"}).json()
        assert body["status"] == "ok", body
        assert body["spike_probability"] == pytest.approx(expected_probability(artefact, values), abs=1e-12)
        assert "volspike_predictions_total" in httpx.get(f"{url}/metrics").text
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_S)
    wait("embedded Redis stopped", lambda: not listens(redis))
    wait("service stopped", lambda: not listens(service))


def test_busy_port_is_named_with_its_setting(tmp_path: Path) -> None:
    service, redis = two_ports()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", service))
        busy.listen()
        done = subprocess.run(
            [BENTOML, "serve"], cwd=ROOT, env=environment(tmp_path, service, redis), capture_output=True, text=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
    assert done.returncode == 1
    assert str(service) in done.stderr and "VOLSPIKE_SERVICE_PORT" in done.stderr and "Traceback" not in done.stderr
    assert not listens(redis)
