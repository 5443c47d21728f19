"""The featurizer's loop: a member of a consumer group that takes batches of the log through the kernel.

::

    consume ──► Partition.take ──► OnlineSink   newest row per product, at once
                     │         ──► Publisher    every row, 20 times a second
                     └─ gathered ──► Committer  every 10 s or 8,000 rows: tables, offset, checkpoint

A partition that is taken away is committed first, so that its next owner finds all; a partition that is taken over goes
on from its checkpoint, else from the offset to rewind to, else from where the log begins.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from feature_repo.contract import VIEW
from feature_repo.errors import ContractError, StoreError
from ingestion import kafka, tables
from ingestion.featurize.checkpoint import Checkpoints
from ingestion.featurize.committer import Committer, Work
from ingestion.featurize.online_sink import OnlineSink
from ingestion.featurize.partition import Partition
from ingestion.featurize.publisher import Held, ProducerLost, Publisher
from ingestion.kernel import Options, Part

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message, TopicPartition

BATCH: Final = 2_000
"""Most messages taken at once: what the kernel turns into rows between two looks at the clock."""
BEHIND: Final = 500
"""Messages at once that say that the log is longer than was read: half a second of a busy market."""
COMMIT_ROWS: Final = 8_000
"""Rows after which a commit is begun early: bounds memory (10 MB, and twice that while they are written)."""
MOST_ROWS: Final = 2 * COMMIT_ROWS
"""Rows gathered at most: while the tables can't be written, reading stops here."""
FILL_S: Final = 0.02
"""Wait for a full batch while behind: many small ones cost more than they save."""
IDLE_S: Final = 0.1
"""Longest wait for a message: how often the loop looks at its clock in a quiet market."""
END_S: Final = 30.0
"""Bound on the last commits: where they can't be made in that time, the next worker reads that stretch again."""
TWINS_S: Final = 60.0
"""A member that is fenced twice within this time has a twin: another worker under its static id."""
OUTAGE_S: Final = 120.0
"""Bound on asking the broker where a partition begins and what was committed of it: it may die while it gives one."""


@dataclass(slots=True)
class Summary:
    """What a featurizer did.

    Attributes
    ----------
    messages
        Messages of the log.
    rows, quotes
        Rows made.
    seconds
        Wall time.
    cpu_s
        Processor time of the process.
    counts
        What was counted on the way: by the kernel, the sinks and the commits.
    partitions
        Partitions at the end.
    """

    messages: int = 0
    rows: int = 0
    quotes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    partitions: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {
            "messages": self.messages,
            "rows": self.rows,
            "quotes": self.quotes,
            "seconds": self.seconds,
            "cpu_s": self.cpu_s,
            "messages_per_s": self.messages / self.seconds if self.seconds else 0.0,
            "counts": dict(self.counts),
            "partitions": self.partitions,
        }


