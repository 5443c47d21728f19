"""``bentoml serve`` as a child of a command: on the usual port, or a free one where that is taken."""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from feature_repo.errors import StoreError
from infra.children import Child, running
from infra.settings import settings

READY_S: Final = 60.0
"""How long it may take until it answers."""


class Service(NamedTuple):
    """A service that was started."""

    child: Child
    url: str

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises
        ------
        StoreError
            If it ends, or isn't ready in time.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not self.child.alive:
                raise StoreError(f"the service ended: {self.child.last_words()}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1):  # noqa: S310 - our own loopback address
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.1)
        raise StoreError(f"the service was not ready within {READY_S:.0f} s; see {self.child.log}")


@contextmanager
def service() -> Iterator[Service]:
    """Run ``bentoml serve`` as long as the block; it ends too where its starter is killed."""
    port = settings().service_port
    if not _free(port):
        port = _any_port()
    command = [str(Path(sys.executable).with_name("bentoml")), "serve"]
    with running("service", command, VOLSPIKE_SERVICE_PORT=str(port)) as child:
        yield Service(child, f"http://127.0.0.1:{port}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
