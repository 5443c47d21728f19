"""What keeps a data folder in shape while everything runs: small table parts merged, old files deleted."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import structlog

from feature_repo.errors import StoreError
from infra.settings import settings

TABLES: Final = ("spike_features", "quotes")
UNUSED_H: Final = 24
"""Hours for which table files that no commit names any more are kept: longer than any read or training run."""
DAY_S: Final = 86_400.0
COMPACT_S: Final = 900.0
"""Time between compactions beside a live system: by then its featurizer has made some 180 parts a table."""
_TAPE: Final = "*.ndjson.zst"


@dataclass(slots=True)
class Deleted:
    """What `delete_old` removed: tapes and reports by path, table files by their number."""

    tapes: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    table_files: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def compact_tables() -> dict[str, tuple[int, int]]:
    """Merge the small parts of every table; readers and writers go on.

    Returns
    -------
    dict
        Parts before and after, by table.

    Raises
    ------
    StoreError
        If a table can't be read or written, or another compaction won.
    """
    from ingestion import tables

    found = {}
    for name in TABLES:
        before = len(tables.parts(name))
        tables.compact(name)
        found[name] = (before, len(tables.parts(name)))
    return found


class Compaction:
    """Merges the tables' small parts from time to time: who writes them remembers each."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._running: Future[Any] | None = None
        self._due = time.monotonic() + COMPACT_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def look(self) -> None:
        """Begin where it is due; say what went wrong the last time, which the next time may mend."""
        if self._running is not None and self._running.done():
            error = self._running.exception()
            if error is not None:
                structlog.get_logger("upkeep").warning("compaction", error=str(error))
            self._running = None
        if self._running is None and time.monotonic() >= self._due:
            self._due += COMPACT_S
            self._running = self._pool.submit(compact_tables)


def delete_old(keep_days: float) -> Deleted:
    """Delete tapes and scheduled reports older than ``keep_days`` (0: none), and table files out of use for a day.

    A tape's age is that of its last change, so that one being written is never old. Only what we recorded is looked at:
    ``.ndjson.zst`` in the folder ``raw`` itself, no links.

    Raises
    ------
    StoreError
        If something can't be deleted.
    """
    from ingestion import tables

    done = Deleted()
    if keep_days > 0:
        oldest = time.time() - keep_days * DAY_S
        done.tapes = _delete(settings().raw, _TAPE, oldest)
        done.reports = _delete(settings().reports / "scheduled", "*/*", oldest)
    done.table_files = {name: tables.vacuum(name, retention_hours=UNUSED_H) for name in TABLES}
    return done


def _delete(folder: Path, pattern: str, oldest: float) -> list[str]:
    deleted = []
    for path in sorted(folder.glob(pattern)):
        try:
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime < oldest:
                path.unlink()
                deleted.append(str(path))
                if path.parent != folder and not any(path.parent.iterdir()):
                    path.parent.rmdir()
        except OSError as error:
            raise StoreError(
                f"{path} is old and can't be deleted: {error.strerror}. Check who owns it"
            ) from error
    return deleted
