"""How long until things answer: ``volspike --help``, ``bentoml serve`` to ready, and ``/predict`` with its fetch.

Caveats: files are in the page cache (each is started once before it is measured). One client on loopback, keep-alive,
one worker: a socket that sends a request in one piece and reads the answer by its length, since ``http.client`` sends
head and body apart, which wakes the service twice, and takes 0.25 ms of Python itself. ``/healthz`` through the same
client shows what is neither fetch nor model. The least of the repeats is given for the two starts, since other load can
only add; p50 and p99 are over all requests, and the least p50 of a round stands beside them. The model is an XGBoost
booster of 100 trees over the default service. It builds its own data in a temporary folder.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
REPEATS = 3
ROUNDS = 5
REQUESTS = 1_000
"""Requests of a round."""
WARM_UP = 200
PRODUCT = "BTC-USD"


def run() -> list[dict[str, Any]]:
    """Measure, and return one object per figure: metric, value, unit, target, op."""
    kit = runpy.run_path(str(ROOT / "tests" / "contract" / "serving_kit.py"))
    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
        data = Path(folder)
        artefact = write_booster(kit, data / "models" / "bench")
        kit["promote"](data, artefact, "bench")
        starts = []
        for _ in range(REPEATS):
            with service(data) as (port, redis, seconds):
                starts.append(seconds)
                if len(starts) == REPEATS:
                    kit["write_row"](f"127.0.0.1:{redis}", "volspike", PRODUCT, time.time_ns(), kit["some_values"]())
                    rounds_ms = [seconds_of(predict_request(), port) * 1e3 for _ in range(ROUNDS)]
                    healthz_ms = seconds_of(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", port) * 1e3
    p50, p99 = np.percentile(np.concatenate(rounds_ms), [50, 99])
    return [
        figure("volspike --help", help_seconds(), "s", 0.5),
        figure("service ready", min(starts), "s", 10.0),
        figure("/predict p50", float(p50), "ms", 2.0),
        figure("/predict p99", float(p99), "ms", 20.0),
        {
            "metric": "/predict p50 of the best round",
            "value": min(float(np.median(one)) for one in rounds_ms),
            "unit": "ms",
        },
        {"metric": "/healthz p50", "value": float(np.median(healthz_ms)), "unit": "ms"},
    ]


def figure(metric: str, value: float, unit: str, target: float) -> dict[str, Any]:
    """One result that holds if it is at most ``target``."""
    return {"metric": metric, "value": value, "unit": unit, "target": target, "op": "<="}


def write_booster(kit: dict[str, Any], folder: Path) -> Any:
    """Save an XGBoost artefact that saw noise."""
    import msgspec
    import xgboost

    from feature_repo.contract import DEFAULT_SERVICE
    from training import artefact as art

    like = kit["write_artefact"](folder.with_name("like"), service=DEFAULT_SERVICE).manifest
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, len(like.features)))
    matrix = xgboost.DMatrix(x, label=(x[:, 0] + rng.normal(size=len(x)) > 1).astype(float))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, matrix, 100)
    manifest = msgspec.structs.replace(like, name="xgb", kind="xgb", imputation=art.Imputation("native", {}))
    art.save(folder, manifest, bytes(booster.save_raw("ubj")))
    return art.load(folder)


@contextmanager
def service(data: Path) -> Iterator[tuple[int, int, float]]:
    """Run ``bentoml serve``; yields its port, Redis' port, and the seconds from its start to ready."""
    port, redis = free_ports()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("VOLSPIKE_", "BENTOML_"))},
        "VOLSPIKE_DATA": str(data),
        "VOLSPIKE_SERVICE_PORT": str(port),
        "VOLSPIKE_REDIS_PORT": str(redis),
        # The row is written once, and the measurement outlasts ten seconds on a slow machine.
        "VOLSPIKE_MAX_FEATURE_AGE_S": "3600",
    }
    with (data / "serve.log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen([BIN / "bentoml", "serve"], cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while not is_ready(port):
                if process.poll() is not None or time.perf_counter() - began > 120:
                    raise RuntimeError(f"the service did not start: {(data / 'serve.log').read_text()[-2000:]}")
                time.sleep(0.02)
            yield port, redis, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def predict_request() -> bytes:
    """``POST /predict`` as it goes over the wire."""
    body = json.dumps({"product_id": PRODUCT}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def seconds_of(request: bytes, port: int) -> np.ndarray:
    """Seconds of each of :data:`REQUESTS` equal requests over one connection: first byte sent to last byte read."""
    seconds = np.empty(WARM_UP + REQUESTS)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(seconds)):
            began = time.perf_counter()
            connection.sendall(request)
            answer = read_answer(connection)
            seconds[i] = time.perf_counter() - began
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"{request!r} was answered {answer[:500]!r}")
    return seconds[WARM_UP:]


def read_answer(connection: socket.socket) -> bytes:
    """One answer whole: its head, and as much as that announces."""
    answer = b""
    while True:
        part = connection.recv(65_536)
        if not part:
            raise RuntimeError(f"the service closed the connection after {answer[:500]!r}")
        answer += part
        head, end, body = answer.partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if length is None:
                raise RuntimeError(f"an answer without its length: {head!r}")
            if len(body) >= int(length[1]):
                return answer


def help_seconds() -> float:
    """Least seconds of ``volspike --help``."""
    found = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        subprocess.run([BIN / "volspike", "--help"], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def is_ready(port: int) -> bool:
    """Ask ``/readyz``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
