"""The BentoML service: what ``bentoml serve`` at the repository root runs.

::

    bentoml serve ──► parent: loads this module, checks the port, starts the embedded Redis if none is configured
                        └─► worker: loads this module, serves serving.routes on one event loop

Both processes import this module, one after the other, and readiness has ten seconds, of which BentoML's own imports
take most. So what only the worker needs is imported in :meth:`Direct.to_asgi`.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

# BentoML reports each start to its makers unless told not to; a platform that works offline has nothing to report.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
from _bentoml_sdk import Service  # type: ignore[import-untyped]  # bentoml.service(service_class=) takes a subclass

from infra.settings import ROOT, settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

REDIS_STARTS = 10
"""How often the embedded Redis is started: one that keeps dying has a reason that a restart doesn't mend."""
HOST = "127.0.0.1"
"""Loopback, since there is no authentication; ``bentoml serve --host 0.0.0.0`` behind a proxy that has it."""


class Direct(Service[Any]):  # type: ignore[misc]  # bentoml is untyped here
    """A BentoML service whose worker serves our ASGI application itself.

    BentoML would wrap it in its own: routes named ``/healthz``, ``/readyz`` and ``/metrics`` that win over ours, error
    bodies that are not problem details, tracing that nobody collects, and 2 s of imports. What remains of BentoML is
    ``bentoml serve``: configuration, the socket, worker processes and their supervision.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Build the application of one worker; BentoML hands it to uvicorn."""
        from feature_repo.online_format import project_name
        from infra.logs import configure_logging
        from serving.backend import make
        from serving.champion import Champion
        from serving.routes import create_app

        config = settings()
        configure_logging(config.log_level)
        project = project_name(ROOT / "feature_repo")
        return create_app(lambda: make(config, Champion(config.models, config.model_name), project))


@bentoml.service(
    name="volspike",
    service_class=Direct,
    workers=1,
    http={"host": HOST, "port": settings().service_port},
)
class Volspike:
    """Serve the champion: how likely is a volatility spike in the next 60 seconds."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def prepare() -> None:
        """Check the port and see to Redis, once, in the parent process."""
        check_port()
        start_redis()


def check_port() -> None:
    """End with code 1 and one line where the port is taken; BentoML's own answer is a traceback.

    Raises
    ------
    SystemExit
        If the port can't be listened on.
    """
    import click

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
    # Not waited for: the worker takes seconds to start, and answers 503 until Redis is there.
    threading.Thread(target=_keep_redis, name="embedded-redis", daemon=True).start()


def _keep_redis() -> None:
    """Run the embedded Redis, and again where it dies; as long as this process lives."""
    import msgspec

    for _ in range(REDIS_STARTS):
        child = subprocess.Popen(
            [sys.executable, "-m", "infra.embedded", "redis", "--parent", str(os.getpid())],
            # Its end of this pipe closes when this process ends, however it ends; then Redis is stopped in order.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        line = child.stdout.readline() if child.stdout else b""
        answer = msgspec.json.decode(line or b'{"error": "the embedded Redis ended silently"}', type=dict[str, object])
        if "error" in answer:
            print(f"volspike: {answer['error']}", file=sys.stderr)
            return
        child.wait()
        print("volspike: the embedded Redis ended; starting it again", file=sys.stderr)
        time.sleep(1)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
