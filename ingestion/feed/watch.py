"""The log of one connection: what came, numbered, with the ingestor's own records between.

::

    session ─ message ─ message ─ gap(BTC-USD) ─ the message that showed it ─ … ─ status ─ keyframe ─ message ─ …
       1         2         3           4                    5
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import count, repeat
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.names import is_name
from ingestion.feed import records
from ingestion.feed.detector import Detector
from ingestion.feed.dialects import BOOK
from ingestion.feed.inbox import Opened, Received
from ingestion.kernel.messages import parse_times
from ingestion.topics import Envelope, Kind

KEYFRAME_NS: Final = 60_000_000_000
"""Time between the status records (and keyframes) of a product."""


_is_name = lru_cache(maxsize=4096)(is_name)


class _Product(msgspec.Struct, gc=False):
    product_id: str | None = None


class _Event(msgspec.Struct, gc=False):
    product_id: str | None = None
    tickers: list[_Product] = msgspec.field(default_factory=list)
    trades: list[_Product] = msgspec.field(default_factory=list)


class Head(msgspec.Struct, gc=False):
    """What a message is and of whom it speaks."""

    type: str | None = None
    product_id: str | None = None
    time: str | None = None
    channel: str | None = None
    timestamp: str | None = None
    events: list[_Event] = msgspec.field(default_factory=list)
    message: str | None = None
    reason: str | None = None

    @property
    def product(self) -> str:
        """The one product that it names, empty for none or several."""
        if self.channel is None:
            product = self.product_id or ""
        else:
            named = {event.product_id for event in self.events}
            for event in self.events:
                named.update(p.product_id for p in event.tickers)
                named.update(p.product_id for p in event.trades)
            named.discard(None)
            product = (named.pop() or "") if len(named) == 1 else ""
        return product if product and _is_name(product) else ""


_UNREADABLE: Final = Head()
_decode = msgspec.json.Decoder(Head).decode


def read_head(raw: bytes) -> Head:
    """Return what a message is; an empty head where it is no such thing."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _UNREADABLE


