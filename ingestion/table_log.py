"""What a Delta table's log remembers of its writers: for each (session, product) the last message it holds.

delta-rs answers for one application id at a time, replaying the log each time (4 ms at 3,000 ids), and can't list them;
here the newest checkpoint and the commits after it are read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
from deltalake.transaction import Transaction

from feature_repo.errors import ContractError

Key = tuple[str, str]
"""(session, product_id)"""

_PREFIX: Final = "volspike/"
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint\.parquet")


def app_id(key: Key) -> str:
    """Application id of a (session, product).

    Raises
    ------
    ContractError
        If the session is empty or holds a slash, so that the id couldn't be read back.

    Examples
    --------
    >>> app_id(("00f1a2b3c4d5e6f7", "BTC-USD"))
    'volspike/00f1a2b3c4d5e6f7/BTC-USD'
    """
    session, product_id = key
    if not session or "/" in session:
        raise ContractError(f"session was {session!r}, expected a name without a slash, such as 16 hex digits")
    return f"{_PREFIX}{session}/{product_id}"


def transactions(versions: Mapping[Key, int], now_ms: int) -> list[Transaction]:
    """Delta transactions that say ``versions``."""
    return [Transaction(app_id(key), n, now_ms) for key, n in versions.items()]


def read_versions(table: Path, version: int, known: tuple[int, Mapping[Key, int]] | None = None) -> dict[Key, int]:
    """Last n of each (session, product) as of one version of the table.

    Parameters
    ----------
    table
        The table's folder.
    version
        Version of the table to read at: the one a commit will be checked against.
    known
        An earlier version and what was read at it: only the commits after it are read.

    Returns
    -------
    dict
        (session, product_id) -> n.

    Raises
    ------
    OSError
        If the log can't be read.

    Notes
    -----
    Format: the Delta transaction protocol, sections "Transaction Identifiers" and "Checkpoints".
    """
    log = table / "_delta_log"
    start, found = _at_checkpoint(log, version) if known is None else (known[0], dict(known[1]))
    for step in range(start + 1, version + 1):
        for line in (log / f"{step:020d}.json").read_text("utf-8").splitlines():
            if line.startswith('{"txn"'):
                t = json.loads(line)["txn"]
                if key := _key(t["appId"]):
                    found[key] = t["version"]
    return found


def _at_checkpoint(log: Path, version: int) -> tuple[int, dict[Key, int]]:
    """Version of the newest checkpoint up to ``version``, −1 where there is none, and what was known then."""
    checkpoints = (match for path in log.iterdir() if (match := _CHECKPOINT.fullmatch(path.name)))
    start = max((int(m[1]) for m in checkpoints if int(m[1]) <= version), default=-1)
    if start < 0:
        return start, {}
    with pq.ParquetFile(log / f"{start:020d}.checkpoint.parquet") as checkpoint:
        txn = checkpoint.read(columns=["txn"]).column("txn").drop_null().to_pylist()
    return start, {key: t["version"] for t in txn if (key := _key(t["appId"]))}


def _key(app: str) -> Key | None:
    if not app.startswith(_PREFIX):
        return None
    session, _, product_id = app.removeprefix(_PREFIX).partition("/")
    return session, product_id
