"""From lines of a tape to arrays of events, bad input counted and kept.

Both dialects; bare, wrapped and envelope forms. :mod:`ingestion.kernel.reading` gives the messages of a chunk; here
they are sorted by type and become events. Nothing stops on bad input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from feature_repo.contract import FUTURE_NS
from ingestion.kernel.advanced import AdvancedDecoder
from ingestion.kernel.chunk import RECORD, Chunk
from ingestion.kernel.events import Batch
from ingestion.kernel.exchange import ExchangeDecoder
from ingestion.kernel.reading import Logged, Reader
from ingestion.kernel.records import RecordDecoder


@dataclass(slots=True)
class Decoder:
    """Decode chunks of one stream; remembers what spans chunks.

    Attributes
    ----------
    session
        Session of bare and wrapped lines (16 hex digits); their n is the line number.
    products
        Products to keep; None keeps all.
    keeps
        Which of them are this reader's; None for all.
    sessions
        Session ids seen, in order.
    last_n
        Greatest n seen per session.
    sequence
        Last Advanced ``sequence_num`` per session.
    seen
        Products seen per session.
    told
        Sessions whose gaps are recorded in the log.
    """

    session: str = "0" * 16
    products: frozenset[str] | None = None
    keeps: Callable[[str], bool] | None = None
    sessions: list[str] = field(default_factory=list)
    last_n: dict[int, int] = field(default_factory=dict)
    sequence: dict[int, int] = field(default_factory=dict)
    seen: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    told: set[int] = field(default_factory=set)
    line: int = 0

    def decode(self, data: bytes, now_ns: int) -> Batch:
        """Decode complete lines.

        Parameters
        ----------
        data
            Newline-delimited messages; the last line may lack its newline.
        now_ns
            Bound of event times where no receive time is known, ns.

        Returns
        -------
        Batch
            Events by product, in log order.
        """
        work = _Work(self, data, now_ns)
        chunk = work.read()
        work.assemble(chunk)
        return work.finish()

    def decode_log(self, messages: Sequence[Logged], now_ns: int) -> Batch:
        """Decode messages of the log that come with their envelope beside them, whole and in log order.

        Parameters
        ----------
        messages
            What the ingestor logged; perhaps only some products of a connection, so that its sequence numbers say
            nothing here.
        now_ns
            As for :meth:`decode`.

        Returns
        -------
        Batch
            Events by product, in log order.
        """
        work = _Work(self, b"", now_ns)
        work.whole = False
        chunk = work.read_log(messages)
        if chunk.messages:
            work.assemble(chunk)
        return work.finish()

    def session_index(self, session: str) -> int:
        """Return the index of a session, a new one where it hasn't been seen."""
        try:
            return self.sessions.index(session)
        except ValueError:
            self.sessions.append(session)
            return len(self.sessions) - 1


class _Work(Reader):
    """One chunk on its way through the decoder."""

    def assemble(self, chunk: Chunk) -> None:
        """Turn the messages of a chunk into events, type by type."""
        groups: dict[str, list[int]] = defaultdict(list)
        advanced: list[int] = []
        types = [m.type for m in chunk.messages]
        records = np.flatnonzero(chunk.kind == RECORD).tolist()
        decoder = RecordDecoder(self.out, chunk, self.decoder.told, self.counts, self.refuse)
        for i in records:
            decoder.take(i)
        if not records and types and types[0] is not None and types.count(types[0]) == len(types):
            groups[types[0]] = list(range(len(types)))
            types.clear()
        skip = set(records)
        for i, kind in enumerate(types):
            if i in skip:
                continue
            if kind is not None:
                groups[kind].append(i)
            elif chunk.messages[i].channel is not None:
                advanced.append(i)
            else:
                self.reject(int(chunk.lines[i]), int(chunk.n[i]), "no type or channel")
        bound = np.where(chunk.recv_ns >= 0, chunk.recv_ns, self.now_ns) + FUTURE_NS
        exchange = ExchangeDecoder(self.out, chunk, self.refuse, bound)
        for name, indexes in groups.items():
            self.counts[name] += len(indexes)
            if not exchange.take(name, np.array(indexes)) and name != "error":
                self.counts["unknown_type"] += len(indexes)
        if advanced:
            sequence = self.decoder.sequence if self.whole else None
            told = self.decoder.told
            AdvancedDecoder(self.out, chunk, sequence, told, self.counts, self.refuse, bound).take(advanced)

    def refuse(self, chunk: Chunk, i: int, reason: str) -> None:
        """Reject message i of the chunk."""
        self.reject(int(chunk.lines[i]), int(chunk.n[i]), reason)

    def finish(self) -> Batch:
        """Put the events into log order, product by product."""
        decoder = self.decoder
        events = self.out.by_product(decoder.seen)
        if decoder.products is not None:
            other = [p for p in events if p not in decoder.products]
            for product in other:
                self.counts["other_product"] += len(events.pop(product))
        if decoder.keeps is not None:
            events = {p: e for p, e in events.items() if decoder.keeps(p)}
        return Batch(
            events=events,
            levels=self.out.all_levels(),
            sessions=decoder.sessions,
            counts=dict(self.counts),
            rejects=self.rejects,
        )
