"""The HTTP contract: every route, every status, bad input, and what happens when Redis or the model is not there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from infra.embedded import EmbeddedRedis
from infra.settings import settings
from serving.backend import Backend, make
from serving.champion import Champion
from serving.routes import create_app
from tests.contract.serving_kit import (
    FEATURES,
    TAU,
    Values,
    age,
    expected_probability,
    promote,
    some_values,
    write_artefact,
    write_row,
)
from training.artefact import Artefact

ANSWER = (
    "prediction_id product_id spike_probability spike threshold tau horizon_s event_time feature_age_ms book_state "
    "model status"
).split()


@dataclass
class Kit:
    """A service in this process, its champion, and rows of its own in the session's Redis."""

    client: httpx.Client
    backend: Backend
    artefact: Artefact
    data: Path
    address: str
    project: str

    def put(self, product: str, age_s: float = 0.0, **changed: float | None) -> Values:
        values = {**some_values(), **changed}
        write_row(self.address, self.project, product, time.time_ns() - int(age_s * 1e9), values)
        return values

    def post(self, path: str, body: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content)


@contextmanager
def served(app: ASGIApp) -> Iterator[httpx.Client]:
    """Serve an application over real HTTP on a port of the system's choice, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    pause, deadline = threading.Event(), time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the application did not start"
        pause.wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def start(data_dir: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Kit]]:
    stack = ExitStack()

    # other tests of this process may have had BentoML or MLflow set it; this application counts in one process
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

    def build(address: str = redis_server, clock: str = "wall") -> Kit:
        monkeypatch.setenv("VOLSPIKE_REDIS_URL", address)
        monkeypatch.setenv("VOLSPIKE_CLOCK", clock)
        settings.cache_clear()
        artefact = write_artefact(data_dir / "models" / "first")
        promote(data_dir, artefact, "first")
        champion = Champion(settings().models, settings().model_name)
        champion.poll()
        project = uuid.uuid4().hex
        made: list[Backend] = []

        def once() -> Backend:
            made.append(make(settings(), champion, project))
            return made[0]

        client = stack.enter_context(served(create_app(once)))
        return Kit(client, made[0], artefact, data_dir, address, project)

    with stack:
        yield build


@pytest.fixture
def kit(start: Callable[..., Kit]) -> Kit:
    return start()


def assert_problem(response: Any, code: int) -> dict[str, Any]:
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["title"] and body["detail"]
    return body


def test_predict_scores_the_row_as_offline(kit: Kit) -> None:
    values = kit.put("BTC-USD", age_s=1)
    response = kit.post("/predict", {"product_id": "BTC-USD"})
    body = response.json()
    assert response.status_code == 200 and list(body) == ANSWER
    assert body["spike_probability"] == pytest.approx(expected_probability(kit.artefact, values), abs=1e-12)
    assert body["spike"] == (body["spike_probability"] >= 0.5)
    assert (body["status"], body["tau"], body["horizon_s"], body["book_state"]) == ("ok", TAU["BTC-USD"], 60, 1)
    assert body["model"] == {"name": "volspike", "version": "1", "alias": "champion"}
    assert 1000 <= body["feature_age_ms"] < 9000 and body["event_time"].endswith("Z")


@pytest.mark.parametrize(
    ("status", "row"),
    [
        ("stale", {"age_s": 11.0}),
        ("stale", {"age_s": -60.0}),
        ("unsynced", {"book_state": 2}),
        ("unsynced", {"book_state": 3}),
        ("insufficient_coverage", {"coverage_s": 899.0}),
        ("insufficient_coverage", {"coverage_s": None}),
        ("missing", None),
    ],
)
def test_row_that_must_not_be_scored_is_a_503_that_says_why(
    kit: Kit, status: str, row: dict[str, float] | None
) -> None:
    if row is not None:
        kit.put("BTC-USD", **row)
    response = kit.post("/predict", {"product_id": "BTC-USD"})
    body = assert_problem(response, 503)
    assert int(response.headers["retry-after"]) >= 1
    assert body["status"] == status and set(ANSWER) <= set(body)
    assert body["spike_probability"] is None and body["spike"] is None


def test_product_the_model_was_not_trained_on_has_no_threshold(kit: Kit) -> None:
    kit.put("NEW-USD")
    assert assert_problem(kit.post("/predict", {"product_id": "NEW-USD"}), 503)["status"] == "no_threshold"


@pytest.mark.parametrize("path", ["/predict", "/predict_features"])
def test_unknown_product_is_a_404(kit: Kit, path: str) -> None:
    body = {"product_id": "NO-SUCH", **({"features": {FEATURES[0]: 1.0}} if "features" in path else {})}
    assert_problem(kit.post(path, body), 404)
    assert_problem(kit.client.get("/features/NO-SUCH"), 404)


def test_batch_answers_200_with_a_status_per_item_in_order(kit: Kit) -> None:
    values = kit.put("BTC-USD")
    kit.put("NEW-USD", age_s=100)
    asked = ["NO-SUCH", "BTC-USD", "ETH-USD", "NEW-USD", "BTC-USD"]
    response = kit.post("/predict_batch", {"product_ids": asked})
    items = response.json()["predictions"]
    assert response.status_code == 200
    assert [i["product_id"] for i in items] == asked
    assert [i["status"] for i in items] == ["unknown_product", "ok", "missing", "stale", "ok"]
    assert items[1]["spike_probability"] == pytest.approx(expected_probability(kit.artefact, values), abs=1e-12)


def test_features_returns_the_row_whole(kit: Kit) -> None:
    values = kit.put("BTC-USD", age_s=20)
    body = kit.client.get("/features/BTC-USD").json()
    assert body["features"] == values and body["status"] == "stale"
    assert assert_problem(kit.client.get("/features/ETH-USD"), 503)["status"] == "missing"


def test_predict_features_scores_what_it_is_given(kit: Kit) -> None:
    given = {FEATURES[0]: 0.25, FEATURES[1]: None, FEATURES[2]: 3, "hour_of_day": 5}
    body = kit.post("/predict_features", {"product_id": "ETH-USD", "features": given}).json()
    full = {name: given.get(name) for name in FEATURES}
    assert body["spike_probability"] == pytest.approx(expected_probability(kit.artefact, full), abs=1e-12)
    assert body["missing"] == [n for n in FEATURES if full[n] is None] and body["ignored"] == ["hour_of_day"]
    assert body["status"] == "ok" and body["tau"] == TAU["ETH-USD"]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", '"1.0"', "true", "[1]", "1" + "0" * 400])
def test_value_that_is_no_finite_number_is_a_422_that_names_it(kit: Kit, text: str) -> None:
    raw = f'{{"product_id": "BTC-USD", "features": {{"{FEATURES[0]}": 1.0, "{FEATURES[3]}": {text}}}}}'
    body = assert_problem(kit.post("/predict_features", raw.encode()), 422)
    assert FEATURES[3] in body["detail"] and FEATURES[0] not in body["detail"]


@pytest.mark.parametrize("given", [{}, {FEATURES[0]: None}, {"w60_no_such": 1.0, FEATURES[0]: 1.0}])
def test_features_without_a_value_or_with_an_unknown_name_are_a_422(kit: Kit, given: dict[str, Any]) -> None:
    body = assert_problem(kit.post("/predict_features", {"product_id": "BTC-USD", "features": given}), 422)
    assert ("w60_no_such" in body["detail"]) == ("w60_no_such" in given)


@pytest.mark.parametrize("path", ["/predict", "/predict_batch", "/predict_features"])
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 400),
        (b'{"produ', 400),
        (b"\xff\xfe", 400),
        (b"[" * 5000, 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"product_id": 1, "product_ids": 1, "features": 1}', 422),
        (b'{"product_id": "", "product_ids": [""], "features": {}}', 422),
        (b'{"product_id": "a b", "product_ids": ["a\\nb"]}', 422),
        (b'{"surprise": 1}', 422),
        (b'{"product_id": "' + b"x" * 1_000_001 + b'"}', 413),
    ],
)
def test_bad_body_is_a_problem(kit: Kit, path: str, raw: bytes, code: int) -> None:
    assert_problem(kit.post(path, raw), code)


@pytest.mark.parametrize(
    ("path", "raw", "key"),
    [
        ("/predict", '{"product_id":"BTC-USD","product_id":"ETH-USD"}', "product_id"),
        ("/predict", '{"product_id":"BTC-USD","product_id":"BTC-USD"}', "product_id"),
        ("/predict", r'{"product_id":"BTC-USD","product\u005fid":"ETH-USD"}', "product_id"),
        ("/predict_batch", '{"product_ids":["BTC-USD"],"product_ids":["ETH-USD"]}', "product_ids"),
        ("/predict_features", '{"product_id":"BTC-USD","features":{"NAME":1},"features":{"NAME":2}}', "features"),
        ("/predict_features", '{"product_id":"BTC-USD","features":{"NAME":1,"NAME":null}}', FEATURES[0]),
    ],
)
def test_key_named_twice_is_a_422_that_names_it(kit: Kit, path: str, raw: str, key: str) -> None:
    kit.put("BTC-USD")
    kit.put("ETH-USD")
    body = assert_problem(kit.post(path, raw.replace("NAME", FEATURES[0]).encode()), 422)
    assert key in body["detail"] and body["repeated_keys"] == [key]


def test_same_text_as_key_and_as_value_is_no_repeat(kit: Kit) -> None:
    kit.put("product_id")
    assert kit.post("/predict", {"product_id": "product_id"}).status_code == 503  # no_threshold: read, and understood
    answer = kit.post("/predict_batch", {"product_ids": ["BTC-USD", "BTC-USD", "product_ids"]})
    assert answer.status_code == 200 and len(answer.json()["predictions"]) == 3


def test_body_nested_without_end_is_a_400(kit: Kit) -> None:
    raw = b'{"product_id": "BTC-USD", "features": {"a": ' + b"[" * 100_000
    assert_problem(kit.post("/predict_features", raw), 400)


def test_long_body_without_announced_length_is_cut_off(kit: Kit) -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            sent.append(1)
            yield b"x" * 100_000

    assert_problem(kit.client.post("/predict", content=chunks()), 413)


@pytest.mark.parametrize("wanted", [[], ["BTC-USD"] * 1001])
def test_batch_of_none_or_too_many_is_a_422(kit: Kit, wanted: list[str]) -> None:
    assert_problem(kit.post("/predict_batch", {"product_ids": wanted}), 422)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/predict", "POST"), ("PUT", "/predict_batch", "POST"), ("POST", "/version", "GET"),
     ("DELETE", "/features/BTC-USD", "GET")],
)  # fmt: skip
def test_wrong_method_is_a_405_that_says_what_is_allowed(kit: Kit, method: str, path: str, allowed: str) -> None:
    response = kit.client.request(method, path)
    assert_problem(response, 405)
    assert allowed in response.headers["allow"]


def test_unknown_route_is_a_404(kit: Kit) -> None:
    assert_problem(kit.client.get("/admin"), 404)


def test_unforeseen_error_is_masked(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is in /etc/secret")

    monkeypatch.setattr(kit.backend.reader, "read", broken)
    response = kit.post("/predict", {"product_id": "BTC-USD"})
    body = assert_problem(response, 500)
    assert len(body["error_id"]) == 32
    assert "secret" not in response.text and "RuntimeError" not in response.text


def test_version_names_code_contract_and_model(kit: Kit) -> None:
    body = kit.client.get("/version").json()
    assert body["model"]["sha256"] == kit.artefact.digest
    assert body["model"]["service"] == {"name": "spike_core_v1", "hash": kit.artefact.manifest.service.hash}
    assert len(body["contract_hash"]) == 16 and body["version"]


def test_metrics_count_answers_and_statuses(kit: Kit) -> None:
    kit.put("BTC-USD")
    kit.post("/predict_batch", {"product_ids": ["BTC-USD", "ETH-USD"]})
    kit.post("/predict", {"product_id": "NO-SUCH"})
    text = kit.client.get("/metrics").text
    assert 'volspike_predictions_total{status="ok"} 1.0' in text
    assert 'volspike_predictions_total{status="missing"} 1.0' in text
    assert 'volspike_http_requests_total{code="404",route="/predict"} 1.0' in text
    assert "volspike_spike_probability_count 1.0" in text


def test_stream_clock_measures_age_against_the_newest_row_of_all(start: Callable[..., Kit]) -> None:
    kit = start(clock="stream")
    kit.put("BTC-USD", age_s=3600)
    kit.put("ETH-USD", age_s=3605)
    kit.put("OLD-USD", age_s=3611)
    items = kit.post("/predict_batch", {"product_ids": ["ETH-USD", "OLD-USD"]}).json()["predictions"]
    assert [i["status"] for i in items] == ["ok", "stale"]
    assert items[0]["feature_age_ms"] == pytest.approx(5000, abs=500)


def test_redis_away_is_a_503_and_back_is_a_200(start: Callable[..., Kit], free_port: int, tmp_path: Path) -> None:
    kit = start(address=f"127.0.0.1:{free_port}")
    response = kit.post("/predict", {"product_id": "BTC-USD"})
    assert_problem(response, 503)
    assert "retry-after" in response.headers and str(free_port) not in response.text
    assert_problem(kit.client.get("/readyz"), 503)
    assert kit.client.get("/healthz").status_code == 200
    assert kit.client.get("/health").json()["online_store"] == "unreachable"
    with EmbeddedRedis(port=free_port, data=tmp_path / "redis"):
        kit.put("BTC-USD")
        assert kit.client.get("/readyz").status_code == 200
        assert kit.post("/predict", {"product_id": "BTC-USD"}).json()["status"] == "ok"


def test_redis_dying_under_a_live_service_is_a_503_until_it_is_back(
    start: Callable[..., Kit], free_port: int, tmp_path: Path
) -> None:
    kit = start(address=f"127.0.0.1:{free_port}")
    asked = {"product_id": "BTC-USD"}
    for _ in range(2):
        with EmbeddedRedis(port=free_port, data=tmp_path / "redis"):
            values = kit.put("BTC-USD")
            answer = kit.post("/predict", asked)
            assert answer.status_code == 200, answer.text
            expected = expected_probability(kit.artefact, values)
            assert answer.json()["spike_probability"] == pytest.approx(expected, abs=1e-12)
        for response in (kit.post("/predict", asked), kit.client.get("/readyz"), kit.client.get("/features/BTC-USD")):
            assert "online store" in assert_problem(response, 503)["detail"]
            assert int(response.headers["retry-after"]) >= 1
        assert_problem(kit.post("/predict_batch", {"product_ids": ["BTC-USD", "ETH-USD"]}), 503)
        assert kit.client.get("/healthz").status_code == 200


def test_redis_that_hangs_is_a_503_within_seconds(start: Callable[..., Kit], free_port: int, tmp_path: Path) -> None:
    import redis

    with EmbeddedRedis(port=free_port, data=tmp_path / "redis"):
        kit = start(address=f"127.0.0.1:{free_port}")
        kit.put("BTC-USD")
        assert kit.post("/predict", {"product_id": "BTC-USD"}).status_code == 200
        with redis.Redis(port=free_port) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert_problem(kit.post("/predict", {"product_id": "BTC-USD"}), 503)
            assert time.monotonic() - began < 10
            assert kit.client.get("/healthz").status_code == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        assert kit.post("/predict", {"product_id": "BTC-USD"}).status_code == 200


def test_champion_of_another_contract_is_not_swapped_in_and_health_says_why(kit: Kit) -> None:
    kit.put("BTC-USD")
    write_artefact(kit.data / "models" / "old", seed=9)
    promote(kit.data, age(kit.data / "models" / "old"), "old", "2")
    # nobody calls poll: the service's own thread has to see the new pointer
    pause, deadline = threading.Event(), time.monotonic() + 30
    while not (told := kit.client.get("/health").json())["model_refused"]:
        assert time.monotonic() < deadline, "the promotion went unseen"
        pause.wait(0.05)
    assert "hash of service spike_core_v1" in told["model_refused_because"] and told["model"]["version"] == "1"
    assert kit.client.get("/readyz").status_code == 200
    assert kit.post("/predict", {"product_id": "BTC-USD"}).json()["model"]["version"] == "1"
    third = write_artefact(kit.data / "models" / "third", seed=10)
    promote(kit.data, third, "third", "3")
    kit.backend.champion.poll()
    told = kit.client.get("/health").json()
    assert told["model"]["version"] == "3" and told["model_refused_because"] is None


def test_readyz_says_why_the_only_champion_is_refused(kit: Kit) -> None:
    kit.put("BTC-USD")
    pointer = kit.data / "models" / "champion.json"
    champion = kit.backend.champion
    champion.current = None  # as if just started
    promote(kit.data, age(kit.data / "models" / "first"), "first")
    champion.poll()
    for response in (kit.client.get("/readyz"), kit.post("/predict", {"product_id": "BTC-USD"})):
        assert "hash of service spike_core_v1" in assert_problem(response, 503)["detail"]
    pointer.write_text('{"version": "2", "path": "no-such"}')
    champion.poll()
    detail = assert_problem(kit.client.get("/readyz"), 503)["detail"]
    assert "does not verify" in detail and str(kit.data) not in detail
    pointer.unlink()
    champion.poll()
    assert "volspike promote" in assert_problem(kit.client.get("/readyz"), 503)["detail"]


def test_without_a_champion_nothing_is_ready_until_one_is_promoted(kit: Kit) -> None:
    loaded, kit.backend.champion.current = kit.backend.champion.current, None
    for response in (kit.client.get("/readyz"), kit.post("/predict", {"product_id": "BTC-USD"})):
        assert_problem(response, 503)
        assert "retry-after" in response.headers
    kit.backend.champion.current = loaded
    assert kit.client.get("/readyz").status_code == 200


def test_promotion_swaps_the_model_and_a_damaged_one_is_refused(kit: Kit) -> None:
    champion = kit.backend.champion
    second = write_artefact(kit.data / "models" / "second", seed=7)
    promote(kit.data, second, "second", "2")
    champion.poll()
    assert kit.client.get("/version").json()["model"]["sha256"] == second.digest

    third = write_artefact(kit.data / "models" / "third", seed=8)
    file = kit.data / "models" / "third" / "model.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    promote(kit.data, third, "third", "3")
    champion.poll()
    assert champion.refused is not None and "sha256" in champion.refused
    assert kit.client.get("/version").json()["model"]["version"] == "2"
    assert kit.client.get("/health").json()["model_refused"] is True


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "9"}', '{"version": "9", "path": "no-such"}'])
def test_unreadable_pointer_keeps_what_is_there(kit: Kit, text: str) -> None:
    (kit.data / "models" / "champion.json").write_text(text)
    kit.backend.champion.poll()
    assert kit.backend.champion.refused
    assert kit.client.get("/version").json()["model"]["version"] == "1"