class Worker:
    """A featurizer.

    Parameters
    ----------
    join
        Makes a member of the group, not subscribed yet; called again where the last one was fenced.
    topic, partitions
        The raw log and how many partitions it has.
    publisher, online, checkpoints
        Where rows and state go.
    commit_every_s, checkpoint_every_s
        Seconds between commits, and between checkpoints.
    options
        What rows to make.
    """

    def __init__(
        self,
        join: Callable[[], Consumer],
        topic: str,
        partitions: int,
        *,
        publisher: Publisher,
        online: OnlineSink,
        checkpoints: Checkpoints,
        commit_every_s: float,
        checkpoint_every_s: float,
        options: Options | None = None,
    ) -> None:
        self._join = join
        self._stop: Callable[[], bool] = lambda: False
        self._stop_seen_at: float | None = None
        self._consumer = join()
        self._joined_again_at: float | None = None
        self._topic = topic
        self._count = partitions
        self._publisher = publisher
        self._online = online
        self._checkpoints = checkpoints
        self._options = options
        self._commit_every_s = commit_every_s
        self._checkpoint_every_s = checkpoint_every_s
        self._committer = Committer(publisher.flush, checkpoints.write, self._overdue)
        self._mine: dict[int, Partition] = {}
        self._held_rows: Held = {}
        self._held_quotes: Held = {}
        self._work = Work()
        self._gathered = 0
        self._committed_at = self._saved_at = time.monotonic()
        self._paused = False
        self._ended = False
        self._behind = False
        self._log = structlog.get_logger("featurize")
        self.summary = Summary()

    def run(self, stop: Callable[[], bool], max_messages: int | None = None) -> Summary:
        """Take messages until told to stop, or until that many were taken; all is committed then.

        Raises
        ------
        StoreError
            If another member has this one's static id, the tables can't be written, or the topics' producer can't go on
            (`ProducerLost`), as after an outage of 5 minutes.
        """
        began, cpu = time.perf_counter(), time.process_time()
        self._stop = stop
        self._subscribe()
        try:
            while not stop() and (max_messages is None or self.summary.messages < max_messages):
                left = BATCH if max_messages is None else min(BATCH, max_messages - self.summary.messages)
                try:
                    messages = self._consume(left)
                except ProducerLost:  # met in a rebalance; joining again doesn't mend it
                    raise
                except kafka.ClientLost as lost:
                    self._join_again(lost)
                    continue
                self._take(messages)
                self._publish_when_due()
                self._commit_when_due()
            self._settle(END_S)  # the commit under way may wait for a broker that is gone
            self._commit(list(self._mine), save=True)
            self._settle(END_S)
        finally:
            self._ended = True
            self._committer.close()
            self.summary.partitions = sorted(self._mine)
            self._forget(self.summary.partitions)
            self._consumer.close()
            self._online.close()
            self._sum_up()
            self.summary.seconds = time.perf_counter() - began
            self.summary.cpu_s = time.process_time() - cpu
        return self.summary

    def _overdue(self) -> bool:
        """Whether it was told to stop so long ago that a commit must not hold it any longer, wherever it waits."""
        if not self._stop():
            return False
        self._stop_seen_at = self._stop_seen_at or time.monotonic()
        return time.monotonic() - self._stop_seen_at >= END_S

    # Reading

    def _consume(self, most: int) -> list[Message]:
        """Wait for a message, then take what else is there; only one that is behind waits for many at once."""
        with kafka.lost_if_fatal():
            due_s = self._publisher.due_at - time.monotonic()
            # The client counts in whole milliseconds: what is left of one would be waited for in a busy loop.
            first = self._consumer.poll(min(IDLE_S, max(0.0, due_s) + 0.001))
            if first is None:
                return []
            messages = [first]
            if most > 1:
                messages += self._consumer.consume(most - 1, FILL_S if self._behind else 0)
        self._behind = len(messages) > BEHIND
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            else:
                kafka.raise_if_fatal(error)
                self._log.warning("consume", error=error.str())
        return good

    def _take(self, messages: Sequence[Message]) -> None:
        by_partition: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            by_partition[message.partition() or 0].append(message)
        self.summary.messages += len(messages)
        for index, some in by_partition.items():
            if index in self._mine:
                self._spread(self._mine[index].take(some).parts, behind=self._behind)

    def _spread(self, parts: Sequence[Part], *, behind: bool) -> None:
        self._online.take(parts, behind=behind)
        self._publisher.gather(parts)
        for part in parts:
            rows, quotes = part.ints.shape[1], part.quote_ints.shape[1]
            self.summary.rows += rows
            self.summary.quotes += quotes
            self._gathered += rows + quotes // 8
        self._work.parts.extend(parts)

    # Committing

    def _publish_when_due(self) -> None:
        if time.monotonic() >= self._publisher.due_at:
            self._publisher.send(self._held_rows, self._held_quotes)

    def _commit_when_due(self) -> None:
        now = time.monotonic()
        full = self._gathered >= COMMIT_ROWS
        if not self._committer.busy:
            self._settle(wait=False)
        if (full or now - self._committed_at >= self._commit_every_s) and not self._committer.busy:
            save = now - self._saved_at >= self._checkpoint_every_s
            self._commit(list(self._mine), save=save)
        self._pause(self._gathered >= MOST_ROWS)

    def _commit(self, indexes: Sequence[int], *, save: bool) -> None:
        """Begin to make lasting all that was gathered, and how far these partitions were read."""
        self._publisher.send(self._held_rows, self._held_quotes)
        self._settle()
        work, self._work, self._gathered = self._work, Work(), 0
        for index in self._mine:
            work.versions.update(self._mine[index].featurizer.last_n())
        for index in indexes:
            mine = self._mine[index]
            work.offsets[index] = mine.resume, mine.rewind
            if save:
                work.saves[index] = mine.save()
        self._committed_at = time.monotonic()
        if save:
            self._saved_at = self._committed_at
        if work.parts or work.offsets:
            self._committer.begin(work)

    def _settle(self, timeout_s: float | None = None, *, wait: bool = True) -> None:
        """Have the commit under way end, and commit its offsets; ``wait`` for the broker's answer to these."""
        done = self._committer.finish(timeout_s)
        if done is not None:
            self._commit_offsets(done.offsets, wait=wait)

    def _commit_offsets(self, offsets: Mapping[int, tuple[int, int]], *, wait: bool) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        said = [
            TopicPartition(self._topic, p, resume, metadata=msgspec.json.encode({"rewind": rewind}).decode())
            for p, (resume, rewind) in offsets.items()
        ]
        if not said:
            return
        try:
            if wait:
                self._consumer.commit(offsets=said, asynchronous=False)
            else:
                self._consumer.commit(offsets=said, asynchronous=True)
        except KafkaException as error:
            # The tables know what they hold: an offset that stays behind costs a little reading.
            self.summary.counts["offset_failures"] += 1
            self._log.warning("offsets", error=str(error))

    def _pause(self, full: bool) -> None:
        """Stop or go on reading: while the tables can't be written, rows must not pile up."""
        if full == self._paused:
            return
        there = self._consumer.assignment()
        (self._consumer.pause if full else self._consumer.resume)(there)
        self._paused = full
        self.summary.counts["pauses"] += full

    # Members come and go

    def _subscribe(self) -> None:
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _join_again(self, lost: kafka.ClientLost) -> None:
        """Go on as a new member: a broker that comes back after a crash may fence the only one that there is.

        librdkafka forgets its member id when an outage outlasts the session, and what it then sends under the static id
        alone, such as an offset that waited, is another member's to the broker. Of two workers that share a static id
        the one that was fenced first is fenced again, and ends.
        """
        now = time.monotonic()
        if self._joined_again_at is not None and now - self._joined_again_at < TWINS_S:
            raise lost
        self._joined_again_at = now
        self._log.warning("fenced", error=str(lost), then="joining again")
        self.summary.counts["fenced"] += 1
        self._give_up(list(self._mine), END_S)
        self._consumer.close()
        self._consumer, self._paused = self._join(), False
        self._subscribe()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._ended:  # a rebalance that ends while the client is closed: they go to another at once
            consumer.incremental_assign(partitions)
            return
        self._held_rows = tables.last_n(VIEW)
        self._held_quotes = tables.last_n("quotes")
        for partition in partitions:
            index = partition.partition
            try:
                self._mine[index], how = self._take_over(index)
            except StoreError:
                if self._stop():  # told to end while the broker was gone: nothing is read from it any more
                    break
                raise
            partition.offset = self._mine[index].resume
            self._log.info("partition", partition=index, offset=partition.offset, by=how)
            self.summary.counts[f"taken over by {how}"] += 1
        consumer.incremental_assign(partitions)
        if self._paused:
            consumer.pause(partitions)

    def _ask(self, question: Callable[[float], kafka.Answer]) -> kafka.Answer:
        return kafka.patiently(question, OUTAGE_S, self._stop)

    def _take_over(self, index: int) -> tuple[Partition, str]:
        """Return the partition where its last owner left it, or from as far back as is needed and there."""
        from confluent_kafka import TopicPartition

        here = TopicPartition(self._topic, index)
        low, high = self._ask(lambda left_s: self._consumer.get_watermark_offsets(here, left_s))
        state = self._checkpoints.read(index)
        if state is not None:
            try:
                found = Partition.restore(state, index, self._count)
            except ContractError as error:
                self._log.warning("checkpoint", partition=index, error=str(error))
            else:
                if low <= found.resume <= max(high, low):
                    return found, "checkpoint"
                self._log.warning("checkpoint", partition=index, offset=found.resume, log=[low, high])
        committed = self._ask(lambda left_s: self._consumer.committed([here], left_s))[0]
        start, how = low, "the log's beginning"
        if committed.offset >= 0 and committed.metadata:
            rewind = _rewind_of(committed.metadata)
            if rewind is not None and low <= rewind <= high:
                start, how = rewind, "rewinding"
        return Partition(index, self._count, self._options, start), how

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [p.partition for p in partitions if p.partition in self._mine]
        if gone:
            self._commit(gone, save=True)
            self._settle()
            self._forget(gone)
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_up([p.partition for p in partitions if p.partition in self._mine])

    def _give_up(self, gone: Sequence[int], timeout_s: float | None = None) -> None:
        """Another member has them already: what was gathered may be committed, their offsets and states may not."""
        if gone:
            self._committer.finish(timeout_s)  # nor the offsets of the commit under way
            self._commit([], save=False)
            self._committer.finish(timeout_s)
            self._forget(gone)
            self.summary.counts["partitions_lost"] += len(gone)

    def _forget(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            partition = self._mine.pop(index, None)
            if partition is not None:
                self._count_in(partition)

    def _count_in(self, partition: Partition) -> None:
        self.summary.counts.update(partition.counts)
        self.summary.counts.update(partition.featurizer.counts)

    def _sum_up(self) -> None:
        for more in (self._publisher.counts, self._online.counts, self._committer.counts):
            self.summary.counts.update(more)


def _rewind_of(metadata: str) -> int | None:
    """Return the offset to rewind to that a commit's metadata says; None where somebody else's tool wrote it."""
    try:
        return msgspec.json.decode(metadata.encode(), type=dict[str, int]).get("rewind")
    except msgspec.MsgspecError:
        return None
