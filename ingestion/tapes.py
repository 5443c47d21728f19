"""Tapes on disk: which files there are, and their lines in chunks, whatever wraps or damages them."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import zstandard

from feature_repo.errors import InputError

SUFFIXES: Final = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz", ".ndjson.zst", ".jsonl.zst")
_BLOCK: Final = 1 << 23
"""Bytes read at once: what 20,000 tickers make is worth a few large arrays."""
_HASHED: Final = 1 << 18
"""Bytes hashed at once: they stay in the second-level cache."""
_PIECE: Final = 1 << 12
"""Compressed bytes taken at once: bounds what a file that blows up a thousandfold puts into memory."""
_DAMAGE: Final = (EOFError, zlib.error, zstandard.ZstdError, OSError)
_SESSION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


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


def _plain(raw: IO[bytes], name: str, block: int = _BLOCK) -> Iterator[bytes]:
    """Yield what the file holds, unwrapped; all that precedes a damage is yielded before it is raised."""
    if name.endswith(".gz"):
        return _unwrapped(raw, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16))
    if name.endswith(".zst"):
        return _unwrapped(raw, lambda: zstandard.ZstdDecompressor().decompressobj())
    return iter(lambda: raw.read(block), b"")


def _unwrapped(raw: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress members or frames one after the other; EOFError where the last is cut short."""
    stream = None
    while piece := raw.read(_PIECE):
        while piece:
            if stream is None:
                piece = piece.lstrip(b"\0")  # padding between or after members, as gzip has it
                if not piece:
                    break
                stream = new()
            yield stream.decompress(piece)
            piece = b""
            if stream.eof:
                piece, stream = stream.unused_data, None
    if stream is not None:
        raise EOFError("the compressed file ends early")


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join pieces to blocks; what was gathered before an error is yielded before it is raised."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            if not held and len(piece) >= _BLOCK:
                yield piece
                continue
            held.append(piece)
            size += len(piece)
            if size >= _BLOCK:
                yield b"".join(held)
                held, size = [], 0
    except _DAMAGE:
        if size:
            yield b"".join(held)
        raise
    if size:
        yield b"".join(held)


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
        blocks = _blocks(_plain(raw, tape.path.name))
        carry: list[bytes] = []
        while True:
            try:
                block = next(blocks, b"")
            except _DAMAGE as error:
                on_damage(f"{tape.path.name}: {error}")
                block = b""
            on_read(raw.tell())
            if not block:
                break
            cut = block.rfind(b"\n") + 1
            if not cut:
                carry.append(block)
                continue
            yield b"".join((*carry, memoryview(block)[:cut]))
            carry = [block[cut:]]
        rest = b"".join(carry)
        if rest:
            yield rest


class _Head(msgspec.Struct):
    session: str | None = None


def own_session(tape: Tape) -> str | None:
    """Return the session that the tape's first line carries, None for a foreign tape.

    Raises
    ------
    InputError
        If the session can't name a file or a stream of the tables.
    """
    for block in read_lines(tape):
        try:
            session = msgspec.json.decode(block.split(b"\n", 1)[0], type=_Head).session
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if session is not None and (not _SESSION.fullmatch(session) or not session.strip(".")):
            raise InputError(
                f"{tape.path}: session is {session[:80]!r} in line 1, must be 1 to 64 of A-Z a-z 0-9 . _ -, such as 16 "
                "hex digits; correct it or leave it out"
            )
        return session
    return None


def foreign_session(tape: Tape) -> str:
    """Return a foreign tape's session: the first 8 bytes of the sha256 of its uncompressed content, in hex."""
    digest = hashlib.sha256()
    try:
        with tape.path.open("rb") as raw, suppress(*_DAMAGE):  # a cut tape is what it holds
            for piece in _plain(raw, tape.path.name, _HASHED):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"{tape.path} can't be read: {error.strerror}") from error
    return digest.hexdigest()[:16]
