"""The featurizer: lines in, feature rows and quotes out, one state per product, saved and restored to the byte."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contract import WINDOWS
from feature_repo.errors import ContractError, UsageError
from ingestion.kernel import state as states
from ingestion.kernel.decode import Decoder
from ingestion.kernel.events import BOOK_SNAPSHOT, BOOK_UPDATE, TICKER, TRADE, Batch, Reject
from ingestion.kernel.output import Output, Room
from ingestion.kernel.reading import Logged
from ingestion.kernel.rows import (
    QUOTE_SCHEMA,
    ROW_SCHEMA,
    LogRows,
    Part,
    Rows,
    cause_of_quotes,
    cause_of_rows,
    feature_table,
    quote_table,
)
from ingestion.kernel.step import run

_STRETCH = 8192
"""Events taken at once: rings need room for the longest window and one stretch, and stay in the cache."""
_SPARE = 512
"""Entries that there is room for at least: looking for it costs as much as a few events."""
_PIECE = 1 << 19
"""Bytes of lines decoded at once."""
_FAR_FUTURE_NS = 2**62
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Options:
    """What rows to make.

    Attributes
    ----------
    every_s
        Grid step in whole seconds; None for no grid rows.
    compute_every_n
        Emit every n-th ticker row of a product; windows see every ticker.
    windows
        Window lengths whose stats are computed; those of the others are null.
    products
        Products to keep; None keeps all.
    """

    every_s: int | None = 1
    compute_every_n: int = 1
    windows: Sequence[int] = WINDOWS
    products: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.every_s is not None and not 1 <= self.every_s <= _DAY_S:
            raise UsageError(f"every_s must be a whole number of seconds, 1 to {_DAY_S}, or None; was {self.every_s}")
        if self.compute_every_n < 1:
            raise UsageError(f"compute_every_n must be >= 1, was {self.compute_every_n}")
        unknown = set(self.windows) - set(WINDOWS)
        if unknown or not self.windows:
            raise UsageError(f"windows must be some of {WINDOWS}, was {tuple(self.windows)}")


class Featurizer:
    """The kernel's state over all products of one stream.

    Parameters
    ----------
    session
        Session id (16 hex digits) of lines that carry none.
    options
        What rows to make.
    keeps
        Which products are this reader's, of a log that is shared among several; None for all.
    """

    def __init__(
        self, session: str = "0" * 16, options: Options | None = None, keeps: Callable[[str], bool] | None = None
    ) -> None:
        self.options = options or Options()
        self.decoder = Decoder(session=session, products=self.options.products, keeps=keeps)
        self.counts: Counter[str] = Counter()
        self.rejects: list[Reject] = []
        self._states: dict[str, states.State] = {}
        self._room = Room()
        self._wanted = np.array([w in self.options.windows for w in WINDOWS])
        self._spare: dict[str, NDArray[np.int64]] = {}
        """Tickers, trades, book messages and levels that each product's state has room for."""

    def push_lines(self, data: bytes, *, now_ns: int | None = None) -> Rows:
        """Take complete lines of the log.

        Parameters
        ----------
        data
            Newline-delimited messages.
        now_ns
            Bound of event times where a message has no receive time; None for no bound.

        Returns
        -------
        Rows
            What these lines made; rejected lines are appended to ``rejects``.
        """
        bound = _FAR_FUTURE_NS if now_ns is None else now_ns
        return self.push([self.decoder.decode(piece, bound) for piece in pieces(data)])

    def push_log(self, messages: Sequence[Logged], *, now_ns: int | None = None) -> LogRows:
        """Take messages of the log that come with their envelope beside them, whole and in log order.

        Parameters
        ----------
        messages
            What the ingestor logged; see ``ingestion.topics.Envelope``.
        now_ns
            As for :meth:`push_lines`.

        Returns
        -------
        LogRows
            What these messages made, cheap where they are few.
        """
        batch = self.decoder.decode_log(messages, _FAR_FUTURE_NS if now_ns is None else now_ns)
        self.counts.update(batch.counts)
        self.rejects.extend(batch.rejects)
        return LogRows(
            [
                Part(product, self.decoder.sessions, *(np.array(a) for a in arrays))
                for product, events in batch.events.items()
                for arrays in self._product(product, [(batch, events)])
                if arrays[0].shape[1] or arrays[2].shape[1]
            ]
        )

    def push(self, batches: Sequence[Batch]) -> Rows:
        """Take decoded batches, in order."""
        stretches: dict[str, list[tuple[Batch, NDArray[np.void]]]] = defaultdict(list)
        for batch in batches:
            self.counts.update(batch.counts)
            self.rejects.extend(batch.rejects)
            for product, events in batch.events.items():
                stretches[product].append((batch, events))
        rows = _Gathered(ROW_SCHEMA)
        quotes = _Gathered(QUOTE_SCHEMA)
        for product, parts in stretches.items():
            for r_int, r_num, q_int, q_num in self._product(product, parts):
                if r_int.shape[1]:
                    rows.add(feature_table(product, self.decoder.sessions, r_int, r_num), cause_of_rows(r_int))
                if q_int.shape[1]:
                    quotes.add(quote_table(product, self.decoder.sessions, q_int, q_num), cause_of_quotes(q_int))
        return Rows(*rows.joined(), *quotes.joined())

    def _product(
        self, product: str, parts: list[tuple[Batch, NDArray[np.void]]]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Run one product's events; yield rows' integers and numbers, then quotes', whenever the output is full."""
        options = self.options
        state = self._states.get(product) or states.new_state()
        before = state.counts.copy()
        every_ns = 0 if options.every_s is None else options.every_s * 1_000_000_000
        total = sum(len(events) for _, events in parts)
        out = Output(self._room, total)
        for batch, events in parts:
            at = 0
            while at < len(events):
                stretch = events[at : at + _STRETCH]
                kinds = np.bincount(stretch["kind"], minlength=16)
                books = int(kinds[BOOK_UPDATE] + kinds[BOOK_SNAPSHOT])
                touched = int((stretch["hi"] - stretch["lo"]).sum()) if books else 0
                need = np.array([kinds[TICKER], kinds[TRADE], books, touched], np.int64)
                state = self._with_room(product, state, need)
                thin = options.compute_every_n
                taken, out.rows, out.quotes = run(
                    state, stretch, batch.levels, 0, every_ns, thin, self._wanted, *out.arrays, out.rows, out.quotes
                )
                at += taken
                if taken < len(stretch):
                    yield out.filled()
                    out = Output(self._room, total)
        yield out.filled()
        self._states[product] = state
        for name, more in zip(states.COUNTERS, (state.counts - before).tolist(), strict=True):
            if more:
                self.counts[name] += more

    def _with_room(self, product: str, state: states.State, need: NDArray[np.int64]) -> states.State:
        """Return the state with room for so many more entries, made for many small pushes at once."""
        spare = self._spare.get(product)
        if spare is None or (need > spare).any():
            spare = np.maximum(need, _SPARE)
            tickers, trades, books, levels = spare.tolist()
            state = states.make_room(state, tickers=tickers, trades=trades, books=books, levels=levels)
        self._spare[product] = spare - need
        return state

    def watermarks(self) -> dict[str, int]:
        """Return each product's watermark in ns."""
        return {p: int(s.s["watermark"][0]) for p, s in self._states.items() if s.s["started"][0]}

    def last_n(self) -> dict[tuple[str, str], int]:
        """Return the last message taken, per (session, product); what a commit writes down as the table's version."""
        d = self.decoder
        met = {(session, product) for session, products in d.seen.items() for product in products}
        met |= {(int(state.s["connection"][0]), product) for product, state in self._states.items()}
        return {
            (d.sessions[session], product): d.last_n[session]
            for session, product in met
            if session >= 0 and product in self._states
        }

    def state(self, product: str) -> states.State:
        """Return the state of a product, for tests and for the book's keyframes."""
        return self._states[product]

    def save(self) -> bytes:
        """Return everything that :meth:`restore` needs to go on as if nothing had happened."""
        return msgspec.msgpack.encode(self.dump())

    def dump(self) -> tuple[Any, ...]:
        """Return the same as what MessagePack can hold, of which the most is not copied: encode it at once."""
        d = self.decoder
        seen = {k: sorted(v) for k, v in d.seen.items()}
        decoder = (d.session, d.sessions, d.last_n, d.sequence, seen, d.line, sorted(d.told))
        o = self.options
        products = None if o.products is None else sorted(o.products)
        options = (o.every_s, o.compute_every_n, list(o.windows), products)
        kept = {product: states.dump(state) for product, state in self._states.items()}
        return states.FORMAT, decoder, options, dict(self.counts), kept

    @classmethod
    def restore(cls, data: bytes, keeps: Callable[[str], bool] | None = None) -> Featurizer:
        """Return the featurizer that :meth:`save` wrote.

        Parameters
        ----------
        data
            What it wrote.
        keeps
            As for the class.

        Raises
        ------
        ContractError
            If the bytes are no such state, or of another contract.
        """
        try:
            dumped = msgspec.msgpack.decode(data, strict=False)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise ContractError(f"checkpoint: not a kernel state ({error}); start from the log instead") from error
        return cls.load(dumped, keeps)

    @classmethod
    def load(cls, dumped: Any, keeps: Callable[[str], bool] | None = None) -> Featurizer:
        """Return the featurizer that :meth:`dump` gave, as decoded; ContractError as :meth:`restore`."""
        try:
            form, decoder, options, counts, kept = dumped
        except (ValueError, TypeError) as error:
            raise ContractError(f"checkpoint: not a kernel state ({error}); start from the log instead") from error
        if form != states.FORMAT:
            raise ContractError(f"checkpoint: format {form}, expected {states.FORMAT}: start from the log instead")
        every_s, thin, windows, products = options
        chosen = Options(every_s, thin, tuple(windows), None if products is None else frozenset(products))
        self = cls(decoder[0], chosen, keeps)
        d = self.decoder
        d.sessions, d.last_n, d.sequence, d.line = list(decoder[1]), decoder[2], decoder[3], decoder[5]
        d.told = set(decoder[6])
        d.seen = defaultdict(set, {k: set(v) for k, v in decoder[4].items()})
        self.counts.update(counts)
        self._states = {product: states.load(raw) for product, raw in kept.items()}
        return self


class _Gathered:
    """Tables on their way into one, each with the messages that made its rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._tables: list[pa.Table] = []
        self._causes: list[NDArray[np.int64]] = []

    def add(self, table: pa.Table, causes: NDArray[np.int64]) -> None:
        """Take one more table."""
        self._tables.append(table)
        self._causes.append(causes)

    def joined(self) -> tuple[pa.Table, NDArray[np.int64]]:
        """Return all of it."""
        if not self._tables:
            return self._schema.empty_table(), np.zeros(0, np.int64)
        return pa.concat_tables(self._tables), np.concatenate(self._causes)


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut lines into pieces that, decoded, stay in the second-level cache."""
    at = 0
    while at < len(data):
        cut = data.find(b"\n", at + _PIECE) + 1 or len(data)
        yield data[at:cut] if cut - at < len(data) else data
        at = cut


@dataclass(slots=True)
class StreamResult:
    """All rows of a stream: tables as in :class:`ingestion.kernel.rows.Rows`, and what was counted."""

    rows: pa.Table
    quotes: pa.Table
    counts: dict[str, int]
    rejects: list[Reject]


def stream_rows(
    lines: Iterable[bytes],
    *,
    session: str | None = None,
    every_s: int | None = 1,
    compute_every_n: int = 1,
    windows: Sequence[int] = WINDOWS,
    chunk_lines: int = 65536,
    now_ns: int | None = None,
) -> StreamResult:
    """Run the kernel over the lines of one stream, in memory.

    Parameters
    ----------
    lines
        Messages in log order, with or without their newline.
    session
        Session id of lines that carry none.
    every_s, compute_every_n, windows
        See :class:`Options`.
    chunk_lines
        Lines decoded at once; has no influence on the result.
    now_ns
        Bound of event times where no receive time is known, ns; None for no bound.

    Returns
    -------
    StreamResult
    """
    featurizer = Featurizer(session or "0" * 16, Options(every_s, compute_every_n, windows))
    made: list[Rows] = []
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(line.rstrip(b"\n"))
        if len(chunk) == chunk_lines:
            made.append(featurizer.push_lines(b"\n".join(chunk) + b"\n", now_ns=now_ns))
            chunk.clear()
    if chunk:
        made.append(featurizer.push_lines(b"\n".join(chunk) + b"\n", now_ns=now_ns))
    return StreamResult(
        rows=pa.concat_tables([ROW_SCHEMA.empty_table(), *(r.features for r in made)]),
        quotes=pa.concat_tables([QUOTE_SCHEMA.empty_table(), *(r.quotes for r in made)]),
        counts=dict(featurizer.counts),
        rejects=featurizer.rejects,
    )
