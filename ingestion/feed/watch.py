"""The log of one connection: what came, numbered, with the ingestor's own records between.

::

    session ─ message ─ message ─ gap(BTC-USD) ─ the message that showed it ─ … ─ status ─ keyframe ─ message ─ …
       1         2         3           4                    5
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ingestion.feed import records
from ingestion.feed.detector import Detector
from ingestion.feed.dialects import BOOK
from ingestion.feed.inbox import Opened, Received
from ingestion.kernel.chunk import is_name
from ingestion.kernel.messages import parse_times
from ingestion.topics import Envelope, Kind

KEYFRAME_NS: Final = 60_000_000_000
"""Time between the status records (and keyframes) of a product."""


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
        return product if is_name(product) else ""


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
    """

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.detector = Detector()
        self.types: Counter[str] = Counter()
        self.gaps: Counter[str] = Counter()
        self.errors: list[str] = []
        """What the exchange complained of since it was last looked at."""
        self.named: set[str] = set()
        """Products that had a message of their own."""
        self._n = 0
        self._provisional = 0
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
        session, dialect = self.opened.session, self.opened.dialect
        first = self._provisional + 1
        self._provisional += len(received)
        drafts = [
            Envelope(session, n, m.recv_ns, head.product, "feed", dialect, m.raw)
            for n, (m, head) in enumerate(zip(received, heads, strict=True), first)
        ]
        log: list[Envelope] = []
        start = 0
        for gap in self.detector.push(drafts):
            self.gaps[gap.reason] += 1
            log += self._numbered(drafts[start : gap.n - first])
            start = max(start, gap.n - first)
            shown_ns = drafts[start].recv_ns
            log.append(self._record("state", gap.product_id, records.gap(gap.product_id, gap.reason), shown_ns))
        log += self._numbered(drafts[start:])
        self._look(received, heads)
        return log + self._snapshots(received[-1].recv_ns)

    def lost(self, product_id: str, recv_ns: int) -> None:
        """Take that messages of a product were dropped behind us: its book stands no longer. Empty means all."""
        self._provisional += 1
        raw = records.gap(product_id, "dropped")
        o = self.opened
        self.detector.push([Envelope(o.session, self._provisional, recv_ns, product_id, "state", o.dialect, raw)])
        self.gaps["dropped"] += 1

    def book(self, product_id: str, state: records.BookState, recv_ns: int) -> Envelope:
        """Return the record that a book is stale or tries again."""
        return self._record("state", product_id, records.book(product_id, state), recv_ns)

    def lags(self) -> NDArray[np.float64]:
        """Return the seconds from exchange to receipt of the messages with a time since the last call."""
        lags, self._lags = self._lags, []
        return np.concatenate(lags) if lags else np.zeros(0)

    def _numbered(self, drafts: Iterable[Envelope]) -> list[Envelope]:
        out = []
        n = self._n
        for d in drafts:
            n += 1
            out.append(d if d.n == n else Envelope(d.session, n, d.recv_ns, d.product_id, d.kind, d.dialect, d.raw))
        self._n = n
        return out

    def _record(self, kind: Kind, product_id: str, raw: bytes, recv_ns: int) -> Envelope:
        self._n += 1
        return Envelope(self.opened.session, self._n, recv_ns, product_id, kind, self.opened.dialect, raw)

    def _look(self, received: Sequence[Received], heads: Sequence[Head]) -> None:
        """Count types, remember complaints and measure the lag."""
        times: list[str] = []
        at: list[int] = []
        for i, head in enumerate(heads):
            kind = head.type or head.channel or "unreadable"
            self.types[kind] += 1
            if kind == "error":
                self.errors.append(": ".join(filter(None, (head.message, head.reason))) or "error without a message")
            time = head.time or head.timestamp
            if time:
                times.append(time)
                at.append(i)
            if head.product_id:
                self.named.add(head.product_id)
            elif head.channel is not None and head.product:
                self.named.add(head.product)
        if times:
            sent = parse_times(times)
            lag = np.array([received[i].recv_ns for i in at]) - sent
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
