"""Replay: tapes through the kernel into the offline tables, each row once, however often it is run or interrupted."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import pyarrow.parquet as pq

from feature_repo.contract import VIEW
from feature_repo.errors import InputError, StoreError
from infra.settings import settings
from ingestion.appender import Appender
from ingestion.kernel import ROW_SCHEMA, Featurizer, Options, Rows
from ingestion.kernel.events import Reject
from ingestion.table_log import Key
from ingestion.tapes import Tape, find_tapes, foreign_session, own_session, read_lines

COMMIT_ROWS = 100_000
"""Rows in a commit: bounds what a killed replay has to do again, and makes parts that are worth opening."""


class Progress(Protocol):
    """What is told of how far a replay is."""

    def __call__(self, tape: Tape, read_bytes: int, messages: int) -> None:
        """Report bytes of this tape read so far and messages of all tapes taken so far."""


@dataclass(slots=True)
class Summary:
    """What a replay did.

    Attributes
    ----------
    tapes
        Files read.
    counts
        Messages by type, and what was set aside, by reason.
    rows, quotes
        Rows made by the kernel.
    rows_added, quotes_added
        Rows that the tables did not hold yet.
    sessions
        Session of each tape.
    seconds
        Wall time.
    damaged
        Tapes that end early or are broken, with the reason.
    dead_letters
        File of rejected messages, where there are any.
    """

    tapes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    quotes: int = 0
    rows_added: int = 0
    quotes_added: int = 0
    sessions: list[str] = field(default_factory=list)
    seconds: float = 0.0
    damaged: list[str] = field(default_factory=list)
    dead_letters: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {**asdict(self), "counts": dict(self.counts)}


class _Sink:
    """Writes rows as they come and commits them together with how far the stream has been taken.

    One thread writes what was made while the next is made; it is waited for before it is given more.
    """

    def __init__(self, features: Appender, quotes: Appender, plain: pq.ParquetWriter | None, summary: Summary) -> None:
        self.features = features
        self.quotes = quotes
        self.plain = plain
        self.summary = summary
        self._held = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tables")
        self._writing: Future[None] | None = None

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        # Waits for the writing, not for the thread, and over a second Ctrl-C too: whoever gives up what a thread still
        # writes gives up rows that it then commits the versions of.
        while self._writing is not None and not self._writing.done():
            with suppress(KeyboardInterrupt, SystemExit):
                wait([self._writing])
        self._thread.shutdown(wait=False)

    def take(self, rows: Rows, featurizer: Featurizer) -> None:
        self.summary.rows += rows.features.num_rows
        self.summary.quotes += rows.quotes.num_rows
        self._held += rows.features.num_rows + rows.quotes.num_rows // 8
        due = self._held >= COMMIT_ROWS
        self._held = 0 if due else self._held
        self._wait()
        self._writing = self._thread.submit(self._write, rows, featurizer.last_n(), due)

    def close(self, featurizer: Featurizer | None) -> None:
        """Commit the rest of a stream and take over its counts."""
        self._wait()
        if featurizer is not None:
            self._commit(featurizer.last_n())
            self._held = 0
            self.summary.counts.update(featurizer.counts)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, rows: Rows, versions: Mapping[Key, int], due: bool) -> None:
        if self.plain is not None and rows.features.num_rows:
            self.plain.write_table(rows.features)
        self.features.add(rows.features, rows.cause_n, versions)
        self.quotes.add(rows.quotes, rows.quote_cause_n, versions)
        if due:
            self._commit(versions)

    def _commit(self, versions: Mapping[Key, int]) -> None:
        """Commit what was written; a table that already holds it, or a part of it, has taken only the rest."""
        self.summary.rows_added += self.features.commit(versions)
        self.summary.quotes_added += self.quotes.commit(versions)


def replay(
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    options: Options | None = None,
    to: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run tapes through the kernel and add what they make to the offline tables.

    Foreign tapes are streams of their own. Tapes that carry sessions are one stream in the order given.

    Parameters
    ----------
    paths
        Files and folders of tapes.
    out
        Folder of the tables; None for the settings'.
    options
        What rows to make.
    to
        One plain parquet file that also gets all feature rows.
    progress
        Told how far it is.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        If a path is no tape, or no tape holds a message.
    StoreError
        If the tables can't be written.
    """
    began = time.perf_counter()
    summary = Summary()
    now_ns = time.time_ns()
    stream: Featurizer | None = None
    continued = False
    tapes = find_tapes(paths)
    with ExitStack() as stack:
        plain = None if to is None else stack.enter_context(_plain_file(to))
        dead = stack.enter_context(_DeadLetters(settings().data / "dead_letters"))
        features = stack.enter_context(Appender(VIEW, root=out))
        quotes = stack.enter_context(Appender("quotes", root=out))
        sink = stack.enter_context(_Sink(features, quotes, plain, summary))
        for tape in tapes:
            session = own_session(tape)
            if stream is None or session is None or not continued:
                sink.close(stream)
                stream = Featurizer(session or foreign_session(tape), options)
            continued = session is not None
            summary.tapes.append(str(tape.path))
            summary.sessions.append(session or stream.decoder.session)
            for data in _pieces(tape, stream, summary, progress):
                sink.take(stream.push_lines(data, now_ns=now_ns), stream)
                dead.take(tape, stream)
        sink.close(stream)
        summary.dead_letters = dead.name
    if not any(n for name, n in summary.counts.items() if not name.startswith(("malformed", "empty_line"))):
        why = summary.damaged or [name for name in summary.counts if name.startswith("malformed: ")][:3]
        kept = f"; the {summary.counts['malformed']:,} lines are in {dead.name}" if dead.name else ""
        raise InputError(
            f"{', '.join(map(str, paths))}: no message in it, must hold Coinbase messages, one JSON object a line; "
            f"{'; '.join(why) or 'it is empty'}{kept}"
        )
    summary.seconds = time.perf_counter() - began
    return summary


