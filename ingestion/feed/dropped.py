"""What could be kept nowhere, until a gap record can say so."""

from __future__ import annotations

from collections.abc import Sequence

from ingestion.feed import records
from ingestion.topics import Envelope


class Dropped:
    """Envelopes that were dropped, remembered as the gap records that stand for them.

    A gap record takes the number of the last message that it stands for: that number will never come, so numbers go
    on rising, and readers see the loss where it happened.
    """

    def __init__(self) -> None:
        self.count = 0
        """Messages of the exchange dropped so far."""
        self._standing: dict[str, dict[str, Envelope]] = {}
        self._sessions: dict[str, Envelope] = {}

    def __bool__(self) -> bool:
        return bool(self._standing)

    def add(self, envelopes: Sequence[Envelope]) -> None:
        """Take what was dropped."""
        for e in envelopes:
            last = self._standing.setdefault(e.session, {})
            if e.n == 1:  # without the session's first record its gaps mean nothing: it is kept
                self._sessions[e.session] = e
                continue
            self.count += e.kind == "feed"
            last[e.product_id] = e

    def take(self) -> list[Envelope]:
        """Return the records that stand for what was dropped, in log order, and forget them."""
        found = []
        for session, last in self._standing.items():
            if session in self._sessions:
                found.append(self._sessions[session])
            for e in sorted(last.values(), key=lambda e: e.n):
                found.append(e._replace(kind="state", raw=records.gap(e.product_id, "dropped")))
        self._standing.clear()
        self._sessions.clear()
        return found
