"""Features and labels recomputed from the tape, with the future cut off.

The tape is given to the featurizer in small pieces, and in some stretches line by line: what a row holds can then only
come from lines that stand before it, or from the one line that showed its second to be over::

    lines   ──────────────┬─┬─┬─┬─┬─┬──────────────┬─┬─┬─┬─┬─┬────────
              one piece   │ │ │ │ │ │   one piece  │ │ │ │ │ │
                          line by line: each row is taken before the next line is read
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contract import BY_NAME
from ingestion.kernel import Featurizer, Options
from ingestion.tapes import SUFFIXES, Tape, foreign_session, own_session, read_lines
from training.audit.evidence import KEYS, Evidence
from training.audit.features import compare
from training.audit.findings import Finding
from training.audit.labels import against

PIECE: Final = 1_000
"""Lines in a piece: a minute or so of one product, so that not even a piece shows a row its whole horizon twice."""
SINGLE: Final = 200
"""Lines taken one by one in each :data:`EVERY`."""
EVERY: Final = 20_000
"""Lines from one stretch taken line by line to the next."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the tapes of one session give: grid rows, quotes, and how many rows were made line by line."""

    table: pl.DataFrame
    quotes: pl.DataFrame
    singly: int


def tape(e: Evidence) -> Iterator[Finding]:
    """Replay the tapes of the run's sessions, and compare its features and labels with what they give."""
    sessions = sorted(e.rows["session"].unique())
    streams = _streams(e, sessions)
    lost = [s for s in sessions if s not in streams]
    if lost:
        yield Finding(
            "TAPE",
            "unchecked",
            f"tapes of {len(lost)} of {len(sessions)} sessions are not there any more ({', '.join(lost[:3])}): their "
            "features and labels can't be recomputed with the future cut off",
        )
    products = frozenset(e.rows["product_id"].unique().to_list())
    for session, tapes in streams.items():
        yield from _session(e, session, replayed(session, tapes, products))


def _session(e: Evidence, session: str, again: Replayed) -> Iterator[Finding]:
    rows = np.flatnonzero((e.rows["session"] == session).to_numpy())
    keys = e.rows[rows.tolist()].select(KEYS)
    numbered = again.table.select(*KEYS, pl.col("coverage_s").alias("again")).with_row_index("at")
    found = keys.join(numbered, on=list(KEYS), how="left", maintain_order="left")
    if e.table is not None and "coverage_s" in e.table.columns:
        # where the tape's beginning is gone the windows of its first rows are shorter than they were
        before = e.table.select(*KEYS, "coverage_s").unique(KEYS)
        found = found.join(before, on=list(KEYS), how="left", maintain_order="left")
        found = found.with_columns(pl.when(pl.col("again") >= pl.col("coverage_s")).then(pl.col("at")).alias("at"))
    known = found["at"].is_not_null().to_numpy()
    if known.mean() < 0.5:
        yield Finding(
            "TAPE",
            "unchecked",
            f"the tape of session {session} gives only {known.sum():,} of {len(rows):,} rows of the run: it is not "
            "whole",
        )
    if not known.any():
        return
    at = found["at"].drop_nulls().to_numpy().astype(np.int64)
    some: NDArray[np.bool_] = np.asarray(
        np.isfinite(e.x[rows]).any(axis=0)
    )  # a window that replay was told to leave out is null throughout
    columns = [name for i, name in enumerate(e.features) if some[i] and name in BY_NAME]
    source = f"the tape of session {session}, replayed with the future cut off ({again.singly:,} rows line by line)"
    yield from compare(e, rows[known], again.table, at, columns, source)
    part = replace(e, rows=e.rows[rows[known].tolist()], x=e.x[rows[known]])
    yield from against(part, again.quotes, f"the tape of session {session}")


def replayed(session: str, tapes: Sequence[Tape], products: frozenset[str]) -> Replayed:
    """Run the tapes of one session through the featurizer in small pieces.

    Parameters
    ----------
    session
        Session of lines that carry none.
    tapes
        In order.
    products
        Products to keep.
    """
    stream = Featurizer(session, Options(products=products))
    tables: list[pa.Table] = []
    quotes: list[pa.Table] = []
    singly = 0
    for piece, single in _pieces(tapes):
        made = stream.push_lines(piece)
        if made.features.num_rows:
            tables.append(made.features)
            singly += single * made.features.num_rows
        if made.quotes.num_rows:
            quotes.append(made.quotes)
    empty = stream.push_lines(b"")
    table, series = (pl.from_arrow(pa.concat_tables([first, *rest])) for first, rest in (
        (empty.features, tables), (empty.quotes, quotes)))  # fmt: skip
    assert isinstance(table, pl.DataFrame) and isinstance(series, pl.DataFrame)  # noqa: S101  # of tables
    return Replayed(table.filter(pl.col("trigger") == "grid"), series, singly)


def _pieces(tapes: Sequence[Tape]) -> Iterator[tuple[bytes, bool]]:
    """Yield pieces of whole lines, and whether each is a single line."""
    line = 0
    for one in tapes:
        for block in read_lines(one):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
            if not len(ends) or ends[-1] != len(block):
                ends = np.append(ends, len(block))
            start, at = 0, 0
            while at < len(ends):
                place = line % EVERY
                lines = 1 if place < SINGLE else min(PIECE, EVERY - place)
                at = min(at + lines, len(ends))
                piece = block[start : ends[at - 1]]
                line += 1 if lines == 1 else piece.count(b"\n") or 1
                yield piece, lines == 1
                start = int(ends[at - 1])


def _streams(e: Evidence, sessions: Sequence[str]) -> dict[str, list[Tape]]:
    """Tapes that are there, by the session they belong to, in the order of their names."""
    out: dict[str, list[Tape]] = {}
    for path in sorted(e.tapes):
        if not path.name.endswith(SUFFIXES) or not path.is_file():
            continue
        found = Tape(path, path.stat().st_size)
        session = own_session(found) or foreign_session(found)
        if session in sessions:
            out.setdefault(session, []).append(found)
    return out
