"""Which rows a table does not hold yet: by message number and, where some were pushed, by row id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from numpy.typing import NDArray

from feature_repo.contract import ROW_ID
from feature_repo.errors import ContractError
from ingestion.table_log import Key

NEVER: Final = int(np.iinfo(np.int64).min)
"""Message number before every message."""


class RowKeys:
    """Row -> (session, product), found once, so that each attempt to commit only compares numbers.

    Parameters
    ----------
    name
        Table, for messages.
    rows
        Rows to be written. Those of a table without ``session`` (outcomes) belong to their product's only session in
        ``versions``.
    cause_n
        int64[rows]: number of the message that produced each row.
    versions
        (session, product_id) -> last message number the rows cover.

    Raises
    ------
    ContractError
        If ``cause_n`` has another shape or type, or a row lies beyond ``versions``: it would be doubled by a repeat.
    """

    def __init__(self, name: str, rows: pa.Table, cause_n: NDArray[np.int64], versions: Mapping[Key, int]) -> None:
        if cause_n.shape != (rows.num_rows,) or cause_n.dtype != np.int64:
            raise ContractError(
                f"table {name}: cause_n was {cause_n.dtype}{list(cause_n.shape)}, expected int64[{rows.num_rows}]: one "
                "message number a row"
            )
        self._cause_n = cause_n
        self._sessions = sorted({session for session, _ in versions})
        self._products = sorted({product for _, product in versions})
        product = _codes(rows, "product_id", self._products)
        if "session" in rows.column_names:
            session = _codes(rows, "session", self._sessions)
        else:
            session = self._only_session(name, versions)[product]
        self._at = (session, product)
        outside = cause_n > self._per_row(versions)
        if outside.any():
            row = int(outside.argmax())
            product_id = rows.column("product_id")[row]
            raise ContractError(
                f"table {name}: cause_n of row {row} ({product_id}) was {cause_n[row]}, expected at most its "
                "session's and product's number in versions; pass the last message of each session and product"
            )

    def newer_than(self, held: Mapping[Key, int]) -> NDArray[np.bool_]:
        """bool[rows]: the row is not covered by ``held``."""
        return self._cause_n > self._per_row(held)

    def _only_session(self, name: str, versions: Mapping[Key, int]) -> NDArray[np.int64]:
        if len(versions) != len(self._products):
            raise ContractError(
                f"table {name}: versions named {len(versions)} sessions for {len(self._products)} products, expected "
                "one each, as the table has no session column; append each session by itself"
            )
        at = {product: self._sessions.index(session) for session, product in versions}
        return np.array([*(at[p] for p in self._products), -1], np.int64)

    def _per_row(self, n: Mapping[Key, int]) -> NDArray[np.int64]:
        # One row and column more for the index −1: what versions doesn't name.
        grid = np.full((len(self._sessions) + 1, len(self._products) + 1), NEVER, np.int64)
        for s, session in enumerate(self._sessions):
            for p, product in enumerate(self._products):
                grid[s, p] = n.get((session, product), NEVER)
        return grid[self._at]


def not_pushed(table: DeltaTable, rows: pa.Table, pushed: Mapping[Key, int]) -> NDArray[np.bool_]:
    """Tell of each row that no push brought it.

    Parameters
    ----------
    table
        The table at the version that the commit is checked against.
    rows
        Rows to be written.
    pushed
        (session, product_id) of which rows were pushed; where there is none, nothing is read.

    Returns
    -------
    bool[rows]
    """
    mine = {session for session, _ in pushed} & set(pc.unique(rows.column("session")).to_pylist() if pushed else ())
    if not mine:
        return np.ones(rows.num_rows, bool)
    import polars as pl  # seldom: see scan

    ids = [pl.col(name).cast(pl.String) if name in ("product_id", "session") else pl.col(name) for name in ROW_ID]
    there = pl.scan_delta(table).filter(pl.col("session").is_in(mine)).select(ids).collect()
    given = pl.DataFrame(pl.from_arrow(rows.select(list(ROW_ID)))).select(ids)
    known = given.with_row_index().join(there, on=list(ROW_ID), how="semi")
    fresh = np.ones(rows.num_rows, bool)
    fresh[known["index"].to_numpy()] = False
    return fresh


def _codes(rows: pa.Table, column: str, names: list[str]) -> NDArray[np.int64]:
    found = pc.index_in(rows.column(column).cast(pa.string()), value_set=pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(), np.int64)
