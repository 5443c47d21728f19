"""Tapes on disk: which files there are, and their lines in chunks, whatever wraps or damages them."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

import msgspec
import zstandard

from feature_repo.errors import InputError

SUFFIXES: Final = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz", ".ndjson.zst", ".jsonl.zst")
_BLOCK: Final = 1 << 23
"""Bytes read at once: what 20,000 tickers make is worth a few large arrays."""


@dataclass(frozen=True, slots=True)
class Tape:
    """One file of messages.

    Attributes
    ----------
    path
        The file.
    size
        Bytes on disk.
    """

    path: Path
    size: int


def find_tapes(paths: Sequence[Path]) -> list[Tape]:
    """Return the tapes that files and folders name, folders in order of their file names.

    Raises
    ------
    InputError
        If a path does not exist, is no tape by its name, or a folder holds none.
    """
    tapes: list[Tape] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
            if not found:
                raise InputError(f"{path} holds no tape; expected files that end in {', '.join(SUFFIXES)}")
        elif path.exists():
            if not path.name.endswith(SUFFIXES):
                raise InputError(f"{path} is no tape by its name; expected one that ends in {', '.join(SUFFIXES)}")
            found = [path]
        else:
            raise InputError(f"{path} does not exist; name a tape or a folder of tapes")
        tapes.extend(Tape(p, p.stat().st_size) for p in found)
    return tapes


def _open(raw: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if name.endswith(".zst"):
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader, _BLOCK)
    return raw


def read_lines(
    tape: Tape, *, on_read: Callable[[int], None] = lambda _: None, on_damage: Callable[[str], None] = lambda _: None
) -> Iterator[bytes]:
    """Yield the tape's bytes in blocks that end at a line's end.

    Parameters
    ----------
    tape
        The tape.
    on_read
        Called with the bytes of the file read so far.
    on_damage
        Called with the reason where the compressed stream ends early or is broken; what came before is used.

    Raises
    ------
    InputError
        If the file can't be opened.
    """
    try:
        raw = tape.path.open("rb")
    except OSError as error:
        raise InputError(f"{tape.path} can't be read: {error.strerror}") from error
    with raw:
        stream = _open(raw, tape.path.name)
        carry: list[bytes] = []
        while True:
            try:
                block = stream.read(_BLOCK)
            except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, OSError) as error:
                on_damage(f"{tape.path.name}: {error}")
                block = b""
            on_read(raw.tell())
            if not block:
                break
            cut = block.rfind(b"\n") + 1
            if not cut:
                carry.append(block)
                continue
            yield b"".join((*carry, block[:cut]))
            carry = [block[cut:]]
        rest = b"".join(carry)
        if rest:
            yield rest


class _Head(msgspec.Struct):
    session: str | None = None


def own_session(tape: Tape) -> str | None:
    """Return the session that the tape's first line carries, None for a foreign tape."""
    for block in read_lines(tape):
        try:
            return msgspec.json.decode(block[: block.index(b"\n")] if b"\n" in block else block, type=_Head).session
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
    return None


def foreign_session(tape: Tape) -> str:
    """Return a foreign tape's session: the first 8 bytes of the sha256 of its uncompressed content, in hex."""
    digest = hashlib.sha256()
    for block in read_lines(tape):
        digest.update(block)
    return digest.hexdigest()[:16]
