"""From bytes to messages of one chunk: decoded at once, unwrapped, numbered, and dropped where they were seen before.

Only where a line is malformed is a chunk taken line by line, so that the one bad line is found and the rest is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import FUTURE_NS
from feature_repo.names import is_name
from ingestion.kernel.assemble import Assembler
from ingestion.kernel.chunk import FEED, RECORD, Chunk, reason_of
from ingestion.kernel.events import NO_TIME, Reject
from ingestion.kernel.keys import repeats_a_key
from ingestion.kernel.messages import DECODER, HEAD, Message
from ingestion.kernel.plain import TYPES
from ingestion.kernel.scan import ScannedLog, count_lines, scan_log, scan_tickers

if TYPE_CHECKING:
    from ingestion.kernel.decode import Decoder

_LOOK_AHEAD = 1 << 16
"""Bytes in which a ticker must show for the piece to be scanned for plain ones."""
_KINDS = {"feed": FEED, None: FEED, "state": RECORD, "keyframe": RECORD}
_READ_TYPES = (
    "ticker match last_match heartbeat l2update snapshot subscriptions error market_trades l2_data heartbeats"
).split()


class Logged(Protocol):
    """One message of the log with what the ingestor stamped it with; see ``ingestion.topics.Envelope``."""

    @property
    def session(self) -> str: ...  # noqa: D102
    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def recv_ns(self) -> int: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def raw(self) -> bytes: ...  # noqa: D102


class Reader:
    """Reads one chunk; what the whole stream remembers stands in the decoder."""

    def __init__(self, decoder: Decoder, data: bytes, now_ns: int) -> None:
        self.decoder = decoder
        self.data = data
        self.now_ns = now_ns
        self.counts: Counter[str] = Counter()
        self.rejects: list[Reject] = []
        self.out = Assembler()
        self.whole = True
        """Whether this is all of a connection, in which its own sequence numbers mean something."""
        self._lines: list[bytes] | None = None
        self.places: NDArray[np.int64] | None = None
        """Index in the piece of each line of ``data``, where others were taken out."""
        self.plain_n = 0
        """Number of the last plain ticker."""

    def lines(self) -> list[bytes]:
        """Return the lines of the chunk, as they came."""
        if self._lines is None:
            self._lines = self.data.split(b"\n")
            if not self._lines[-1]:
                self._lines.pop()
        return self._lines

    def reject(self, line: int, n: int, reason: str) -> None:
        """Set a line aside, with its reason."""
        self.counts[f"malformed: {reason}" if reason != "future" else "future"] += 1
        self.counts["malformed" if reason != "future" else "dead_lettered_future"] += 1
        self.rejects.append(Reject(n, reason, self.lines()[line]))

    def read(self) -> Chunk:
        """Decode, unwrap, number, and drop what was seen before."""
        decoder = self.decoder
        start = decoder.line
        n_lines = count_lines(self.data)
        decoder.line += n_lines
        taken = self._take_plain(start, n_lines)
        n_lines -= taken
        chunk = self._read_rest(start, n_lines)
        if taken:
            self.out.places = chunk.n - (start + 1)
            last = decoder.last_n
            session = decoder.session_index(decoder.session)
            last[session] = max(last.get(session, 0), self.plain_n)
        return chunk

    def _take_plain(self, start: int, n_lines: int) -> int:
        """Take the plain tickers out of the data, where no line tells a number of its own; return how many."""
        decoder = self.decoder
        # The escaped form inside an envelope doesn't match.
        if self.data.find(b'"type":"ticker"', 0, _LOOK_AHEAD) < 0:
            return 0
        known = decoder.session in decoder.sessions
        if known and decoder.last_n.get(decoder.session_index(decoder.session), 0) > start:
            return 0
        data = self.data if self.data.endswith(b"\n") else self.data + b"\n"
        events, lines, products, codes, left = scan_tickers(data, n_lines, start + 1, self.now_ns + FUTURE_NS)
        rest = b"".join([data[lo : end + 1] for _, lo, end in left.tolist()]) if len(left) else b""
        if not len(events) or b'"raw"' in rest:
            return 0
        events["session"] = decoder.session_index(decoder.session)
        self.out.add_placed(events, lines, products, codes)
        self.counts["ticker"] += len(events)
        self.data, self.places, self.plain_n = rest, left[:, 0], start + 1 + int(lines[-1])
        return len(events)

    def _read_rest(self, start: int, n_lines: int) -> Chunk:
        """Decode, unwrap, number, and drop what was seen before, of the lines that are no plain tickers."""
        decoder = self.decoder
        messages: list[Message] | None = None
        if not repeats_a_key(self.data):
            try:
                messages = DECODER.decode_lines(self.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                messages = None
        if messages is None or len(messages) != n_lines:
            messages, lines = self._one_by_one(start)
        else:
            lines = np.arange(n_lines)
        n = (lines if self.places is None else self.places[lines]) + (start + 1)
        recv = np.full(len(messages), NO_TIME)
        session = np.zeros(len(messages), np.int64)
        kind = np.full(len(messages), FEED, np.int8)
        if b'"raw"' in self.data and any(m.raw is not None for m in messages):
            messages, keep, n, session, recv, kind = self._unwrap(messages, lines, n)
            lines = lines[keep]
        elif messages:
            session[:] = decoder.session_index(decoder.session)
        return self._unseen(Chunk(messages, n, session, recv, lines, kind))

    def read_log(self, log: Sequence[Logged]) -> Chunk:
        """Take the plain messages of those whose envelope stands beside them, decode the others; drop what was seen."""
        raws = self._lines = [m.raw for m in log]
        count = len(raws)
        n = np.fromiter([m.n for m in log], np.int64, count)
        recv = np.fromiter([m.recv_ns for m in log], np.int64, count)
        kind = np.fromiter([_KINDS.get(m.kind, RECORD) for m in log], np.int8, count)
        plain = scan_log(raws, kind == FEED, np.where(recv >= 0, recv, self.now_ns) + FUTURE_NS)
        kept = np.zeros(count, bool)
        kept[plain.taken] = True
        others = np.flatnonzero(~kept)
        messages, readable = self._read_others([log[i] for i in others.tolist()], others)
        kept[readable] = True
        session = self._session_codes([m.session for m in log], kept)
        fresh = kept.copy()
        fresh[kept] = self._fresh(n[kept], session[kept])
        self._take_scanned(plain, fresh, n, session, recv)
        if not fresh[readable].all():
            messages = [m for m, good in zip(messages, fresh[readable].tolist(), strict=True) if good]
            readable = readable[fresh[readable]]
        self.out.places = readable
        return Chunk(messages, n[readable], session[readable], recv[readable], readable, kind[readable])

    def _session_codes(self, sessions: list[str], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return int64[n], the index of each message's session; those of messages not kept mean nothing."""
        used = sessions if kept.all() else [s for s, good in zip(sessions, kept.tolist(), strict=True) if good]
        codes = {session: self.decoder.session_index(session) for session in dict.fromkeys(used)}
        if len(codes) == 1:
            return np.full(len(sessions), next(iter(codes.values())), np.int64)
        return np.array([codes.get(session, -1) for session in sessions], np.int64)

    def _take_scanned(
        self,
        plain: ScannedLog,
        fresh: NDArray[np.bool_],
        n: NDArray[np.int64],
        session: NDArray[np.int64],
        recv: NDArray[np.int64],
    ) -> None:
        """Take the events of the plain messages that weren't seen before."""
        events, at, codes = plain.events, plain.taken, plain.codes
        if not fresh[at].all():
            good = fresh[at]
            events, at, codes = events[good], at[good], codes[good]
        if not len(events):
            return
        events["n"], events["session"], events["recv_ns"] = n[at], session[at], recv[at]
        self.out.add_placed(events, at, plain.products, codes, plain.levels)
        found = np.bincount(events["kind"], minlength=16)
        for name, kind in TYPES.items():
            if found[kind]:
                self.counts[name] += int(found[kind])

    def _read_others(self, log: Sequence[Logged], at: NDArray[np.int64]) -> tuple[list[Message], NDArray[np.int64]]:
        """Decode messages ``at``; return those that can be, and where they are."""
        messages = self._read_many([m.raw for m in log]) if len(log) else []
        if messages is not None:
            return messages, at
        messages, readable = [], []
        for i, logged in zip(at.tolist(), log, strict=True):
            try:
                messages.append(_decode_one(logged.raw))
                readable.append(i)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                unread = _unread_type(logged.raw)
                if unread:
                    self.counts.update((unread, "unknown_type"))
                else:
                    self.reject(i, logged.n, reason_of(error))
        return messages, np.array(readable, np.int64)

    @staticmethod
    def _read_many(raws: list[bytes]) -> list[Message] | None:
        """Decode messages all at once; None where one of them can't be."""
        joined = b"\n".join(raws)
        if joined.count(b"\n") == len(raws) - 1 and not repeats_a_key(joined):
            try:
                messages = DECODER.decode_lines(joined)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return None
            if len(messages) == len(raws):
                return messages
        return None

    def _one_by_one(self, start: int) -> tuple[list[Message], NDArray[np.int64]]:
        messages: list[Message] = []
        lines: list[int] = []
        for i, line in enumerate(self.lines()):
            if not line.strip():
                self.counts["empty_line"] += 1
                continue
            try:
                message = _decode_one(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                unread = _unread_type(line)
                if unread:
                    self.counts.update((unread, "unknown_type"))
                else:
                    self.reject(i, start + 1 + (i if self.places is None else int(self.places[i])), reason_of(error))
                continue
            messages.append(message)
            lines.append(i)
        return messages, np.array(lines, np.int64)

    def _unwrap(
        self, outer: list[Message], lines: NDArray[np.int64], n: NDArray[np.int64]
    ) -> tuple[
        list[Message], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]
    ]:
        decoder = self.decoder
        texts = [m.raw for m in outer if m.raw is not None]
        inner: list[Message] | None = None
        joined = "\n".join(texts).encode()
        if joined.count(b"\n") == len(texts) - 1 and not repeats_a_key(joined):
            try:
                inner = DECODER.decode_lines(joined)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                inner = None
            if inner is not None and len(inner) != len(texts):
                inner = None
        messages: list[Message] = []
        keep: list[int] = []
        recv: list[int] = []
        sessions: list[int] = []
        numbers: list[int] = []
        kinds: list[int] = []
        at = -1
        for i, m in enumerate(outer):
            number = m.n if m.n is not None else int(n[i])
            if m.raw is None:
                message = m
            else:
                at += 1
                if m.kind not in _KINDS:
                    self.counts[str(m.kind)] += 1
                    continue
                if inner is not None:
                    message = inner[at]
                else:
                    try:
                        message = _decode_one(m.raw.encode())
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                        self.reject(int(lines[i]), number, reason_of(error))
                        continue
                if message.raw is not None:
                    self.reject(int(lines[i]), number, "wrapped twice")
                    continue
                if m.session is not None and m.session not in decoder.sessions and not is_name(m.session):
                    self.reject(int(lines[i]), number, "session is no name")
                    continue
                if m.ts is not None and not 0 <= m.ts < 9.2e9:
                    self.reject(int(lines[i]), number, "ts is no time in seconds")
                    continue
            messages.append(message)
            keep.append(i)
            numbers.append(number)
            kinds.append(FEED if m.raw is None else _KINDS[m.kind])
            # Microseconds are all that a float of today's seconds can hold.
            recv.append(int(NO_TIME) if m.ts is None else round(m.ts * 1e6) * 1000)
            sessions.append(decoder.session_index(m.session if m.session is not None else decoder.session))
        as_int = (np.array(x, np.int64) for x in (keep, numbers, sessions, recv))
        keep_, numbers_, sessions_, recv_ = as_int
        return messages, keep_, numbers_, sessions_, recv_, np.array(kinds, np.int8)

    def _fresh(self, n: NDArray[np.int64], session: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each message whether its number is greater than all before it in its session."""
        last = self.decoder.last_n
        fresh = np.ones(len(n), bool)
        indexes = set(session.tolist())
        if len(indexes) == 1 and n[0] > last.get(index := indexes.pop(), 0) and (n[1:] > n[:-1]).all():
            last[index] = int(n[-1])
            return fresh
        for index in set(session.tolist()):
            mine = np.flatnonzero(session == index)
            highest = np.maximum.accumulate(np.concatenate(([last.get(index, 0)], n[mine])))
            fresh[mine] = n[mine] > highest[:-1]
            last[index] = int(highest[-1])
        if not fresh.all():
            self.counts["duplicate"] += int((~fresh).sum())
        return fresh

    def _unseen(self, chunk: Chunk) -> Chunk:
        """Drop messages whose number was seen in their session."""
        fresh = self._fresh(chunk.n, chunk.session)
        if fresh.all():
            return chunk
        kept = np.flatnonzero(fresh)
        return Chunk(
            [chunk.messages[i] for i in kept],
            chunk.n[kept],
            chunk.session[kept],
            chunk.recv_ns[kept],
            chunk.lines[kept],
            chunk.kind[kept],
        )


def _unread_type(line: bytes) -> str:
    """Return the type of a line that nobody reads, whatever its fields hold; empty where it is one that is read."""
    try:
        head = HEAD.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    name = head.type or head.channel or ""
    return "" if name in _READ_TYPES or head.raw is not msgspec.UNSET else name


def _decode_one(line: bytes) -> Message:
    """Decode one message, and refuse one that names a key twice."""
    message = DECODER.decode(line)
    if repeats_a_key(line):
        raise msgspec.ValidationError("a key stands twice")
    return message
