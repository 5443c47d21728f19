"""A stretch of the raw log, measured: what came, how much of it, and what was wrong with it. Pure: no I/O."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from ingestion.feed.watch import read_head
from ingestion.kernel import Featurizer, Options
from ingestion.kernel.step import GAP_END, GAP_START, Q_KIND, Q_T
from ingestion.topics import Envelope, partition_of

_NO_ROWS: Final = 2**62
_HEARTBEATS: Final = ("heartbeat", "heartbeats")
_S: Final = 1_000_000_000
BEAT_NS: Final = 1_500_000_000
"""How long a heartbeat counts: they come each second, a little early or late."""


class _Record(msgspec.Struct):
    type: str = ""
    products: list[str] = msgspec.field(default_factory=list)
    product_id: str | None = None
    channels: list[str] = msgspec.field(default_factory=list)
    reason: str = ""


@dataclass(slots=True)
class Product:
    """One product's messages.

    Attributes
    ----------
    types
        Messages by type.
    first_ns, last_ns
        Receive times of the first and the last.
    quiet_ns
        Longest time between two of them.
    beats
        Heartbeats.
    beat_ns
        Receive time that lies at most BEAT_NS after a heartbeat, up to the last one.
    subscribed
        Channels by the ingestor's records.
    gaps
        Recorded gaps by reason; the reconnects among them are ``session``.
    gap_ns
        Event time inside gaps.
    gap_since_ns
        Where the gap that is open began; None where none is.
    """

    types: Counter[str] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0
    quiet_ns: int = 0
    beats: int = 0
    beat_ns: int = 0
    subscribed: frozenset[str] = frozenset()
    gaps: Counter[str] = field(default_factory=Counter)
    gap_ns: int = 0
    gap_since_ns: int | None = None
    _beat: int = 0

    def see(self, kind: str, recv_ns: int) -> None:
        """Take a message."""
        self.types[kind] += 1
        if self.first_ns:
            self.quiet_ns = max(self.quiet_ns, recv_ns - self.last_ns)
        else:
            self.first_ns = recv_ns
        self.last_ns = max(self.last_ns, recv_ns)
        if kind in _HEARTBEATS:
            self.beats += 1
            self.beat_ns += min(BEAT_NS, max(0, recv_ns - (self._beat or self.first_ns)))
            self._beat = recv_ns

    @property
    def messages(self) -> int:
        """Messages of all types."""
        return sum(self.types.values())

    @property
    def seconds(self) -> float:
        """Receive time from the first to the last."""
        return (self.last_ns - self.first_ns) / _S

    def beat_share(self) -> float | None:
        """Share of the time with a recent heartbeat; None where none is subscribed or under five seconds were seen."""
        if not ("heartbeat" in self.subscribed or self.beats) or self.seconds < 5:
            return None
        tail = min(BEAT_NS, self.last_ns - self._beat) if self._beat else 0
        return (self.beat_ns + tail) / (self.last_ns - self.first_ns)


class Stretch:
    """Measures envelopes of a topic as they are read, partition by partition.

    Parameters
    ----------
    partitions
        Of the topic.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._kernels = [self._kernel(i) for i in range(partitions)]
        self._last: list[dict[str, int]] = [{} for _ in range(partitions)]
        self._numbers: dict[str, array[int]] = defaultdict(lambda: array("q"))
        self._spans: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        self.products: dict[str, Product] = defaultdict(Product)
        self.messages = 0
        """Messages of the exchange, each once."""
        self.general: Counter[str] = Counter()
        """Those of no product or of several, by type."""
        self.errors: Counter[str] = Counter()
        """Messages that can't be read, by reason."""
        self.records: Counter[str] = Counter()
        """The ingestor's own records."""
        self.repeated = 0

    def _kernel(self, index: int) -> Featurizer:
        options = Options(every_s=None, compute_every_n=_NO_ROWS)
        return Featurizer(options=options, keeps=lambda p: partition_of(p, self._partitions) == index)

    def unreadable(self, reason: str) -> None:
        """Take a message of the topic that is none of the raw log."""
        self.messages += 1
        self.errors[reason] += 1

    def take(self, partition: int, envelopes: Sequence[Envelope]) -> None:
        """Take envelopes of a partition, whole and in its order."""
        last = self._last[partition]
        fresh = []
        for e in envelopes:
            if e.n <= last.get(e.session, 0):
                self.repeated += 1
                continue
            last[e.session] = e.n
            if e.product_id:
                span = self._spans[e.session]
                span[partition] = span.get(partition, (e.n, e.n))[0], e.n
            fresh.append(e)
            once = bool(e.product_id) or not partition  # what goes to every partition is counted in the first
            if once:
                self._numbers[e.session].append(e.n)
            if e.kind != "feed":
                self._obey(partition, e, once)
            elif once:
                self._see(e)
        self._watch(partition, fresh)

    def _see(self, e: Envelope) -> None:
        self.messages += 1
        head = read_head(e.raw)
        kind = head.type or head.channel or "unreadable"
        if e.product_id:
            self.products[e.product_id].see(kind, e.recv_ns)
            return
        self.general[kind] += 1
        if kind in _HEARTBEATS:  # Advanced Trade's heartbeat stands for the whole connection
            for product in self.products.values():
                product.see(kind, e.recv_ns)

    def _obey(self, partition: int, e: Envelope, once: bool) -> None:
        """Take a record of the ingestor, for the products of this partition."""
        try:
            record = msgspec.json.decode(e.raw, type=_Record)
        except msgspec.MsgspecError as error:
            self.errors[f"record: {error}"] += once
            return
        self.records[record.type] += once
        named = [record.product_id] if record.product_id else record.products or list(self.products)
        own = [name for name in named if partition_of(name, self._partitions) == partition]
        if record.type == "session":
            for name in own:
                product = self.products[name]
                product.gaps["session"] += product.messages > 0
                product.subscribed = frozenset(record.channels)
        elif record.type == "status":
            for name in own:
                self.products[name].subscribed = frozenset(record.channels)
        elif record.type == "gap":
            for name in own:
                self.products[name].gaps[record.reason] += 1

    def _watch(self, partition: int, envelopes: Sequence[Envelope]) -> None:
        """Let the kernel say which messages are malformed, and how long gaps last."""
        kernel = self._kernels[partition]
        for part in kernel.push_log(envelopes).parts:
            product = self.products[part.product_id]
            kinds, times = part.quote_ints[Q_KIND].tolist(), part.quote_ints[Q_T].tolist()
            for kind, t in zip(kinds, times, strict=True):
                if kind == GAP_START:
                    product.gap_since_ns = t
                elif kind == GAP_END and product.gap_since_ns is not None:
                    product.gap_ns += t - product.gap_since_ns
                    product.gap_since_ns = None
        general = {e.n for e in envelopes if not e.product_id} if partition else set()
        for reject in kernel.rejects:
            if reject.n not in general:
                self.errors[reject.reason] += 1
        kernel.rejects.clear()

    @property
    def sessions(self) -> int:
        """Connections that were seen."""
        return len(self._last) and len({s for last in self._last for s in last})

    def missing(self) -> int:
        """Return how many numbers are missing where every partition was read: they were dropped, or never sent.

        A session's numbers are spread over the partitions, whose reading begins and ends at different ones.
        """
        total = 0
        for session, numbers in self._numbers.items():
            spans = self._spans[session].values()
            first = max((span[0] for span in spans), default=0)
            last = min((span[1] for span in spans), default=-1)
            there = np.unique(np.frombuffer(numbers, np.int64))
            there = there[(there >= first) & (there <= last)]
            total += max(0, last - first + 1) - len(there)
        return total

    def watermark_ns(self, product_id: str) -> int | None:
        """Return the newest event time of a product, ns."""
        return self._kernels[partition_of(product_id, self._partitions)].watermarks().get(product_id)
