"""Rows of ``ticks.features`` and ``ticks.quotes`` as bytes and back.

A Kafka message holds one or more rows of one product and one session, back to back, of fixed width, little-endian, in
log order; its key is the product, its headers are ``session``, ``schema`` and ``rows``. A reader that doesn't know the
schema can tell before it reads a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import FEATURE_NAMES, service_hash
from feature_repo.errors import ContractError
from ingestion.kernel.rows import Part
from ingestion.kernel.step import (
    Q_CREATED,
    Q_K,
    Q_KIND,
    Q_N,
    Q_SESSION,
    Q_T,
    R_CREATED,
    R_K,
    R_N,
    R_SESSION,
    R_T,
    R_TIME_US,
    R_TRIGGER,
)
from ingestion.topics import Header

FEATURE_ROW: Final = np.dtype(
    [
        ("n", "<i8"),
        ("k", "<i4"),
        ("trigger", "<i4"),  # 0 ticker, 1 grid
        ("row_time_us", "<i8"),
        ("event_time_ns", "<i8"),
        ("created_us", "<i8"),
        ("features", "<f8", (len(FEATURE_NAMES),)),  # in the contract's order; NaN is null
    ]
)
"""A row of ``ticks.features``."""
QUOTE_ROW: Final = np.dtype(
    [
        ("n", "<i8"),
        ("k", "<i4"),
        ("kind", "<i4"),  # 0 quote, 1 gap_start, 2 gap_end
        ("event_time_ns", "<i8"),
        ("created_us", "<i8"),
        ("quote", "<f8", (4,)),  # bid, ask, bid_size, ask_size; NaN is null
    ]
)
"""A row of ``ticks.quotes``."""
FEATURE_SCHEMA: Final = f"features-1-{service_hash('spike_full_v1')}".encode()
QUOTE_SCHEMA: Final = b"quotes-1"
MAX_ROWS: Final = 400
"""Rows in a message: 400 of 146 features are half of the megabyte that brokers take."""


class Wire(NamedTuple):
    """One Kafka message of rows."""

    key: bytes
    value: bytes
    headers: list[Header]


def feature_messages(part: Part, since: int = 0) -> Iterator[Wire]:
    """Encode a part's feature rows.

    Parameters
    ----------
    part
        Rows of one product.
    since
        Index of the first row to send.
    """
    ints = part.ints
    rows = np.empty(ints.shape[1], FEATURE_ROW)
    rows["n"], rows["k"], rows["trigger"] = ints[R_N], ints[R_K], ints[R_TRIGGER]
    rows["row_time_us"], rows["event_time_ns"] = ints[R_TIME_US], ints[R_T]
    rows["created_us"] = ints[R_CREATED] // 1000
    rows["features"] = part.numbers.T
    return _messages(part, ints[R_SESSION], rows, since, FEATURE_SCHEMA)


def quote_messages(part: Part, since: int = 0) -> Iterator[Wire]:
    """Encode a part's quote rows; parameters as for :func:`feature_messages`."""
    ints = part.quote_ints
    rows = np.empty(ints.shape[1], QUOTE_ROW)
    rows["n"], rows["k"], rows["kind"], rows["event_time_ns"] = ints[Q_N], ints[Q_K], ints[Q_KIND], ints[Q_T]
    rows["created_us"] = ints[Q_CREATED] // 1000
    rows["quote"] = part.quotes.T
    return _messages(part, ints[Q_SESSION], rows, since, QUOTE_SCHEMA)


def _messages(
    part: Part, sessions: NDArray[np.int64], rows: NDArray[np.void], since: int, schema: bytes
) -> Iterator[Wire]:
    starts = [since, *(i for i in (np.flatnonzero(np.diff(sessions)) + 1).tolist() if i > since), len(rows)]
    for begin, end in pairwise(starts):
        for at in range(begin, end, MAX_ROWS):
            some = rows[at : min(at + MAX_ROWS, end)]
            session = part.sessions[int(sessions[at])].encode()
            head = [("session", session), ("schema", schema), ("rows", b"%d" % len(some))]
            yield Wire(part.product_id.encode(), some.tobytes(), head)


def decode(value: bytes, headers: Sequence[tuple[str, Any]]) -> tuple[str, NDArray[np.void]]:
    """Decode a message of either topic.

    Returns
    -------
    tuple
        Session, and FEATURE_ROW[n] or QUOTE_ROW[n].

    Raises
    ------
    ContractError
        If its schema is another than this code's, or the value is no whole number of rows.
    """
    found = dict(headers)
    dtype = {FEATURE_SCHEMA: FEATURE_ROW, QUOTE_SCHEMA: QUOTE_ROW}.get(found.get("schema", b""))
    if dtype is None or not value or len(value) % dtype.itemsize:
        raise ContractError(
            f"rows: schema {found.get('schema')!r} with {len(value)} bytes; expected {FEATURE_SCHEMA!r} or "
            f"{QUOTE_SCHEMA!r}: run the same version of volspike on both sides of the topic"
        )
    return found["session"].decode(), np.frombuffer(value, dtype)
