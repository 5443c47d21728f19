"""Raw tapes of what goes to ``ticks.raw``: rotating ``.ndjson.zst`` files that survive a kill.

Each half second, or earlier where there is much, is one zstd frame written at once: a kill loses at most what is
younger, and what is there decompresses to its last byte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import zstandard

from feature_repo.errors import StoreError
from ingestion.feed.dropped import Dropped
from ingestion.topics import Envelope, tape_line

FRAME_S: Final = 0.5
FRAME_BYTES: Final = 1 << 18
"""Larger frames would hold up what follows for milliseconds."""


class Recorder:
    """Writes envelopes to tapes; owned by one thread.

    Parameters
    ----------
    folder
        Where the tapes lie; their names sort in time.
    tape_s
        Seconds after which a tape is closed and the next begun.

    Raises
    ------
    StoreError
        If the folder can't be written.
    """

    def __init__(self, folder: Path, tape_s: float) -> None:
        self._folder, self._tape_s = folder, tape_s
        self._lines: list[Envelope] = []
        self._size = 0
        self._since = 0.0
        self._file: int | None = None
        self._written = 0
        self._until = 0.0
        self._failing = False
        self._zstd = zstandard.ZstdCompressor(level=3)
        self._log = structlog.get_logger("ingest")
        self.dropped = Dropped()
        self.tapes: list[Path] = []
        self.lines = 0
        """Lines written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open(time.time())
        except OSError as error:
            raise StoreError(
                f"{folder} can't be written: {error.strerror}; set VOLSPIKE_DATA to a folder that can, or leave out "
                "--save-raw"
            ) from error

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """Take envelopes, in the order of the log."""
        if not envelopes:
            return
        if not self._lines:
            self._since = time.monotonic()
        self._lines += envelopes
        self._size += sum(len(e.raw) for e in envelopes)
        if self._size >= FRAME_BYTES:
            self.flush()

    def poll(self) -> None:
        """Write what is old enough, and change tapes when it is time."""
        if self._lines and time.monotonic() - self._since >= FRAME_S:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one frame."""
        held, self._lines, self._size = self._lines, [], 0
        held = [*self.dropped.take(), *held]
        if not held:
            return
        frame = self._zstd.compress(b"".join(map(tape_line, held)))
        now = time.time()
        try:
            if self._file is None or now >= self._until:
                self._file = self._open(now)
            self._write(self._file, frame)
        except OSError as error:
            if not self._failing:
                self._log.error("the tape can't be written; messages go on to the broker", error=error.strerror)
            self._failing = True
            self.dropped.add(held)
            return
        self._failing = False
        self.lines += len(held)

    def close(self) -> None:
        """Write what is held and close the tape."""
        self.flush()
        self._close()

    def _write(self, file: int, frame: bytes) -> None:
        try:
            view = memoryview(frame)
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            os.ftruncate(file, self._written)  # half a frame would hide what follows it
            raise
        self._written += len(frame)

    def _open(self, now: float) -> int:
        self._close()
        name = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._folder / f"{name}.ndjson.zst"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._written = 0
        self._until = now + self._tape_s
        self.tapes.append(path)
        return file

    def _close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            os.fsync(file)
        except OSError as error:
            self._log.error("the tape may not be on the disk", error=error.strerror)
        os.close(file)
        if not self._written:
            self.tapes.pop().unlink(missing_ok=True)
