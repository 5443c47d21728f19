"""Rows of a table, or one line that says which part of it is gone or cut off."""

from __future__ import annotations

import polars as pl

from feature_repo.errors import StoreError
from ingestion import tables


def collect(name: str, rows: pl.LazyFrame) -> pl.DataFrame:
    """Read what was asked of a table.

    Parameters
    ----------
    name
        Of the table, whose parts are looked at first: polars panics where one is shorter than the log says.
    rows
        As :func:`ingestion.tables.scan` gives them, filtered and cut as wanted.

    Raises
    ------
    StoreError
        If a part that the table's log names is gone or of another length.
    """
    for part in tables.parts(name):
        try:
            found = part.path.stat().st_size
        except OSError as error:
            raise StoreError(_said(name, f"{part.path} can't be read ({error.strerror})")) from error
        if found != part.size:
            raise StoreError(_said(name, f"{part.path} has {found} bytes of {part.size}"))
    return rows.collect()


def _said(name: str, what: str) -> str:
    return (
        f"table {name}: part {what}, must be there and whole: the table's log names it; restore it, or move the table "
        "away and replay the tapes"
    )
