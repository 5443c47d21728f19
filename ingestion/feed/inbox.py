"""What the reader hands to the worker: messages with their receive time, and the edges of connections."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from ingestion.topics import Dialect

FULL: Final = 200_000
"""Messages that may wait for the worker before the reader pauses: some seconds of the busiest market."""
FULL_BYTES: Final = 256 << 20


class Opened(NamedTuple):
    """A connection has subscribed; its messages follow."""

    session: str
    recv_ns: int
    dialect: Dialect
    products: Sequence[str]
    channels: Sequence[str]


class Closed(NamedTuple):
    """The connection is gone."""

    reason: str


class Received(NamedTuple):
    """One message, with the receive time in ns, a whole microsecond."""

    recv_ns: int
    raw: bytes


Item = Opened | Closed | Received


class Inbox:
    """Queue of one writer and one reader, both never waiting for each other.

    A deque's own operations are atomic, so no lock stands between the reader of the socket and a message.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._something = threading.Event()
        self._bytes_in = 0
        self._bytes_out = 0
        self.ended = False
        self.deepest = 0
        """Most items that ever waited."""

    def put(self, item: Item) -> None:
        """Add an item."""
        self._items.append(item)
        if isinstance(item, Received):
            self._bytes_in += len(item.raw)
        if not self._something.is_set():
            self._something.set()

    def end(self) -> None:
        """Say that nothing will follow."""
        self.ended = True
        self._something.set()

    @property
    def full(self) -> bool:
        """Whether the reader should pause."""
        return len(self._items) > FULL or self._bytes_in - self._bytes_out > FULL_BYTES

    def take(self, most: int, timeout_s: float) -> list[Item]:
        """Return what waits, at most ``most`` items; wait up to ``timeout_s`` for the first."""
        if not self._items:
            self._something.wait(timeout_s)
        self._something.clear()
        waiting = len(self._items)
        self.deepest = max(self.deepest, waiting)
        taken = [self._items.popleft() for _ in range(min(waiting, most))]
        self._bytes_out += sum(len(item.raw) for item in taken if isinstance(item, Received))
        if self._items or self.ended:
            self._something.set()
        return taken

    @property
    def done(self) -> bool:
        """Whether it has ended and everything was taken."""
        return self.ended and not self._items