class Watch:
    """Numbers the log of one connection and decides its gaps.

    Parameters
    ----------
    opened
        The connection.
    stream_clock
        Whether now is the newest event time: on a feed that runs faster than the world, the machine's clock would stand
        still, or lie elsewhere.
    """

    def __init__(self, opened: Opened, *, stream_clock: bool = False) -> None:
        self.opened = opened
        self._stream_ns = 0 if stream_clock else None
        self.detector = Detector(opened.dialect)
        self.types: Counter[str] = Counter()
        self.gaps: Counter[str] = Counter()
        self.errors: list[str] = []
        """What the exchange complained of since it was last looked at."""
        self.named: set[str] = set()
        """Products that had a message of their own."""
        self._n = 0
        self._due = dict.fromkeys(opened.products, opened.recv_ns + KEYFRAME_NS)
        self._lags: list[NDArray[np.float64]] = []

    def begin(self) -> list[Envelope]:
        """Return the session's first record."""
        o = self.opened
        return [self._record("state", "", records.session(o.dialect, o.products, o.channels), o.recv_ns)]

    def take(self, received: Sequence[Received]) -> list[Envelope]:
        """Return the log of some messages: numbered, gaps before the messages that showed them."""
        if not received:
            return []
        heads = [read_head(m.raw) for m in received]
        if self._stream_ns is not None:
            received = self._on_stream_time(received, heads)
        products = [head.product for head in heads]
        first = self._n + 1  # final where no gap is found, and rising in any case
        fixed = (repeat(self.opened.session), count(first), [m.recv_ns for m in received], products)
        rest = (repeat("feed"), repeat(self.opened.dialect), [m.raw for m in received])
        drafts = list(map(Envelope._make, zip(*fixed, *rest, strict=False)))
        log: list[Envelope] = []
        start = 0
        for gap in self.detector.push(drafts):
            self.gaps[gap.reason] += 1
            log += self._numbered(drafts[start : gap.n - first])
            start = max(start, gap.n - first)
            shown_ns = drafts[start].recv_ns
            log.append(self._record("state", gap.product_id, records.gap(gap.product_id, gap.reason), shown_ns))
        log += self._numbered(drafts[start:])
        self._look(received, heads, products)
        return log + self._snapshots(received[-1].recv_ns)

    def lost(self, product_id: str, recv_ns: int) -> list[Envelope]:
        """Take that messages were dropped behind us, and the log tells it: books need a new snapshot.

        Parameters
        ----------
        product_id
            The product; empty for all.
        recv_ns
            Now.

        Returns
        -------
        list
            What that adds to the log.
        """
        self.gaps["dropped"] += 1
        log = []
        for product in self.opened.products:
            if product_id in ("", product) and self.detector.synced(product):
                note = self.book(product, "resyncing", recv_ns)
                self.detector.push([note._replace(raw=records.gap(product, "dropped"))])
                log.append(note)
        return log

    def book(self, product_id: str, state: records.BookState, recv_ns: int) -> Envelope:
        """Return the record that a book is stale or tries again."""
        return self._record("state", product_id, records.book(product_id, state), recv_ns)

    def lags(self) -> NDArray[np.float64]:
        """Return the seconds from exchange to receipt of the messages with a time since the last call."""
        lags, self._lags = self._lags, []
        return np.concatenate(lags) if lags else np.zeros(0)

    def _on_stream_time(self, received: Sequence[Received], heads: Sequence[Head]) -> list[Received]:
        times = parse_times([head.time or head.timestamp or "" for head in heads])
        if not self._stream_ns:
            known = times[times >= 0]
            if not len(known):
                return list(received)
            self._stream_ns = int(known[0])
            self._due = dict.fromkeys(self._due, self._stream_ns + KEYFRAME_NS)
        newest = np.maximum(np.maximum.accumulate(times), self._stream_ns)
        self._stream_ns = int(newest[-1])
        return [Received(int(t) // 1000 * 1000, m.raw) for t, m in zip(newest, received, strict=True)]

    def _numbered(self, drafts: list[Envelope]) -> list[Envelope]:
        first = self._n + 1
        self._n += len(drafts)
        if not drafts or drafts[0].n == first:
            return drafts
        return [d._replace(n=n) for n, d in enumerate(drafts, first)]

    def _record(self, kind: Kind, product_id: str, raw: bytes, recv_ns: int) -> Envelope:
        self._n += 1
        return Envelope(self.opened.session, self._n, recv_ns, product_id, kind, self.opened.dialect, raw)

    def _look(self, received: Sequence[Received], heads: Sequence[Head], products: Sequence[str]) -> None:
        """Count types, remember complaints and measure the lag."""
        kinds = [head.type or head.channel or "unreadable" for head in heads]
        self.types.update(kinds)
        self.named.update(products)
        self.named.discard("")
        if "error" in kinds:
            said = (head for head, kind in zip(heads, kinds, strict=True) if kind == "error")
            self.errors += [": ".join(filter(None, (h.message, h.reason))) or "error without a message" for h in said]
        times = [(head.time or head.timestamp, m.recv_ns) for head, m in zip(heads, received, strict=True)]
        timed = [(time, recv_ns) for time, recv_ns in times if time]
        if timed:
            sent = parse_times([time for time, _ in timed])
            lag = np.array([recv_ns for _, recv_ns in timed]) - sent
            self._lags.append(lag[sent >= 0] / 1e9)

    def _snapshots(self, now_ns: int) -> list[Envelope]:
        """Return the status records that are due, each with a keyframe where the book is synced."""
        out = []
        channels = list(self.opened.channels)
        for product, due in self._due.items():
            state = self.detector.state(product)
            if now_ns < due or state is None:
                continue
            self._due[product] = now_ns + KEYFRAME_NS
            trade_id = int(state.s["trade_id"][0])
            status = records.status(product, channels, trade_id if trade_id >= 0 else None)
            out.append(self._record("state", product, status, now_ns))
            if BOOK in channels and self.detector.synced(product):
                out.append(self._record("keyframe", product, records.keyframe(product, state.book), now_ns))
        return out
