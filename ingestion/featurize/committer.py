"""Commits: what was made becomes lasting, in the one order in which nothing is lost or doubled.

::

    rows ──► acknowledged by the topics ──► in the tables ──► checkpoint written   ──► offset committed
             (again after a crash, with     (once, by their   (it saves time only,     (a reader begins
             the same ids)                  versions)         behind the tables)       at or before it)

A commit runs in a thread of its own, one at a time, while the next rows are made. Only the offset is left to the loop:
a Kafka client whose rebalance waits for another thread's offsets waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import structlog

from feature_repo.contract import VIEW
from feature_repo.errors import StoreError
from ingestion import tables
from ingestion.featurize.publisher import Held
from ingestion.kafka import ClientLost
from ingestion.kernel import LogRows, Part
from ingestion.tuning import give_back

RETRY_S: Final = 1.0
"""Wait after a failed commit: a full disk or a broker that is gone is tried once a second."""


@dataclass(slots=True)
class Work:
    """What one commit makes lasting.

    Attributes
    ----------
    parts
        Rows since the commit before; gone when the commit is under way.
    versions
        (session, product) -> last message they cover.
    offsets
        Partition -> (offset to go on from, offset to rewind to).
    saves
        Partition -> its state at that offset, where a checkpoint is due.
    """

    parts: list[Part] = field(default_factory=list)
    versions: Held = field(default_factory=dict)
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    saves: dict[int, bytes] = field(default_factory=dict)


class Committer:
    """Runs commits one after the other.

    Parameters
    ----------
    flush
        Waits until the topics have acknowledged all that was sent, or it is told to give up.
    checkpoint
        Writes a partition's state.
    overdue
        Whether a commit that can't be made should be given up; looked at between its tries.
    """

    def __init__(
        self,
        flush: Callable[[Callable[[], bool]], None],
        checkpoint: Callable[[int, bytes], None],
        overdue: Callable[[], bool] = lambda: False,
    ) -> None:
        self._flush = flush
        self._checkpoint = checkpoint
        self._overdue = overdue
        self._tables = {name: tables.keep(name) for name in (VIEW, "quotes")}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: Future[Work] | None = None
        self._giving_up = threading.Event()
        self.counts: Counter[str] = Counter()
        self.seconds: deque[float] = deque(maxlen=1000)

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        return self._running is not None and not self._running.done()

    def begin(self, work: Work) -> None:
        """Commit in the background; :meth:`finish` must have been called for the one before."""
        self._running = self._pool.submit(self._commit, work)

    def finish(self, timeout_s: float | None = None) -> Work | None:
        """Wait for the commit under way and return what is lasting now; None where there was none.

        Parameters
        ----------
        timeout_s
            After so long let it give up; None waits as long as it takes.

        Raises
        ------
        VolspikeError
            What stopped it, where trying again can't help or it gave up.
        """
        running, self._running = self._running, None
        if running is None:
            return None
        try:
            return running.result(timeout_s)
        except TimeoutError:
            self._giving_up.set()
            return running.result()

    def close(self) -> None:
        """Let a commit that can't succeed give up; what it held is read from the log again."""
        self._giving_up.set()
        self._pool.shutdown(wait=True)

    def _commit(self, work: Work) -> Work:
        began = time.perf_counter()
        rows = LogRows(work.parts).tables()
        work.parts = []  # the tables are a copy
        while True:
            try:
                self._flush(self._given_up)
                self._append(VIEW, rows.features, rows.cause_n, work.versions)
                self._append("quotes", rows.quotes, rows.quote_cause_n, work.versions)
                break
            except ClientLost:
                raise  # another try with the same producer says the same
            except StoreError as error:
                self.counts["commit_failures"] += 1
                structlog.get_logger("featurize").warning("commit", error=str(error), retry_s=RETRY_S)
                self._giving_up.wait(RETRY_S)
                if self._given_up():
                    raise
        for partition, state in work.saves.items():
            try:
                self._checkpoint(partition, state)
                self.counts["checkpoints"] += 1
            except StoreError as error:
                self.counts["checkpoint_failures"] += 1
                structlog.get_logger("featurize").warning("checkpoint", partition=partition, error=str(error))
        give_back()  # or what one large commit took stays taken
        self.counts["commits"] += 1
        self.seconds.append(time.perf_counter() - began)
        return work

    def _given_up(self) -> bool:
        return self._giving_up.is_set() or self._overdue()

    def _append(self, name: str, rows: pa.Table, causes: np.ndarray, versions: Held) -> None:
        if rows.num_rows:
            self.counts[f"{name}_added"] += tables.append(name, rows, causes, versions, kept=self._tables[name])
