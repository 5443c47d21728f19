"""What ``volspike label`` says: rows, nulls by reason, tau, and the share of spikes hour by hour, per product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from feature_repo.errors import InsufficientDataError
from training import thresholds
from training.labels import REASONS, labels_of
from training.options import TrainOptions
from training.spikes import spikes, usable_rows
from training.summary import utc

_HOUR_NS: Final = 3600 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class LabelView:
    """Labels and what can be said of them.

    Attributes
    ----------
    labels
        As :func:`training.labels.labels` gives them.
    marked
        Usable rows of all blocks with tau and spike, where there is a tau.
    products
        Per product: rows, labelled, usable, a count per reason of a null label, tau (of a rolling one the last before
        the sealed block), tau_low and tau_high (its range over the rows), without_tau (rows by reason), share (of
        spikes in the training block) and hours (hour, rows, spikes, share).
    reasons
        Why a product, or all, have no tau.
    """

    labels: pl.DataFrame
    marked: pl.DataFrame
    products: list[dict[str, Any]]
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"rows": self.labels.height, "products": self.products, "reasons": self.reasons}


def label_view(chosen: TrainOptions) -> LabelView:
    """Label everything and count.

    Raises
    ------
    InsufficientDataError
        If no row has a label.
    """
    frame = labels_of(chosen)
    if frame["sigma_fwd"].null_count() == frame.height:
        counts = {r: int((frame["null_reason"] == r).sum()) for r in REASONS}
        raise InsufficientDataError(
            f"none of {frame.height} grid rows has a label (nulls by reason: {counts}), at least 1 was needed; a label "
            f"takes {chosen.horizon_s} s of quotes after the row: replay a longer tape"
        )
    marked, tau, share, without, reasons = _marked(frame, chosen)
    return LabelView(frame, marked, _products(frame, marked, chosen, tau, share, without), reasons)


def _marked(
    frame: pl.DataFrame, chosen: TrainOptions
) -> tuple[pl.DataFrame, dict[str, float], dict[str, float], dict[str, dict[str, int]], list[str]]:
    """Usable rows with tau and spike; tau, share in training and rows without tau by product; reasons."""
    try:
        usable = usable_rows(frame, chosen)
    except InsufficientDataError as error:
        return _none(frame), {}, {}, {}, [str(error)]
    tau: dict[str, float] = {}
    share: dict[str, float] = {}
    try:
        found = spikes(frame, chosen)
        tau, reasons = found.tau, list(found.refused.values())
        train = found.frame.filter(pl.col("block") == "train")
        share = dict(train.group_by("product_id").agg(pl.col("spike").mean()).iter_rows())
    except InsufficientDataError as error:
        reasons = [str(error)]
    without: dict[str, dict[str, int]] = {}
    if chosen.rolling is not None:
        rolled = thresholds.rolling(usable, chosen.rolling)
        usable, without = rolled.frame, rolled.missing
    elif chosen.tau is not None:
        # needs no split, so that a tape too short for one still shows what an absolute tau makes of it
        tau = dict.fromkeys(sorted(usable["product_id"].unique()), chosen.tau)
        usable = usable.with_columns(tau=pl.lit(chosen.tau))
    else:
        usable = usable.filter(pl.col("product_id").is_in(list(tau))).with_columns(
            tau=pl.col("product_id").replace_strict(tau, default=None, return_dtype=pl.Float64)
        )
    return usable.with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau")), tau, share, without, reasons


def _none(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.clear().with_columns(tau=pl.lit(None, pl.Float64), spike=pl.lit(None, pl.Boolean))


def _products(
    frame: pl.DataFrame,
    marked: pl.DataFrame,
    chosen: TrainOptions,
    tau: dict[str, float],
    share: dict[str, float],
    without: dict[str, dict[str, int]],
) -> list[dict[str, Any]]:
    products = []
    for product in sorted(frame["product_id"].unique()):
        mine = frame.filter(pl.col("product_id") == product)
        rows = marked.filter(pl.col("product_id") == product)
        usable = mine.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= chosen.min_coverage_s))
        products.append(
            {
                "product": product,
                "rows": mine.height,
                "labelled": mine.height - mine["sigma_fwd"].null_count(),
                "usable": usable.height,
                **{reason: int((mine["null_reason"] == reason).sum()) for reason in REASONS},
                "tau": tau.get(product),
                "tau_low": rows["tau"].min(),
                "tau_high": rows["tau"].max(),
                "without_tau": without.get(product, {}),
                "share": share.get(product),
                "hours": hours(rows),
            }
        )
    return products


def hours(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Count rows and spikes by hour of the clock.

    Parameters
    ----------
    rows
        Rows with event_time_ns (int64, ns UTC) and spike.

    Returns
    -------
    list of dict
        hour (UTC), rows, spikes and share, in the order of time; hours without a row are left out.
    """
    counted = (
        rows.group_by(hour=pl.col("event_time_ns") // _HOUR_NS)
        .agg(rows=pl.len(), spikes=pl.col("spike").sum())
        .sort("hour")
    )
    return [
        {"hour": utc(hour * _HOUR_NS)[:16], "rows": n, "spikes": spikes, "share": spikes / n}
        for hour, n, spikes in counted.iter_rows()
    ]
