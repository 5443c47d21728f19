"""The ingestor's own records in the raw log: sessions, gaps, the book's fate, and keyframes to enter the log by.

Where a session begins with its record, its gaps are those that are recorded: whoever reads the log, from wherever, sees
the same ones. Which record says what stands in ``docs/architecture.md``, "The raw log".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np

from feature_repo.names import is_name
from ingestion.kernel.assemble import EVERY_PRODUCT, Assembler
from ingestion.kernel.chunk import Chunk, channel_flag
from ingestion.kernel.events import BOOK_NOTE, GAP, KEYFRAME, SESSION, STATUS
from ingestion.kernel.messages import NAMES, Message

BOOK_NOTES = {"resyncing": 2, "stale": 3}
"""State of a book as a record names it, and as rows do."""


class RecordDecoder:
    """Decode the ingestor's records of one chunk."""

    def __init__(
        self,
        out: Assembler,
        chunk: Chunk,
        told: set[int],
        counts: Counter[str],
        refuse: Callable[[Chunk, int, str], None],
    ) -> None:
        self.out = out
        self.chunk = chunk
        self.told = told
        """Sessions whose gaps are recorded; extended here."""
        self.counts = counts
        self.refuse = refuse

    def take(self, i: int) -> None:
        """Decode message i of the chunk; an unknown type is counted and ignored."""
        message = self.chunk.messages[i]
        kind = message.type or ""
        self.counts[f"record: {kind}"] += 1
        session = int(self.chunk.session[i])
        try:
            if kind == "session":
                self.told.add(session)
                for product in message.products or ():
                    self._add(i, SESSION, product, flags=self._flags(message))
            elif kind == "status":
                self.told.add(session)
                self._add(i, STATUS, message.product_id, flags=self._flags(message), trade_id=message.trade_id)
            elif kind == "gap":
                self._add(i, GAP, message.product_id or EVERY_PRODUCT)
            elif kind == "book" and message.state in BOOK_NOTES:
                self._add(i, BOOK_NOTE, message.product_id, flags=BOOK_NOTES[message.state])
            elif kind == "keyframe":
                self._keyframe(i, message)
            else:
                self.counts["unknown_type"] += 1
        except (msgspec.MsgspecError, ValueError) as error:
            self.refuse(self.chunk, i, f"record {kind}: {error}")

    @staticmethod
    def _flags(message: Message) -> int:
        channels = NAMES.decode(message.channels) if message.channels else []
        flags = 0
        for name in channels:
            flags |= channel_flag(name)
        return flags

    def _add(
        self, i: int, kind: int, product: str | None, *, flags: int = 0, trade_id: int | None = None
    ) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        if product is None or (product != EVERY_PRODUCT and not is_name(product)):
            raise ValueError("product_id is missing or no name")
        at = np.array([i])
        events = self.out.events(self.chunk, at, kind)
        events["flags"] = flags
        if trade_id is not None:
            events["trade_id"] = trade_id
        self.out.add(events, at, [product])
        return events

    def _keyframe(self, i: int, message: Message) -> None:
        bids, asks = message.bids or (), message.asks or ()
        level = np.array([*bids, *asks], float).reshape(-1, 2)
        if not (np.isfinite(level).all() and (level > 0).all()):
            raise ValueError("a level has a bad price or size")
        events = self._add(i, KEYFRAME, message.product_id)
        sides = np.repeat([0, 1], [len(bids), len(asks)])
        events["lo"] = self.out.levels(sides, level[:, 0], level[:, 1])
        events["hi"] = events["lo"] + len(level)
