"""Routes of the HTTP contract, as a Starlette application over a :class:`serving.backend.Backend`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from feature_repo.contract import FEATURE_NAMES, feature_hash
from serving import metrics
from serving.backend import RETRY_MODEL_S, RETRY_ROW_S, RETRY_STORE_S, Backend, names
from serving.problems import Mask, Problem, on_http_exception, on_problem
from serving.schemas import (
    BODY_LIMIT_BYTES,
    Batch,
    BatchRequest,
    Features,
    FeaturesPrediction,
    FeaturesRequest,
    Prediction,
    PredictRequest,
    decode,
    numbers,
)
from serving.scorer import WHY, answer, iso, matrix, row_status

CONTRACT_HASH: Final = feature_hash(FEATURE_NAMES)
_encoder = msgspec.json.Encoder()
_Handler = Callable[[Backend, Request], Awaitable[Response]]


def create_app(make: Callable[[], Backend]) -> Starlette:
    """Build the application.

    Parameters
    ----------
    make
        Called once on the event loop that serves, at start-up: the Redis client belongs to it.
    """
    holder: list[Backend] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        backend = make()
        backend.champion.start()
        holder.append(backend)
        yield
        holder.clear()
        backend.champion.stop()
        await backend.reader.close()

    def route(path: str, handler: _Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            backend = holder[0]
            began = time.perf_counter()
            code = 500
            try:
                response = await handler(backend, request)
                code = response.status_code
                return response
            except Problem as problem:
                code = problem.status
                raise
            finally:
                backend.metrics.requests.labels(path, str(code)).inc()
                backend.metrics.seconds.labels(path).observe(time.perf_counter() - began)

        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            route("/predict", predict, "POST"),
            route("/predict_batch", predict_batch, "POST"),
            route("/predict_features", predict_features, "POST"),
            route("/features/{product_id}", features, "GET"),
            route("/version", show_version, "GET"),
            route("/health", health, "GET"),
            route("/healthz", healthz, "GET"),
            route("/readyz", readyz, "GET"),
            route("/metrics", exposition, "GET"),
        ],
        middleware=[Middleware(Mask)],
        exception_handlers={Problem: on_problem, HTTPException: on_http_exception},
        lifespan=lifespan,
    )


async def predict(backend: Backend, request: Request) -> Response:
    """``POST /predict``: 200 where there is a probability, 404 for a product nobody knows, else 503 with the status."""
    wanted = decode(await body(request), PredictRequest)
    (given,) = await backend.predict([wanted.product_id])
    return _answer(given)


async def predict_batch(backend: Backend, request: Request) -> Response:
    """``POST /predict_batch``: always 200, with a status per item."""
    wanted = decode(await body(request), BatchRequest)
    return _json(Batch(await backend.predict(wanted.product_ids)))


async def predict_features(backend: Backend, request: Request) -> Response:
    """``POST /predict_features``: the champion's word on features of the caller's; the store is not asked."""
    wanted = decode(await body(request), FeaturesRequest)
    loaded = backend.loaded()
    manifest = loaded.artefact.manifest
    values = numbers(wanted.features)
    if not backend.known(wanted.product_id, loaded):
        raise _unknown(wanted.product_id)
    row = {name: values.get(name) for name in names(manifest.features)}
    missing = [name for name in manifest.features if row[name] is None]
    has_tau = wanted.product_id in manifest.label.tau
    probability = float(loaded.artefact.predict_proba(matrix([row], manifest.features))[0]) if has_tau else None
    given = answer(
        wanted.product_id, None, "ok" if has_tau else "no_threshold", probability, manifest, loaded.model, 0
    )
    backend.record(given)
    full = FeaturesPrediction(
        **msgspec.structs.asdict(given), missing=missing, ignored=sorted(values.keys() - set(manifest.features))
    )
    return _answer(full)


async def features(backend: Backend, request: Request) -> Response:
    """``GET /features/{product_id}``: the newest row whole, whatever its status."""
    product: str = request.path_params["product_id"]
    rows, now = await backend.read([product], FEATURE_NAMES)
    row = rows[product]
    if row is None:
        if not backend.known(product, backend.champion.current):
            raise _unknown(product)
        raise Problem(503, WHY["missing"], {"product_id": product, "status": "missing"}, retry_after_s=RETRY_ROW_S)
    status = row_status(row, now, backend.limits)
    age_ms = (now - row.time_ns) / 1e6
    return _json(Features(product, iso(row.time_ns), age_ms, status, dict(row.values)))


async def show_version(backend: Backend, _: Request) -> Response:
    """``GET /version``: which code, contract and model answer here."""
    loaded = backend.champion.current
    model: dict[str, object] | None = None
    if loaded is not None:
        manifest = loaded.artefact.manifest
        model = {
            **msgspec.structs.asdict(loaded.model),
            "run_id": loaded.run_id,
            "kind": manifest.kind,
            "sha256": loaded.artefact.digest,
            "service": msgspec.structs.asdict(manifest.service),
            "features": len(manifest.features),
            "threshold": manifest.threshold,
            "tau": manifest.label.tau,
            "horizon_s": manifest.label.horizon_s,
            "training": manifest.training.blocks,
            "metrics": manifest.metrics,
        }
    return _json({"version": version("volspike"), "contract_hash": CONTRACT_HASH, "model": model})


async def health(backend: Backend, _: Request) -> Response:
    """``GET /health``: what is there and what isn't, for people; always 200."""
    store = await backend.store_is_up()
    loaded = backend.champion.current
    return _json(
        {
            "status": "ok" if store and loaded else "degraded",
            "online_store": "up" if store else "unreachable",
            "model": None if loaded is None else loaded.model,
            "model_refused": backend.champion.refused is not None,
            "model_refused_because": backend.champion.refused_in_public,
            "clock": "stream" if backend.stream_clock else "wall",
        }
    )


async def healthz(_backend: Backend, _: Request) -> Response:
    """``GET /healthz``: the process lives."""
    return _json({"status": "ok"})


async def readyz(backend: Backend, _: Request) -> Response:
    """``GET /readyz``: 200 once a champion is loaded and the store answers, else 503."""
    backend.loaded()
    if not await backend.store_is_up():
        raise Problem(503, "the online store is unreachable", retry_after_s=RETRY_STORE_S)
    return _json({"status": "ok"})


async def exposition(backend: Backend, _: Request) -> Response:
    """``GET /metrics`` for Prometheus."""
    return Response(backend.metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def body(request: Request) -> bytes:
    """Read a body of at most :data:`serving.schemas.BODY_LIMIT_BYTES`; Problem 413 as soon as it is longer."""
    too_large = Problem(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes; split the batch")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > BODY_LIMIT_BYTES:
        raise too_large
    chunks = bytearray()
    try:
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > BODY_LIMIT_BYTES:
                raise too_large
    except ClientDisconnect as error:
        raise Problem(400, "the client went away before its body was complete") from error
    return bytes(chunks)


def _answer(given: Prediction) -> Response:
    if given.status == "ok":
        return _json(given)
    if given.status == "unknown_product":
        raise _unknown(given.product_id)
    retry = RETRY_MODEL_S if given.status == "no_threshold" else RETRY_ROW_S
    raise Problem(503, WHY[given.status], msgspec.structs.asdict(given), retry_after_s=retry)


def _unknown(product: str) -> Problem:
    return Problem(404, f"product {product!r}: {WHY['unknown_product']}", {"product_id": product})


def _json(content: object) -> Response:
    return Response(_encoder.encode(content), media_type="application/json")
