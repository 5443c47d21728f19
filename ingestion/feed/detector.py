"""What the kernel says of a connection: which messages show a gap, and what each book holds.

The kernel's own detector decides; it runs here without making rows, and numbers provisionally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow.compute as pc

from ingestion.feed.records import Reason
from ingestion.kernel.featurizer import Featurizer, Options
from ingestion.kernel.state import COUNTERS, State
from ingestion.kernel.step import GAP_START, Q_KIND, Q_N, SYNCED
from ingestion.topics import Dialect, Envelope, tape_line

_NO_ROWS: Final = 2**62
_REASONS: Final[dict[str, Reason | None]] = {
    "gap_silence": "silence",
    "gap_trades": "trades",
    "gap_sequence": "sequence",
    "gap_recorded": None,
    "gap_source": None,
}
_AT: Final = {name: COUNTERS.index(name) for name in _REASONS}


class Gap(NamedTuple):
    """A gap of one product, shown by message n."""

    n: int
    product_id: str
    reason: Reason


class Detector:
    """The kernel over one connection, asked for gaps and books only."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._kernel = Featurizer(options=Options(every_s=None, compute_every_n=_NO_ROWS))
        self._counted: dict[str, list[int]] = {}

    def push(self, envelopes: Sequence[Envelope]) -> list[Gap]:
        """Take messages, with rising provisional numbers; return the gaps that they show, by number."""
        if self._dialect == "advanced":  # the kernel looks at sequence numbers where it is given a whole connection
            rows = self._kernel.push_lines(b"".join(map(tape_line, envelopes)))
            opened = rows.quotes.filter(pc.equal(rows.quotes["kind"], "gap_start"))
            found = list(zip(opened["n"].to_pylist(), opened["product_id"].to_pylist(), strict=True))
        else:
            found = [
                (n, part.product_id)
                for part in self._kernel.push_log(envelopes).parts
                for n in part.quote_ints[Q_N, part.quote_ints[Q_KIND] == GAP_START].tolist()
            ]
        self._kernel.rejects.clear()  # they stand in the log; whoever makes rows of it keeps them
        gaps = [Gap(n, product, reason) for n, product in sorted(found) if (reason := self._reason(product))]
        self._remember()
        return gaps

    @property
    def counts(self) -> dict[str, int]:
        """What the kernel counted: messages by type, malformed, late and so on."""
        return dict(self._kernel.counts)

    def state(self, product_id: str) -> State | None:
        """Return what the kernel knows of a product, None before its first message."""
        try:
            return self._kernel.state(product_id)
        except KeyError:
            return None

    def synced(self, product_id: str) -> bool:
        """Tell whether the product's book is one to trust."""
        state = self.state(product_id)
        return state is not None and int(state.s["book_state"][0]) == SYNCED

    def _reason(self, product_id: str) -> Reason | None:
        """Return why the product's gap opened: the counter that rose; a crossed book has none of its own.

        None where readers see it without being told: the record says it already, or it is one of sources, which
        readers know from the session's record.
        """
        state = self._kernel.state(product_id)
        before = self._counted.get(product_id) or [0] * len(COUNTERS)
        for name, at in _AT.items():
            if int(state.counts[at]) > before[at]:
                return _REASONS[name]
        return "crossed"

    def _remember(self) -> None:
        for product_id in self._kernel.watermarks():
            self._counted[product_id] = self._kernel.state(product_id).counts.tolist()
