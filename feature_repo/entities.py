"""What was asked for: the entity table of a historical retrieval, in whichever form it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from feature_repo.asof import TIME
from feature_repo.errors import InputError
from feature_repo.retrieval import ViewColumns, between, nanoseconds

EVENT_TIMESTAMP = "event_timestamp"
"""Feast's name for the column of asked times; a table with exactly one column of times may call it otherwise."""


@dataclass(frozen=True)
class Entities:
    """The asked rows: ``table`` as it was given, and the name of its column of times."""

    table: pa.Table
    time: str

    def require(self, keys: Sequence[str]) -> None:
        """Refuse a table without one of the join keys.

        Raises
        ------
        InputError
            If a join key is missing.
        """
        missing = [key for key in keys if key not in self.table.column_names]
        if missing:
            raise InputError(f"entity_df: no column {missing}, only {self.table.column_names}; add the join keys")

    def asked(self, keys: Sequence[str]) -> pl.DataFrame:
        """Join keys and times (int64 ns, :data:`~feature_repo.asof.TIME`) of each row."""
        frame = pl.DataFrame(pl.from_arrow(self.table.select(list(dict.fromkeys([*keys, self.time])))))
        times = nanoseconds(frame.lazy(), self.time).alias(TIME)
        return frame.select([*(pl.col(key) for key in keys), times])

    def span(self) -> tuple[datetime | None, datetime | None]:
        """Least and greatest asked time."""
        times = pl.Series(self.table.column(self.time)).cast(pl.Datetime("us"))
        zoned = times.dt.replace_time_zone("UTC")
        return zoned.min(), zoned.max()  # type: ignore[return-value]


def given(entity_df: Any) -> Entities:
    """Take a pandas or polars frame or an Arrow table; rows, order and extra columns are kept.

    Raises
    ------
    InputError
        If it is SQL or of another type, or if its column of times can't be told.
    """
    if isinstance(entity_df, str):
        raise InputError(
            f"entity_df: SQL is not understood by this offline store, was {entity_df[:80]!r}; expected a data frame "
            f"with the join keys and {EVENT_TIMESTAMP}, or None with start_date and end_date"
        )
    if isinstance(entity_df, pl.DataFrame):
        table = entity_df.to_arrow(compat_level=pl.CompatLevel.oldest())
    elif isinstance(entity_df, pa.Table):
        table = entity_df
    else:
        table = _from_pandas(entity_df)
    if EVENT_TIMESTAMP in table.column_names:
        time = EVENT_TIMESTAMP
    else:
        times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
        if len(times) != 1:
            raise InputError(
                f"entity_df: no column {EVENT_TIMESTAMP} and {len(times)} other columns of times {times}; "
                f"name the one to join on {EVENT_TIMESTAMP}"
            )
        time = times[0]
    if not pa.types.is_timestamp(table.schema.field(time).type):
        kind = table.schema.field(time).type
        raise InputError(f"entity_df: column {time} holds {kind}; expected times, with a zone or in UTC")
    return Entities(table, time)


def _from_pandas(frame: Any) -> pa.Table:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"entity_df: expected a pandas or polars frame or an Arrow table, was {type(frame).__name__}")
    if EVENT_TIMESTAMP in frame.columns and not pd.api.types.is_datetime64_any_dtype(frame[EVENT_TIMESTAMP]):
        # Text, dates, or datetimes of several zones: pandas keeps those as objects.
        column = frame[EVENT_TIMESTAMP]
        if pd.api.types.is_numeric_dtype(column):
            raise InputError(f"entity_df: column {EVENT_TIMESTAMP} holds numbers ({column.dtype}); expected times")
        try:
            frame = frame.assign(**{EVENT_TIMESTAMP: pd.to_datetime(column, utc=True, format="ISO8601")})
        except (ValueError, TypeError) as error:
            raise InputError(f"entity_df: column {EVENT_TIMESTAMP} can't be read as ISO 8601 times: {error}") from None
    return pa.Table.from_pandas(frame, preserve_index=False)


def of_range(views: Sequence[ViewColumns], start: datetime, end: datetime) -> Entities:
    """Ask for every moment that a view has a row of: each key and event time in [start, end], once, in order.

    Raises
    ------
    InputError
        If the views have different join keys.
    """
    keys = {tuple(sorted(name for _, name in view.keys)) for view in views}
    if len(keys) != 1:
        raise InputError(f"entity_df: None with views of different join keys {sorted(keys)}; give an entity_df instead")
    parts = []
    for view in views:
        rows = between(view.rows, view.time, *(nanoseconds_of(moment) for moment in (start, end)))
        times = nanoseconds(view.rows, view.time).cast(pl.Datetime("ns", "UTC")).dt.cast_time_unit("us")
        parts.append(rows.select([*(pl.col(c).alias(n) for c, n in view.keys), times.alias(EVENT_TIMESTAMP)]).collect())
    moments = pl.concat(parts, how="diagonal_relaxed").unique().sort([EVENT_TIMESTAMP, *next(iter(keys))])
    return Entities(moments.to_arrow(compat_level=pl.CompatLevel.oldest()), EVENT_TIMESTAMP)


def nanoseconds_of(moment: datetime) -> int:
    """Nanoseconds since 1970 of a moment; without zone it is UTC. Exact, unlike ``timestamp()``."""
    from datetime import UTC, timedelta

    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
