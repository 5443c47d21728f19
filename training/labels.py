"""Labels for every grid row in the tables: ``sigma_fwd`` from the quote series, with the reason of each null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InsufficientDataError, UsageError
from ingestion import tables
from ingestion.kernel.label import OPEN, Returns, gap_meets, sigma_fwd
from training.options import TrainOptions
from training.sessions import choose, in_time

REASONS: Final = ("no_quote", "gap", "watermark")
"""Why a label is null: no quote at t; a gap meets the horizon; the log does not reach its end. First match wins."""
_GROUP = ("product_id", "session")


def gaps(quotes: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair the gap rows of one product in one session.

    Parameters
    ----------
    quotes
        Rows of the table ``quotes`` with n, k, kind and event_time_ns, any order.

    Returns
    -------
    int64[g], int64[g]
        Start and end, ns UTC; a gap that is still open ends at the greatest int64.
    """
    rows = quotes.filter(pl.col("kind") != "quote").sort("n", "k", "event_time_ns")
    starts: list[int] = []
    ends: list[int] = []
    begun: int | None = None
    events = list(rows.select("n", "k", "event_time_ns", "kind").iter_rows())
    while events:
        # Both edges may carry one message and one time; which of them comes first follows from the state.
        same = [e for e in events if e[:3] == events[0][:3]]
        wanted = "gap_start" if begun is None else "gap_end"
        event = next((e for e in same if e[3] == wanted), same[0])
        events.remove(event)
        if event[3] == wanted and begun is None:
            begun = event[2]
        elif event[3] == wanted and begun is not None:
            starts.append(begun)
            ends.append(event[2])
            begun = None
    if begun is not None:
        starts.append(begun)
        ends.append(OPEN)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def labels_of(options: TrainOptions, *, sessions: Sequence[str] = ()) -> pl.DataFrame:
    """Label all grid rows as the options say.

    Parameters
    ----------
    options
        Horizon, returns, sessions and products.
    sessions
        Used instead of the options' sessions, where given.

    Returns
    -------
    polars.DataFrame
        As :func:`labels`.

    Raises
    ------
    InsufficientDataError, UsageError
        As :func:`labels`.
    """
    return labels(
        sessions=sessions or options.used_sessions,
        exclude_products=options.exclude_products,
        horizon_s=options.horizon_s,
        returns=options.returns,
    )


def labels(
    *,
    sessions: Sequence[str] = (),
    exclude_products: Sequence[str] = (),
    horizon_s: int = HORIZON_S,
    returns: Returns = "1s",
) -> pl.DataFrame:
    """Label all grid rows of all products and sessions.

    Parameters
    ----------
    sessions
        Only these, named as in :func:`training.sessions.choose`; empty means all.
    exclude_products
        Products to leave out.
    horizon_s, returns
        As in :func:`ingestion.kernel.label.sigma_fwd`.

    Returns
    -------
    polars.DataFrame
        One row per grid row: product_id, session, n, k, row_time (µs UTC), event_time_ns (ns UTC), coverage_s (s),
        sigma_fwd (float64, null where there is no label) and null_reason (one of :data:`REASONS`, null where there is
        one), ordered by event_time_ns, product_id, session, n, −k. Of rows with one product and row_time, which only
        overlapping sessions have, the one Feast would return (created last) is kept.

    Raises
    ------
    InsufficientDataError
        If there is no grid row.
    StoreError
        If a part of the tables is gone or damaged.
    UsageError
        If a session or product is not in the tables.
    """
    rows = tables.collect(
        "spike_features",
        tables.scan("spike_features")
        .filter(pl.col("trigger") == "grid")
        .select(*_GROUP, "n", "k", "row_time", "event_time_ns", "created_timestamp", "coverage_s"),
    )
    if rows.is_empty():
        raise InsufficientDataError(
            "table spike_features holds no grid row, at least 1 was needed; run: volspike replay --raw PATH --every 1s"
        )
    rows = _chosen(rows, sessions, exclude_products)
    quotes = tables.collect(
        "quotes",
        tables.scan("quotes")
        .filter(pl.col("product_id").is_in(rows["product_id"].unique().to_list()))
        .select(*_GROUP, "n", "k", "kind", "event_time_ns", "bid", "ask"),
    ).partition_by(*_GROUP, as_dict=True)
    newest = {
        (product, session): time
        for product, session, time in tables.collect(
            "spike_features", tables.scan("spike_features").group_by(*_GROUP).agg(pl.col("event_time_ns").max())
        ).iter_rows()
    }
    parts = []
    for key, part in rows.partition_by(*_GROUP, as_dict=True).items():
        product, session = key
        parts.append(_label(part, quotes.get(key), newest[product, session], horizon_s, returns))
    return (
        pl.concat(parts)
        .sort("created_timestamp", "session", maintain_order=True)
        .unique(["product_id", "row_time"], keep="last", maintain_order=True)
        .drop("created_timestamp")
        .sort("event_time_ns", "product_id", "session", "n", -pl.col("k"))
    )


def _label(
    rows: pl.DataFrame, quotes: pl.DataFrame | None, newest_ns: int, horizon_s: int, returns: Returns
) -> pl.DataFrame:
    """Label the rows of one product in one session."""
    t = rows["event_time_ns"].to_numpy()
    none = np.empty(0, np.int64)
    times, bid, ask, starts, ends, watermark = none, none.astype(float), none.astype(float), none, none, newest_ns
    if quotes is not None:
        series = quotes.filter(pl.col("kind") == "quote").sort("n", "k", maintain_order=True)
        times, bid, ask = (series[c].to_numpy() for c in ("event_time_ns", "bid", "ask"))
        starts, ends = gaps(quotes)
        watermark = max(newest_ns, int(quotes["event_time_ns"].to_numpy().max()))
    sigma = sigma_fwd(t, times, bid, ask, starts, ends, watermark, horizon_s=horizon_s, returns=returns)
    no_quote = np.ones(len(t), np.bool_) if len(times) == 0 else t < times[0]
    reason = np.select([no_quote, gap_meets(t, starts, ends, horizon_s)], REASONS[:2], REASONS[2])
    return rows.with_columns(
        pl.Series("sigma_fwd", sigma).fill_nan(None),
        pl.when(pl.Series(np.isnan(sigma))).then(pl.Series(reason)).alias("null_reason"),
    )


def _chosen(rows: pl.DataFrame, sessions: Sequence[str], exclude: Sequence[str]) -> pl.DataFrame:
    there, known = sorted(rows["product_id"].unique()), in_time(rows.lazy())
    unknown = sorted(set(exclude) - set(there))
    if unknown:
        raise UsageError(f"--exclude-products names {unknown}, the tables hold {there}; leave out what is not there")
    if exclude:
        rows = rows.filter(~pl.col("product_id").is_in(list(exclude)))
    if sessions:
        rows = rows.filter(pl.col("session").is_in(choose(sessions, known, option="session")))
    if rows.is_empty():
        raise InsufficientDataError(f"no grid row is left of products {there} after the exclusion of {list(exclude)}")
    return rows
