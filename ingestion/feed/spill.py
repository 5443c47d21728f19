"""Messages on disk while the broker is slow or gone: append-only segments, read back in order.

A record is a length (u32), a CRC-32 of the payload (u32) and the payload, an envelope as MessagePack. A segment that a
killed process left is read up to its first damaged record. The page cache is trusted: a killed process loses nothing,
a machine that loses power what it hadn't written.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from feature_repo.errors import StoreError
from ingestion.topics import Envelope

SEGMENT_BYTES: Final = 8 << 20
"""A segment is removed when all of it is acknowledged, so this bounds what is sent again after a restart."""
_HEAD: Final = struct.Struct("<II")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode


class Position(NamedTuple):
    """End of a record: number of its segment, and offset in it."""

    segment: int
    offset: int


class Spill:
    """One folder of segments, owned by one process.

    Parameters
    ----------
    folder
        Where the segments lie; what is there already is read first.
    limit_bytes
        Most bytes on disk.
    segment_bytes
        Size at which a new segment is begun.

    Raises
    ------
    StoreError
        If the folder can't be written, or another process owns it.
    """

    def __init__(self, folder: Path, limit_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder, self._limit, self._segment_bytes = folder, limit_bytes, segment_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"{folder} can't be written: {error.strerror}; set VOLSPIKE_DATA to a folder that can"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(
                f"{folder} is in use by another volspike ingest; stop it, or set VOLSPIKE_DATA to a folder of its own"
            ) from error
        self._sizes = {int(p.stem): p.stat().st_size for p in sorted(folder.glob("*.spill"))}
        self._write_to = max(self._sizes, default=0)
        self._out: int | None = None
        self._at = Position(min(self._sizes, default=self._write_to + 1), 0)
        self.damaged = 0
        """Segments of which a part could not be read."""

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    @property
    def pending(self) -> bool:
        """Whether there is something that :meth:`read` hasn't returned."""
        return any((n, size) > self._at and size for n, size in self._sizes.items())

    def append(self, envelopes: Sequence[Envelope]) -> list[Position]:
        """Write envelopes, all or none, and return where each ends.

        Raises
        ------
        OSError
            If the disk or the spill's own limit is full.
        """
        payloads = [_encode(e) for e in envelopes]
        data = b"".join(part for p in payloads for part in (_HEAD.pack(len(p), zlib.crc32(p)), p))
        if self.bytes + len(data) > self._limit:
            raise OSError(28, f"the spill holds its {self._limit >> 20} MB")
        out = self._out
        if out is None or self._sizes[self._write_to] >= self._segment_bytes:
            out = self._next_segment()
        offset = self._sizes[self._write_to]
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(out, view) :]
        except OSError:
            os.ftruncate(out, offset)
            raise
        positions = []
        for payload in payloads:
            offset += _HEAD.size + len(payload)
            positions.append(Position(self._write_to, offset))
        self._sizes[self._write_to] = offset
        return positions

    def read(self, most_bytes: int) -> list[tuple[Envelope, Position]]:
        """Return what comes next, about ``most_bytes`` of it, with the end of each record; empty at the end."""
        found: list[tuple[Envelope, Position]] = []
        while not found and self.pending:
            segment, offset = self._at
            size = self._sizes.get(segment, 0)
            if offset >= size:
                self._at = Position(min(n for n in self._sizes if n > segment), 0)
                continue
            found = self._read_from(segment, offset, size, most_bytes)
            if found:
                self._at = found[-1][1]
            else:
                self.damaged += 1
                self._at = Position(segment, size)
        return found

    def skip_all(self) -> None:
        """Take all that is there as read."""
        if self._sizes:
            last = max(self._sizes)
            self._at = Position(last, self._sizes[last])

    def unread(self) -> int:
        """Read to the end and return how many envelopes that were."""
        count = 0
        while self.pending:
            count += len(self.read(self._segment_bytes))
        return count

    def trim(self, done: Position) -> None:
        """Remove the segments that end at or before ``done``, but the one that is written."""
        for segment in [n for n in self._sizes if n < done.segment or (n == done.segment and n != self._write_to)]:
            if segment < done.segment or self._sizes[segment] <= done.offset:
                self._remove(segment)

    def clear(self) -> None:
        """Remove everything."""
        if self._out is not None:
            os.close(self._out)
            self._out = None
        for segment in list(self._sizes):
            self._remove(segment)
        self._at = Position(self._write_to + 1, 0)

    def close(self) -> None:
        """Give the folder back; what lies in it stays."""
        if self._out is not None:
            os.close(self._out)
            self._out = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:012d}.spill"

    def _next_segment(self) -> int:
        out = os.open(self._path(self._write_to + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        if self._out is not None:
            os.close(self._out)
        self._out = out
        self._write_to += 1
        self._sizes[self._write_to] = 0
        return out

    def _remove(self, segment: int) -> None:
        self._path(segment).unlink(missing_ok=True)
        del self._sizes[segment]

    def _read_from(self, segment: int, offset: int, size: int, most: int) -> list[tuple[Envelope, Position]]:
        with self._path(segment).open("rb") as file:
            file.seek(offset)
            data = file.read(size - offset)
        found: list[tuple[Envelope, Position]] = []
        at = 0
        while at + _HEAD.size <= len(data) and at < most:
            length, crc = _HEAD.unpack_from(data, at)
            payload = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(payload) < length or zlib.crc32(payload) != crc:
                break
            try:
                envelope = _decode(payload)
            except msgspec.MsgspecError:
                break
            at += _HEAD.size + length
            found.append((envelope, Position(segment, offset + at)))
        return found
