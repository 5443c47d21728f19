"""One partition of the raw log on its way through the kernel.

::

    offsets   0 ──── mark ──────────── mark ──────────── resume ── next
                       ▲                                    ▲
                       │ newest mark ≥ 1,020 s old:         │ where a reader that has this state goes on: before the
                       │ where one without state begins     │ first chunk of a message whose last has not come
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

import msgspec

from feature_repo.contract import PURGE_S, service_hash
from feature_repo.errors import ContractError, InputError
from ingestion.kernel import Featurizer, LogRows, Options
from ingestion.topics import Envelope, Header, partition_of, read

FORMAT: Final = 2
REWIND_S: Final = PURGE_S + 60
"""How far back a reader without state begins: what windows and labels need, and a round of keyframes before it."""
MARK_S: Final = 30
"""Least distance of two marks; rounds of keyframes come every 60 s."""
_STATUS: Final = b'"status"'
_HEAD: Final = 64


class Logged(Protocol):
    """A message of the topic, as the Kafka client has it."""

    def key(self) -> bytes | None: ...  # noqa: D102
    def value(self) -> bytes | None: ...  # noqa: D102
    def offset(self) -> int | None: ...  # noqa: D102
    def headers(self) -> list[Header] | None: ...  # noqa: D102


class _Mark(NamedTuple):
    recv_ns: int
    offset: int


class Partition:
    """Reads one partition: joins chunks, runs the kernel, knows from where another could go on.

    Parameters
    ----------
    index, count
        Which partition of how many; only its products are kept.
    options
        What rows to make.
    start
        Offset of the first message that it will be given.
    """

    def __init__(self, index: int, count: int, options: Options | None = None, start: int = 0) -> None:
        self.index = index
        self.count = count
        self.counts: Counter[str] = Counter()
        self.featurizer = Featurizer(options=options, keeps=self._keeps)
        self._next = start
        self._held: list[tuple[int, Envelope]] = []
        self._marks: deque[_Mark] = deque([_Mark(0, start)])

    def _keeps(self, product: str) -> bool:
        return partition_of(product, self.count) == self.index

    @property
    def resume(self) -> int:
        """Offset where a reader with this state goes on."""
        return self._held[0][0] if self._held else self._next

    @property
    def rewind(self) -> int:
        """Offset where a reader without this state begins, so that its windows are full at :attr:`resume`."""
        return self._marks[0].offset

    def take(self, messages: Iterable[Logged]) -> LogRows:
        """Run messages of the topic, in their order, through the kernel.

        A message that carries no envelope is counted and passed over.
        """
        log: list[Envelope] = []
        for message in messages:
            offset = message.offset() or 0
            self._next = offset + 1
            try:
                envelope, part, parts = read(message.key(), message.value(), message.headers())
            except InputError:
                self.counts["malformed"] += 1
                self.counts["malformed: no envelope"] += 1
                continue
            if parts == 1 and not self._held:
                log.append(envelope)
            else:
                whole = self._join(offset, envelope, part, parts)
                if whole is None:
                    continue
                log.append(whole)
            if envelope.kind == "state" and _STATUS in envelope.raw[:_HEAD]:
                self._mark(_Mark(envelope.recv_ns, offset))
        return self.featurizer.push_log(log)

    def _join(self, offset: int, envelope: Envelope, part: int, parts: int) -> Envelope | None:
        """Hold chunks until the last has come; one that is cut short by another message is lost, and counted."""
        held = self._held
        follows = held and (envelope.session, envelope.n, part) == (held[0][1].session, held[0][1].n, len(held))
        if held and not follows:
            self.counts["chunks_lost"] += len(held)
            held.clear()
        if parts == 1:
            return envelope
        if part != len(held):
            self.counts["chunks_lost"] += 1
            return None
        held.append((offset, envelope))
        if part + 1 < parts:
            return None
        whole = envelope._replace(raw=b"".join(e.raw for _, e in held))
        held.clear()
        return whole

    def _mark(self, mark: _Mark) -> None:
        if mark.recv_ns < self._marks[-1].recv_ns + MARK_S * 1_000_000_000:
            return
        self._marks.append(mark)
        while len(self._marks) > 1 and self._marks[1].recv_ns <= mark.recv_ns - REWIND_S * 1_000_000_000:
            self._marks.popleft()

    def save(self) -> bytes:
        """Return all that :meth:`restore` needs, valid at :attr:`resume`."""
        contract = service_hash("spike_full_v1")
        marks = [tuple(mark) for mark in self._marks]
        state = self.featurizer.dump()
        return msgspec.msgpack.encode((FORMAT, contract, self.index, self.count, self.resume, marks, state))

    @classmethod
    def restore(cls, data: bytes, index: int, count: int) -> Partition:
        """Return the partition that :meth:`save` wrote.

        Raises
        ------
        ContractError
            If the bytes are none, of another contract, or of another partition.
        """
        try:
            form, contract, *which, resume, marks, state = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise ContractError(f"checkpoint: not a partition's state ({error}); the log is read again") from error
        wanted = (FORMAT, service_hash("spike_full_v1"), index, count)
        if (form, contract, *which) != wanted:
            raise ContractError(
                f"checkpoint: format, contract, partition and count were {(form, contract, *which)}, expected "
                f"{wanted}; the log is read again"
            )
        self = cls(index, count, start=resume)
        self.featurizer = Featurizer.load(state, keeps=self._keeps)
        self.featurizer.counts.clear()
        self._marks = deque(_Mark(*mark) for mark in marks)
        return self
