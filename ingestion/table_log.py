"""What a Delta table's log remembers of its writers: for each (session, product) the last message, and who pushed.

delta-rs answers for one application id at a time, replaying the log each time (4 ms at 3,000 ids), and can't list them;
here the newest checkpoint and the commits after it are read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq
from deltalake.transaction import Transaction

from feature_repo.errors import ContractError
from feature_repo.names import PUSHED

Key = tuple[str, str]
"""(session, product_id)"""

_PREFIX: Final = "volspike/"
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint\.parquet")


class Writers(NamedTuple):
    """What a table's log tells of those who wrote it.

    Attributes
    ----------
    last
        (session, product_id) -> n of the last message that the log's writers covered: all rows up to it are there.
    pushed
        Those of which rows were pushed besides, so that some beyond ``last`` may be there -> when, in µs.
    """

    last: dict[Key, int]
    pushed: dict[Key, int]


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


def read_writers(table: Path, version: int, known: tuple[int, Writers] | None = None) -> Writers:
    """Read who wrote what, as of one version of the table.

    Parameters
    ----------
    table
        The table's folder.
    version
        Version of the table to read at: the one a commit will be checked against.
    known
        An earlier version and what was read at it: only the commits after it are read.

    Raises
    ------
    OSError
        If the log can't be read.

    Notes
    -----
    Format: the Delta transaction protocol, sections "Transaction Identifiers" and "Checkpoints".
    """
    log = table / "_delta_log"
    start, before = _at_checkpoint(log, version) if known is None else known
    writers = Writers(dict(before.last), dict(before.pushed))
    for step in range(start + 1, version + 1):
        for line in (log / f"{step:020d}.json").read_text("utf-8").splitlines():
            if line.startswith('{"txn"'):
                _take(json.loads(line)["txn"], writers)
    return writers


def _at_checkpoint(log: Path, version: int) -> tuple[int, Writers]:
    """Version of the newest checkpoint up to ``version``, −1 where there is none, and what was known then."""
    checkpoints = (match for path in log.iterdir() if (match := _CHECKPOINT.fullmatch(path.name)))
    start = max((int(m[1]) for m in checkpoints if int(m[1]) <= version), default=-1)
    writers = Writers({}, {})
    if start < 0:
        return start, writers
    with pq.ParquetFile(log / f"{start:020d}.checkpoint.parquet") as checkpoint:
        txn = checkpoint.read(columns=["txn"]).column("txn").drop_null().to_pylist()
    for t in txn:
        _take(t, writers)
    return start, writers


def _take(txn: Mapping[str, Any], writers: Writers) -> None:
    for prefix, known in ((_PREFIX, writers.last), (PUSHED, writers.pushed)):
        if txn["appId"].startswith(prefix):
            session, _, product_id = txn["appId"].removeprefix(prefix).partition("/")
            known[session, product_id] = txn["version"]
