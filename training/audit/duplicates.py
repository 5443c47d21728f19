"""Duplicates: an example that stands in two blocks is an answer given away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from training.audit.evidence import KEYS, Evidence
from training.audit.findings import Finding

_TELLING = 4
"""Distinct numbers (finite, not 0) that a row must hold before an equal row elsewhere can't be chance: in a quiet
market counts and deviations repeat, averages over prices don't."""


def duplicates(e: Evidence) -> Iterator[Finding]:
    """Look for one row, or one moment, or one vector of features, in two blocks or twice in one."""
    for columns, what in ((list(KEYS), "row"), (["product_id", "event_time_ns"], "product and time")):
        found = _across(e.rows.select(*columns, "block"), columns)
        if found.height:
            first = found.row(0, named=True)
            yield Finding(
                "DUPLICATE_ACROSS_SPLIT",
                "leak",
                f"{found.height:,} times the same {what} stands in two blocks, e.g. "
                f"{', '.join(str(first[c]) for c in columns)} in {' and '.join(sorted(first['block']))}",
            )
            return
    yield from _repeated(e)
    yield from _vectors(e)


def _across(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    unique = frame.unique([*columns, "block"])
    return unique.group_by(columns).agg(pl.col("block")).filter(pl.col("block").list.len() > 1).sort(columns)


def _repeated(e: Evidence) -> Iterator[Finding]:
    twice = e.rows.height - e.rows.select(KEYS).n_unique()
    if twice:
        yield Finding(
            "DUPLICATE_ROWS",
            "leak",
            f"{twice:,} rows of the run stand in a block more than once; each message is one row (was it resampled "
            "before the split?)",
        )


def _vectors(e: Evidence) -> Iterator[Finding]:
    if len(e.features) < _TELLING:
        return
    hashed = pl.DataFrame(e.x, schema=list(map(str, range(e.x.shape[1])))).hash_rows()
    frame = e.rows.select("product_id", "block").with_columns(hashed.alias("hash")).with_row_index("row")
    shared = (
        frame.group_by("hash")
        .agg(pl.col("row"), pl.col("block").n_unique().alias("blocks"))
        .filter(pl.col("blocks") > 1)
        .sort(pl.col("row").list.first())
    )
    telling = []
    for rows in shared["row"].to_list():
        values = e.x[rows[0]]
        if len(np.unique(values[np.isfinite(values) & (values != 0)])) >= _TELLING:
            telling.append(rows)
    if telling:
        a, b = telling[0][0], telling[0][-1]
        yield Finding(
            "DUPLICATE_ACROSS_SPLIT",
            "leak",
            f"{len(telling):,} vectors of features stand in two blocks under different names, e.g. {e.where(a)} and "
            f"{e.where(b)}: copies of one example",
        )
