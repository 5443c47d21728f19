"""Arrays of rows to Arrow tables, in the columns of the contract: NaN inside the kernel becomes null here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contract import FEATURES, QUOTE_COLUMNS, ROW_COLUMNS
from ingestion.kernel.step import (
    Q_CAUSE,
    Q_CREATED,
    Q_K,
    Q_KIND,
    Q_N,
    Q_SESSION,
    Q_T,
    R_CAUSE,
    R_CREATED,
    R_K,
    R_N,
    R_SESSION,
    R_T,
    R_TIME_US,
    R_TRIGGER,
)

_TIME = pa.timestamp("us", tz="UTC")
_TYPES = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64(), "timestamp": _TIME}
_TRIGGERS = pa.array(["ticker", "grid"])
_KINDS = pa.array(["quote", "gap_start", "gap_end"])

ROW_SCHEMA = pa.schema(
    [pa.field(c.name, _TYPES[c.dtype], nullable=True) for c in ROW_COLUMNS]
    + [pa.field(f.name, _TYPES[f.dtype]) for f in FEATURES]
)
"""Arrow schema of feature rows."""
QUOTE_SCHEMA = pa.schema([pa.field(c.name, _TYPES[c.dtype], nullable=True) for c in QUOTE_COLUMNS])
"""Arrow schema of quote rows."""


@dataclass(slots=True)
class Rows:
    """What a push made.

    Attributes
    ----------
    features
        Feature rows in the contract's columns, per product in log order.
    cause_n
        int64[rows], the message whose processing made each row.
    quotes
        Quote rows and the edges of gaps.
    quote_cause_n
        int64[quotes].
    """

    features: pa.Table
    cause_n: NDArray[np.int64]
    quotes: pa.Table
    quote_cause_n: NDArray[np.int64]


class Part(NamedTuple):
    """Rows of one product as the kernel makes them, in log order.

    Attributes
    ----------
    product_id
        The product.
    sessions
        Session ids that the integers point into; grows, never changes.
    ints
        int64[8, rows], rows ``R_*`` of :mod:`ingestion.kernel.step`.
    numbers
        float64[146, rows], the contract's features in order, NaN where null.
    quote_ints
        int64[7, quotes], rows ``Q_*``.
    quotes
        float64[4, quotes]: bid, ask, bid_size, ask_size.
    """

    product_id: str
    sessions: list[str]
    ints: NDArray[np.int64]
    numbers: NDArray[np.float64]
    quote_ints: NDArray[np.int64]
    quotes: NDArray[np.float64]


def joined(parts: Iterable[Part]) -> list[Part]:
    """Return the same rows, those of one product and one list of sessions in one part."""
    groups: dict[tuple[str, int], list[Part]] = defaultdict(list)
    for part in parts:
        groups[part.product_id, id(part.sessions)].append(part)
    return [some[0] if len(some) == 1 else _join(some) for some in groups.values()]


def _join(parts: Sequence[Part]) -> Part:
    arrays = zip(*(part[2:] for part in parts), strict=True)
    return Part(parts[0].product_id, parts[0].sessions, *(np.concatenate(some, axis=1) for some in arrays))


@dataclass(slots=True)
class LogRows:
    """What a push of the log made: a few arrays per product, of which tables are made later and many at a time.

    Attributes
    ----------
    parts
        Rows by product, of each in log order.
    """

    parts: list[Part]

    def tables(self) -> Rows:
        """Return the same as Arrow tables, what belongs to one product together."""
        parts = sorted(self.parts, key=lambda part: part.product_id)
        rows = [part for part in parts if part.ints.shape[1]]
        quotes = [part for part in parts if part.quote_ints.shape[1]]
        features, causes = ROW_SCHEMA.empty_table(), np.zeros(0, np.int64)
        made, quote_causes = QUOTE_SCHEMA.empty_table(), np.zeros(0, np.int64)
        if rows:
            ints, numbers = (np.concatenate(a, axis=1) for a in zip(*((p.ints, p.numbers) for p in rows), strict=True))
            products, words = _names(rows, [p.ints.shape[1] for p in rows], ints[R_SESSION])
            features, causes = feature_table(products, words, ints, numbers), cause_of_rows(ints)
        if quotes:
            pairs = zip(*((p.quote_ints, p.quotes) for p in quotes), strict=True)
            ints, numbers = (np.concatenate(a, axis=1) for a in pairs)
            products, words = _names(quotes, [p.quote_ints.shape[1] for p in quotes], ints[Q_SESSION])
            made, quote_causes = quote_table(products, words, ints, numbers), cause_of_quotes(ints)
        return Rows(features, causes, made, quote_causes)


def _names(parts: Sequence[Part], rows: Sequence[int], sessions: NDArray[np.int64]) -> tuple[pa.Array, list[str]]:
    """Return each row's product and the session ids of all parts, into which ``sessions`` point from now on."""
    words: list[str] = []
    base: dict[int, int] = {}
    for part in parts:
        if id(part.sessions) not in base:  # one list for all parts of a kernel, and each partition has a kernel
            base[id(part.sessions)] = len(words)
            words += part.sessions
    sessions += np.repeat([base[id(part.sessions)] for part in parts], rows)
    names = sorted({part.product_id for part in parts})
    codes = np.repeat([names.index(part.product_id) for part in parts], rows)
    return _text(codes, pa.array(names)), words


