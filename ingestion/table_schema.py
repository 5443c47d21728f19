"""Columns of the offline tables, and the check that rows fit them.

What goes into a table is exactly what the contract says: every column there, of its type, ids and times never null, and
a missing value null, never NaN.
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import FEATURES, QUOTE_COLUMNS, ROW_COLUMNS, TABLES, Column
from feature_repo.errors import ContractError


class TableColumn(NamedTuple):
    """One column of a table that the kernel does not make; like the contract's ``Column``, and may be a bool."""

    name: str
    dtype: Literal["string", "int64", "int32", "float64", "bool", "timestamp"]
    meaning: str
    nullable: bool = False


PREDICTION_COLUMNS: Final = (
    TableColumn("prediction_id", "string", "identity of the prediction; joins it to its outcome"),
    TableColumn("product_id", "string", "product"),
    TableColumn("session", "string", "connection of the scored row"),
    TableColumn("n", "int64", "message number of the scored row"),
    TableColumn("k", "int32", "index inside the message of the scored row"),
    TableColumn("event_time_ns", "int64", "t of the scored row, ns UTC; the horizon starts here"),
    TableColumn("created_timestamp", "timestamp", "when the prediction was made, µs UTC"),
    TableColumn("origin", "string", "scheduled or http"),
    TableColumn("model_name", "string", "registered model"),
    TableColumn("model_version", "string", "its version in the registry"),
    TableColumn("alias", "string", "role it was asked in: champion, challenger or baseline", nullable=True),
    TableColumn("spike_probability", "float64", "forecast; null where status says why there is none", nullable=True),
    TableColumn("spike", "bool", "spike_probability >= threshold", nullable=True),
    TableColumn("threshold", "float64", "decision threshold on the probability", nullable=True),
    TableColumn("tau", "float64", "spike threshold on sigma_fwd, per second log return", nullable=True),
    TableColumn("horizon_s", "int64", "seconds ahead, s"),
    TableColumn("status", "string", "ok, or why the forecast can't be trusted"),
)
"""Columns of ``predictions``."""

OUTCOME_COLUMNS: Final = (
    TableColumn("prediction_id", "string", "prediction that this grades"),
    TableColumn("product_id", "string", "product"),
    TableColumn("event_time_ns", "int64", "t of the scored row, ns UTC"),
    TableColumn("horizon_s", "int64", "seconds ahead, s"),
    TableColumn("sigma_fwd", "float64", "realised forward volatility; null where it has none", nullable=True),
    TableColumn("spike", "bool", "sigma_fwd >= tau", nullable=True),
    TableColumn("tau", "float64", "spike threshold that the prediction used", nullable=True),
    TableColumn("status", "string", "graded, or why it can't be"),
)
"""Columns of ``outcomes``."""

STATS_COLUMNS: Final = ("product_id", "session", "event_time_ns")
"""Columns whose least and greatest value per part stand in the log, so that readers skip parts.

No timestamp column: Delta writes their bounds in whole milliseconds, rounded down, which would hide the newest rows
of a part from a filter on microseconds.
"""

_ARROW: Final = {
    "string": pa.string(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_COLUMNS: Final[dict[str, tuple[Column | TableColumn, ...]]] = {
    "spike_features": ROW_COLUMNS,
    "quotes": QUOTE_COLUMNS,
    "predictions": PREDICTION_COLUMNS,
    "outcomes": OUTCOME_COLUMNS,
}


@cache
def schema(name: str) -> pa.Schema:
    """Arrow schema of a table, as the contract of this code has it.

    Parameters
    ----------
    name
        One of ``feature_repo.contract.TABLES``.

    Raises
    ------
    ContractError
        If there is no such table.

    Examples
    --------
    >>> schema("quotes").names[:4]
    ['product_id', 'session', 'n', 'k']
    """
    if name not in _COLUMNS:
        raise ContractError(f"no table named {name!r}; expected one of {', '.join(TABLES)}")
    fields = [pa.field(c.name, _ARROW[c.dtype], c.nullable) for c in _COLUMNS[name]]
    if name == "spike_features":
        fields += [pa.field(f.name, _ARROW[f.dtype]) for f in FEATURES]
    return pa.schema(fields)


def conform(name: str, rows: pa.Table) -> pa.Table:
    """Check rows against the table's schema and put their columns in its order.

    Strings may come as large or dictionary-encoded ones too; nothing else is converted.

    Parameters
    ----------
    name
        Table.
    rows
        Rows to be written.

    Returns
    -------
    pa.Table
        The same data (no copy but of large strings), columns in the schema's order.

    Raises
    ------
    ContractError
        If a column is missing, unknown, of another type, null where it can't be, or holds NaN or infinity.
    """
    expected = schema(name)
    there = set(rows.column_names)
    missing = [c for c in expected.names if c not in there]
    if missing:
        raise ContractError(
            f"table {name}: column {missing[0]} is missing ({len(missing)} in all); expected "
            f"{expected.field(missing[0]).type}; build the rows with ingestion.tables.schema({name!r})"
        )
    if rows.num_columns != len(expected):
        unknown = sorted(there.difference(expected.names)) or rows.column_names
        raise ContractError(
            f"table {name}: column {unknown[0]} was not expected, or stands twice; expected each of the "
            f"{len(expected)} columns of ingestion.tables.schema({name!r}) once"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        columns = {field.name: _column(name, field, rows.column(field.name)) for field in expected}
    return pa.table(columns)


def _column(name: str, field: pa.Field, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if values.type != field.type:
        if not (pa.types.is_string(field.type) and _is_text(values.type)):
            raise ContractError(
                f"table {name}: column {field.name} was {values.type}, expected {field.type}; cast it before writing"
            )
        if not pa.types.is_dictionary(values.type) or values.type.value_type != field.type:
            values = values.cast(field.type)
    if not field.nullable and values.null_count:
        raise ContractError(
            f"table {name}: column {field.name} had {values.null_count} nulls, expected none; a row without it has no "
            "identity or time, so drop it where it is made"
        )
    if pa.types.is_floating(field.type):
        _require_finite(name, field.name, values)
    return values


def _is_text(dtype: pa.DataType) -> bool:
    inner = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _require_finite(name: str, column: str, values: pa.ChunkedArray) -> None:
    for chunk in values.chunks:
        if len(chunk) == chunk.null_count:
            continue
        # The bytes under a null are arbitrary, often NaN, so only a doubtful buffer is looked at again with its nulls.
        raw = np.frombuffer(chunk.buffers()[1], np.float64, len(chunk), 8 * chunk.offset)
        # A sum is finite only if all that went into it is.
        total = raw.sum()
        if np.isfinite(total) or np.isfinite(raw).all() or pc.all(pc.is_finite(chunk)).as_py():
            continue
        row = pc.index(pc.fill_null(pc.is_finite(chunk), True), False).as_py()
        raise ContractError(
            f"table {name}: column {column} was {chunk[row].as_py()}, expected a finite number or null; a missing "
            "value is null, and infinity is an error of whoever computed it"
        )
