"""The BentoML service: what ``bentoml serve`` at the repository root runs.

::

    bentoml serve ──► parent: loads this module, checks the port, starts the embedded Redis if none is configured
                        └─► worker: loads this module, serves serving.routes on one event loop

Each process imports this module, so nothing heavy is imported here: readiness has ten seconds, BentoML's own imports
take most of them twice. The contract's ``/healthz``, ``/readyz`` and ``/metrics`` carry the names of BentoML's built-in
routes, which would win over a mounted application; so the application stands in front of them, as a middleware.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import AsyncExitStack

# BentoML reports each start to its makers unless told not to; a platform that works offline has nothing to report.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import click
import msgspec
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.settings import ROOT, settings
from serving import backend
from serving.champion import Champion
from serving.online import project_name
from serving.routes import create_app

HOST = "127.0.0.1"
"""Loopback, since there is no authentication; ``bentoml serve --host 0.0.0.0`` behind a proxy that has it."""


def _make() -> backend.Backend:
    config = settings()
    champion = Champion(config.models, config.model_name)
    return backend.make(config, champion, project_name(ROOT / "feature_repo"))


app = create_app(_make)
"""The HTTP contract as an ASGI application."""


class Front:
    """ASGI middleware that answers every request from :data:`app` and leaves only the lifespan to BentoML."""

    def __init__(self, bento: ASGIApp) -> None:
        self._bento = bento

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose who answers."""
        chosen = app if scope["type"] == "http" else self._bento
        await chosen(scope, receive, send)


@bentoml.service(
    name="volspike",
    workers=1,
    http={"host": HOST, "port": settings().service_port},
    metrics={"enabled": False},  # ours are in serving.metrics
    logging={"access": {"enabled": False}},  # a third of a request's time; the metrics count them
    traffic={"timeout": 30},
)
class Volspike:
    """Serve the champion: how likely is a volatility spike in the next 60 seconds."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def prepare() -> None:
        """Check the port and see to Redis, once, in the parent process."""
        check_port()
        start_redis()

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Open what the routes need, on the event loop that serves."""
        configure_logging()
        await self._stack.enter_async_context(app.router.lifespan_context(app))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Close it."""
        await self._stack.aclose()


Volspike.add_asgi_middleware(Front)  # type: ignore[attr-defined]  # the decorator made it a bentoml Service


def check_port() -> None:
    """End with code 1 and one line where the port is taken; BentoML's own answer is a traceback.

    Raises
    ------
    SystemExit
        If the port can't be listened on.
    """
    given = context.params if (context := click.get_current_context(silent=True)) else {}
    host, port = given.get("host") or HOST, given.get("port") or settings().service_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = "busy" if error.errno == errno.EADDRINUSE else error.strerror
            raise SystemExit(
                f"volspike: port {port} on {host} is {what}: stop what listens there, set VOLSPIKE_SERVICE_PORT, or "
                "call bentoml serve --port"
            ) from None


def start_redis() -> None:
    """Start the embedded Redis as a child of this process, unless one is configured or listens there already."""
    config = settings()
    if config.redis_url or _listens(config.redis_port):
        return
    child = subprocess.Popen(
        [sys.executable, "-m", "infra.embedded", "redis", "--parent", str(os.getpid())],
        # Its end of this pipe closes when this process ends, however it ends; then Redis is stopped in order.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )

    def report() -> None:
        line = child.stdout.readline() if child.stdout else b""
        answer = msgspec.json.decode(line or b'{"error": "the embedded Redis ended silently"}', type=dict[str, object])
        if "error" in answer:
            print(f"volspike: {answer['error']}", file=sys.stderr)

    # Not waited for: the worker takes seconds to start, and answers 503 until Redis is there.
    threading.Thread(target=report, name="embedded-redis", daemon=True).start()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def configure_logging() -> None:
    """Log to standard error from the configured level on: lines on a terminal, JSON in a pipe."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings().log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