def _pieces(tape: Tape, stream: Featurizer, summary: Summary, progress: Progress | None) -> Iterator[bytes]:
    """Yield the tape in pieces of whole lines, and tell how far it is."""

    def told(read_bytes: int) -> None:
        if progress is not None:
            progress(tape, read_bytes, stream.decoder.line)

    yield from read_lines(tape, on_read=told, on_damage=summary.damaged.append)


@contextmanager
def _plain_file(path: Path) -> Iterator[pq.ParquetWriter]:
    """Write one parquet file under a temporary name; it gets its own when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with pq.ParquetWriter(unfinished, ROW_SCHEMA, compression="zstd", use_dictionary=False) as writer:
            yield writer
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}; free space or choose another place with --to") from error
    finally:
        unfinished.unlink(missing_ok=True)


class _DeadLetters:
    """Rejected messages, one file a session and tape: number, reason, and the bytes as they came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self.name: str | None = None

    def __enter__(self) -> _DeadLetters:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # all was flushed when it was taken, or that failed and was told
                file.close()

    def take(self, tape: Tape, stream: Featurizer) -> None:
        """Write down what the stream rejected since the last call."""
        rejects, stream.rejects = stream.rejects, []
        if not rejects:
            return
        try:
            self._write(tape, stream.decoder.session, rejects)
        except OSError as error:
            raise StoreError(
                f"rejected messages can't be kept in {self._folder}: {error.strerror or error}; free space or set "
                "VOLSPIKE_DATA to another place, and run again"
            ) from error

    def _write(self, tape: Tape, session: str, rejects: list[Reject]) -> None:
        name = f"{session}-{tape.path.name.split('.')[0]}.ndjson"
        if name not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / name
            self._files[name] = path.open("wb")
            self.name = str(path)
        for reject in rejects:
            try:
                line = {"line": reject.line.decode()}
            except UnicodeDecodeError:
                line = {"line_base64": base64.b64encode(reject.line).decode()}
            record = {"tape": tape.path.name, "n": reject.n, "reason": reject.reason, **line}
            self._files[name].write(msgspec.json.encode(record) + b"\n")
        self._files[name].flush()
