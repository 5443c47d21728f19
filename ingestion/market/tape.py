"""A generated market as a tape: the file that ``replay`` reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import zstandard

from feature_repo.errors import StoreError, UsageError
from ingestion.market.generator import PRODUCTS, START_NS, generate, session_id
from ingestion.market.parameters import DEFAULT, Parameters

Form = Literal["envelope", "raw"]
_SUFFIXES = (".ndjson", ".zst")
_LINES = 1_000
"""Lines handed to the compressor at once: a call a line costs a tenth of the whole."""


@dataclass(frozen=True, slots=True)
class TapeSummary:
    """What was written.

    Attributes
    ----------
    path
        The file.
    session
        Its session id; begins with ``5eed``, as that of every generated tape.
    seed
        Seed it was made from.
    seconds
        Length in event time.
    messages
        Lines.
    by_type
        Lines by message type.
    by_product
        Lines by product; the subscriptions message belongs to "".
    bytes_raw
        Size before compression.
    """

    path: Path
    session: str
    seed: int
    seconds: int
    messages: int
    by_type: dict[str, int]
    by_product: dict[str, int]
    bytes_raw: int


def tape_name(seed: int, seconds: int, products: Sequence[str] = PRODUCTS) -> str:
    """Return the file name that says what a generated tape is.

    Examples
    --------
    >>> tape_name(7, 3600, ["BTC-USD"])
    'generated_seed7_BTC-USD_3600s.ndjson.zst'
    """
    return f"generated_seed{seed}_{'_'.join(products)}_{seconds}s.ndjson.zst"


def write_tape(
    path: Path,
    *,
    seed: int,
    seconds: int,
    products: Sequence[str] = PRODUCTS,
    start_ns: int = START_NS,
    form: Form = "envelope",
    parameters: Parameters = DEFAULT,
) -> TapeSummary:
    """Write a generated tape under a temporary name, then rename it.

    Parameters
    ----------
    path
        A file, compressed where its name ends in ``.zst``; or a folder (there already, or a name without suffix), in
        which :func:`tape_name` names it.
    seed, seconds, products, start_ns, parameters
        As for :func:`ingestion.market.generator.generate`.
    form
        ``envelope``: ``{"ts","pair","session","n","kind","dialect","raw"}`` lines; ``raw``: the messages alone.

    Returns
    -------
    TapeSummary
        Of the file.

    Raises
    ------
    UsageError
        If an argument is out of its range, or the file's name says something else than it will hold.
    StoreError
        If the file can't be written; nothing is left behind.
    """
    if form not in ("envelope", "raw"):
        raise UsageError(f"form must be envelope or raw, was {form!r}: choose one of them")
    messages = generate(seed=seed, seconds=seconds, products=products, start_ns=start_ns, parameters=parameters)
    session = session_id(seed=seed, seconds=seconds, products=products, start_ns=start_ns, parameters=parameters)
    if path.is_dir() or not path.suffix:
        path = path / tape_name(seed, seconds, products)
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"a tape's name must end in {' or '.join(_SUFFIXES)}, was {path.name}: its readers go by it")
    types: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    size, lines = 0, list[bytes]()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writer(part, path.suffix == ".zst") as out:
            for n, (recv_ns, product, raw) in enumerate(messages, start=1):
                types[raw[9 : raw.index(b'"', 9)].decode()] += 1
                pairs[product] += 1
                lines.append(raw + b"\n" if form == "raw" else _envelope(recv_ns, product, session, n, raw))
                if len(lines) == _LINES:
                    size += out.write(b"".join(lines))
                    lines.clear()
            size += out.write(b"".join(lines))
        part.replace(path)
    except OSError as error:
        raise StoreError(f"tape {path} could not be written ({error}): free space or choose another place") from error
    finally:
        if part.exists():
            part.unlink()
    return TapeSummary(path, session, seed, seconds, sum(types.values()), dict(types), dict(pairs), size)


def _envelope(recv_ns: int, product: str, session: str, n: int, raw: bytes) -> bytes:
    us = recv_ns // 1_000
    head = (
        f'{{"ts":{us // 1_000_000}.{us % 1_000_000:06d},"pair":"{product}","session":"{session}","n":{n},'
        f'"kind":"feed","dialect":"exchange","raw":"'
    )
    return b"".join((head.encode(), raw.replace(b'"', b'\\"'), b'"}\n'))


@contextmanager
def _writer(path: Path, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("wb", buffering=1 << 20) as file:
        if not compress:
            yield file
            return
        # One thread and no time stamp: equal bytes wherever the same zstd runs. Level 1 packs these lines as well as 3.
        with zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False, write_size=1 << 20) as packed:
            yield packed
