"""Where a run comes from: the tables' parts, the commit, the lock, the libraries."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from typing import Any, Final

import polars as pl

from feature_repo.errors import StoreError
from infra.settings import ROOT, settings
from ingestion import tables

LIBRARIES: Final = (
    "numpy", "scipy", "numba", "polars", "pyarrow", "scikit-learn", "xgboost-cpu", "xgboost", "feast", "deltalake",
    "mlflow",
)  # fmt: skip
TABLES: Final = ("spike_features", "quotes")
LOCK: Final = "requirements.lock"


def data_manifest() -> dict[str, Any]:
    """Describe what the tables hold now.

    Returns
    -------
    dict
        By table: parts (path below the tables' folder, rows, sha256), last_n (last message number by
        ``session/product``) and ranges (first and last event time by the same, ns UTC).

    Raises
    ------
    StoreError
        If a part that the table names can't be read.
    """
    root = settings().tables
    out = {}
    for name in TABLES:
        parts = []
        for p in tables.parts(name):
            try:
                parts.append({"path": p.path.relative_to(root).as_posix(), "rows": p.num_records, "sha256": p.sha256()})
            except OSError as error:
                raise StoreError(
                    f"table {name}: part {p.path} can't be read ({error.strerror}), must be there: the table's log "
                    "names it; restore it, or move the table away and replay the tapes"
                ) from error
        ranges = (
            tables.scan(name)
            .group_by("session", "product_id")
            .agg(first=pl.col("event_time_ns").min(), last=pl.col("event_time_ns").max())
            .collect()
            .sort("session", "product_id")
        )
        out[name] = {
            "parts": parts,
            "last_n": {f"{session}/{product}": n for (session, product), n in sorted(tables.last_n(name).items())},
            "ranges": {f"{session}/{product}": [a, b] for session, product, a, b in ranges.iter_rows()},
        }
    return out


def code() -> dict[str, str]:
    """Name the code: git commit (``-dirty`` where files differ from it) and sha256 of the lock, as far as known."""
    out = {}
    lock = lock_hash()
    if lock:
        out["lock_sha256"] = lock
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return out
    if said.returncode == 0:
        out["git_commit"] = said.stdout.strip()
    return out


def lock_hash() -> str:
    """Hash of ``requirements.lock``, empty where there is none."""
    path = ROOT / LOCK
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part."""
    there = {d.name: d.version for d in map(_distribution, LIBRARIES) if d is not None}
    return {"python": platform.python_version(), **there}


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None  # xgboost has two names, one of which is installed