def _text(codes: NDArray[np.int64], words: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), words).cast(pa.string())


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    """Return the values without copying them, NaN as null."""
    # The least value is NaN where any is: one pass that makes nothing, as most columns of most blocks have no null.
    missing = np.isnan(values) if len(values) and np.isnan(values.min()) else None
    nulls = 0 if missing is None else int(np.count_nonzero(missing))
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(pa.float64(), len(values), [valid, pa.py_buffer(values)], nulls)


def _counter(values: NDArray[np.float64]) -> pa.Array:
    missing = np.isnan(values)
    if missing.any():
        return pa.array(np.where(missing, 0.0, values).astype(np.int64), mask=missing)
    return pa.array(values.astype(np.int64))


def feature_table(
    product: str | pa.Array, sessions: list[str], ints: NDArray[np.int64], numbers: NDArray[np.float64]
) -> pa.Table:
    """Return feature rows as Arrow.

    Parameters
    ----------
    product
        Product id of all rows, or of each.
    sessions
        Session ids that the rows point into.
    ints
        int64[8, rows].
    numbers
        float64[146, rows], NaN where null.
    """
    rows = ints.shape[1]
    columns = [
        pa.repeat(product, rows) if isinstance(product, str) else product,
        _text(ints[R_SESSION], pa.array(sessions)),
        pa.array(ints[R_N]),
        pa.array(ints[R_K].astype(np.int32)),
        _text(ints[R_TRIGGER], _TRIGGERS),
        pa.array(ints[R_TIME_US]).cast(_TIME),
        pa.array(ints[R_T]),
        pa.array(ints[R_CREATED] // 1000).cast(_TIME),
    ]
    for feature, values in zip(FEATURES, numbers, strict=True):
        columns.append(_counter(values) if feature.dtype == "int64" else _nullable(values))
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)


def quote_table(
    product: str | pa.Array, sessions: list[str], ints: NDArray[np.int64], numbers: NDArray[np.float64]
) -> pa.Table:
    """Return quote rows as Arrow as :func:`feature_table`; ``ints`` int64[7, rows], ``numbers`` float64[4, rows]."""
    rows = ints.shape[1]
    columns = [
        pa.repeat(product, rows) if isinstance(product, str) else product,
        _text(ints[Q_SESSION], pa.array(sessions)),
        pa.array(ints[Q_N]),
        pa.array(ints[Q_K].astype(np.int32)),
        _text(ints[Q_KIND], _KINDS),
        pa.array(ints[Q_T]),
        pa.array(ints[Q_CREATED] // 1000).cast(_TIME),
        *(_nullable(values) for values in numbers),
    ]
    return pa.Table.from_arrays(columns, schema=QUOTE_SCHEMA)


def cause_of_rows(ints: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the message that made each feature row."""
    return np.array(ints[R_CAUSE])


def cause_of_quotes(ints: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the message that made each quote row."""
    return np.array(ints[Q_CAUSE])
