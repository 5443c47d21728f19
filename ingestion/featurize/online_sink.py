"""The newest row of each product on its way to Redis, in a thread of its own.

Only the newest counts, so rows that pile up while Redis is slow or gone replace each other, and the log is never kept
waiting. What couldn't be written is tried again until it can, or until something newer takes its place.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from feature_repo.errors import StoreError
from ingestion.kernel import Part

RETRY_S: Final = 0.5
"""Wait after a failed write: a Redis that is gone is asked twice a second."""
REST_S: Final = 0.05
"""Wait after a write while a backlog is read: its rows are history, and writing each would take half of the time."""


class OnlineSink:
    """Writes newest rows to the online store.

    Parameters
    ----------
    write
        Writes the last row of each part; raises StoreError where Redis doesn't answer.
    """

    def __init__(self, write: Callable[[list[Part]], int]) -> None:
        self._write = write
        self._newest: dict[str, Part] = {}
        self._changed = threading.Condition()
        self._writing = False
        self._ending = False
        self._behind = False
        self._closing = False
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="online", daemon=True)
        self._thread.start()

    def take(self, parts: Iterable[Part], *, behind: bool = False) -> None:
        """Have the last row of each part written; returns at once.

        Parameters
        ----------
        parts
            Rows, in log order.
        behind
            Whether more of the log waits to be read: then rows are written in intervals.
        """
        newest = {part.product_id: part for part in parts if part.ints.shape[1]}
        if newest:
            with self._changed:
                self._newest.update(newest)
                self._behind = behind
                self._changed.notify()

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is left and stop; False where it couldn't be written in time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            drained = self._changed.wait_for(lambda: not (self._newest or self._writing), timeout_s)
            self._ending = True
            self._changed.notify_all()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        return drained

    def _run(self) -> None:
        failed = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._ending)
                if self._ending:
                    return
                taken, self._newest, self._writing = self._newest, {}, True
            try:
                self.counts["online_rows"] += self._write(list(taken.values()))
                if failed:
                    structlog.get_logger("featurize").info("online store answers again")
                failed = False
            except StoreError as error:
                self.counts["online_failures"] += 1
                if not failed:
                    structlog.get_logger("featurize").warning("online store", error=str(error))
                failed = True
            with self._changed:
                self._writing = False
                if failed:
                    self._newest = {**taken, **self._newest}
                    self._changed.wait_for(lambda: self._ending, RETRY_S)
                elif self._behind:
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._ending or not self._behind or self._closing, REST_S)
                self._changed.notify_all()
