"""Point-in-time joins: for each asked (key, time), the newest feature row that could have been known.

::

    feature rows of one key   ──●────●──────●●───────●────►  event time
                                             │└ same event time: the greatest created timestamp wins,
                                             │  of those the greatest row id, of those the row written last
    asked                     ──────────────────▲─────────
                                     ◄── ttl ──►│            a row exactly ttl old still counts

The join answers with row numbers, not with rows: features are fetched by number afterwards, a few columns at a time
(:mod:`feature_repo.retrieval`), so a join of a million rows by 146 columns never holds the table twice. It works on
one key (one product) at a time: a stable sort, then a binary search for each asked time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

TIME = "__time"
"""Name of the column of times, int64 nanoseconds, in both frames."""
CREATED = "__created"
"""Name of the column of created timestamps, int64 nanoseconds, in the frame of feature rows; may be missing."""
_GROUP = "__group"
_NONE = -1
_UNKNOWN = np.iinfo(np.int64).min

Ints = NDArray[np.int64]


def asof_rows(
    asked: pl.DataFrame,
    rows: pl.DataFrame,
    keys: Sequence[str],
    *,
    ttl_ns: int | None = None,
    created_cut: bool = False,
    ties: Sequence[str] = (),
) -> pl.Series:
    """Find, for each asked key and time, the number of the feature row that was valid then.

    Parameters
    ----------
    asked
        Columns ``keys`` and :data:`TIME`, in any order of rows, duplicates allowed.
    rows
        Columns ``keys``, :data:`TIME` and, where the source has one, :data:`CREATED`, in the order they were written.
    keys
        Join keys; none for a view without entity.
    ttl_ns
        Greatest age in ns, included; None or 0 for no bound.
    created_cut
        Leave out rows created after the asked time, and rows of unknown creation.
    ties
        Integer columns of ``rows`` that decide between rows equal in key, time and creation: the greatest wins, the
        first column before the second. A table whose files have no order needs them to answer always the same.

    Returns
    -------
    polars.Series
        Int64, one per row of ``asked`` in its order: an index into ``rows``, null where no row was valid. A null key or
        time matches nothing.
    """
    answer = np.full(asked.height, _NONE, np.int64)
    if not asked.height or not rows.height:
        return _nulls(answer)
    asked_time, row_time = _ints(asked, TIME), _ints(rows, TIME)
    created = _ints(rows, CREATED) if CREATED in rows.columns else np.full(rows.height, _UNKNOWN)
    finer = [_ints(rows, name) for name in ties]
    for here, there in _groups(asked, rows, list(keys)):
        for values in reversed(finer):
            there = there[np.argsort(values[there], kind="stable")]
        since, best = _known(there, row_time, created, created_cut and CREATED in rows.columns)
        at = np.searchsorted(since, asked_time[here], side="right") - 1
        found = at >= 0
        here, chosen = here[found], best[at[found]]
        if ttl_ns:
            fresh = asked_time[here] - row_time[chosen] <= ttl_ns
            here, chosen = here[fresh], chosen[fresh]
        answer[here] = chosen
    return _nulls(answer)


def _known(there: Ints, time: Ints, created: Ints, created_cut: bool) -> tuple[Ints, Ints]:
    """Times from which the rows ``there`` of one key are known, ascending, and the best row from each on.

    Equal times are left in: the search from the right ends on the last of them, which the sort made the best.
    """
    # Stable: among equals the row written last stays last. Tables are mostly in order, where this costs one pass.
    there = there[np.argsort(created[there], kind="stable")]
    there = there[np.argsort(time[there], kind="stable")]
    if not created_cut:
        return time[there], there
    there = there[created[there] != _UNKNOWN]
    since = np.maximum(time[there], created[there])
    order = np.argsort(since, kind="stable")
    return since[order], there[np.maximum.accumulate(order)] if order.size else there


def _groups(asked: pl.DataFrame, rows: pl.DataFrame, keys: list[str]) -> Iterator[tuple[Ints, Ints]]:
    """Row numbers of ``asked`` and of ``rows`` for each key that stands in both, rising in each."""
    names = rows.select(keys).unique(maintain_order=True).drop_nulls().with_row_index(_GROUP)
    count = names.height if keys else 1

    def numbers(side: pl.DataFrame) -> list[Ints]:
        side = side.select([*keys, TIME])
        one = side.with_columns(pl.lit(0, pl.UInt32).alias(_GROUP))
        grouped = side.join(names, on=keys, how="left", maintain_order="left") if keys else one
        known = pl.when(pl.col(TIME).is_not_null()).then(pl.col(_GROUP)).fill_null(count)
        return _split(grouped.select(known.alias(_GROUP)).to_series().to_numpy(), count)

    for here, there in zip(numbers(asked), numbers(rows), strict=True):
        if here.size and there.size:
            yield here, there


def _split(group: NDArray[np.uint32], count: int) -> list[Ints]:
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(count + 1, dtype=np.uint32))
    return [order[a:b] for a, b in pairwise(ends)]


def _ints(frame: pl.DataFrame, name: str) -> Ints:
    return frame.get_column(name).cast(pl.Int64).fill_null(_UNKNOWN).to_numpy()


def _nulls(answer: Ints) -> pl.Series:
    return pl.Series(answer).replace(_NONE, None)
