"""What makes a horizon a spike: tau per product from the training block, or per row from what had ended by then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from feature_repo.errors import InsufficientDataError
from ingestion.kernel.label import NS, percentile_tau
from training.options import TrainOptions
from training.rolling import REASONS, RollingRule, explain, rolling_tau
from training.rolling_state import encode, trailing


def fixed(frame: pl.DataFrame, options: TrainOptions) -> tuple[dict[str, float], dict[str, str]]:
    """Find tau for each product from its training block; a product that has none is refused, the others go on.

    Parameters
    ----------
    frame
        Rows with product_id, block and sigma_fwd.
    options
        Percentile, or absolute tau.

    Returns
    -------
    dict, dict
        Tau, and the reason of refusal, by product.
    """
    tau: dict[str, float] = {}
    refused: dict[str, str] = {}
    for product in sorted(frame["product_id"].unique()):
        mine = frame.filter((pl.col("product_id") == product) & (pl.col("block") == "train"))
        try:
            if options.tau is not None:
                tau[product] = options.tau
            else:
                tau[product] = percentile_tau(mine["sigma_fwd"].to_numpy(), options.percentile, product=product)
        except InsufficientDataError as error:
            refused[product] = str(error)
    return tau, refused


@dataclass(frozen=True, slots=True)
class Rolled:
    """Rows that have a rolling tau.

    Attributes
    ----------
    frame
        The rows with tau as a column, in their order.
    missing
        Rows without a tau, by product and reason (of :data:`training.rolling.REASONS`).
    refused
        Reason per product that has no row with one.
    """

    frame: pl.DataFrame
    missing: dict[str, dict[str, int]]
    refused: dict[str, str]


def rolling(usable: pl.DataFrame, rule: RollingRule) -> Rolled:
    """Give each usable row the tau of its time.

    Parameters
    ----------
    usable
        Rows with product_id, event_time_ns and sigma_fwd, no null; they are also what tau is the percentile of.
    rule
        As in :func:`training.rolling.rolling_tau`.
    """
    tau = np.full(usable.height, np.nan)
    missing: dict[str, dict[str, int]] = {}
    refused: dict[str, str] = {}
    t, sigma = usable["event_time_ns"].to_numpy(), usable["sigma_fwd"].to_numpy()
    for key, rows in usable.with_row_index("row").partition_by("product_id", as_dict=True).items():
        product, mine = str(key[0]), rows["row"].to_numpy()
        tau[mine], why = rolling_tau(t[mine], t[mine], sigma[mine], rule)
        counts = np.bincount(why, minlength=len(REASONS))
        missing[product] = {REASONS[i]: int(counts[i]) for i in range(1, len(REASONS)) if counts[i]}
        if counts[0] == 0:
            main = REASONS[1 + int(np.argmax(counts[1:]))]
            refused[product] = f"{product}: {explain(main, rule)}"
    frame = usable.with_columns(tau=pl.Series(tau)).filter(pl.col("tau").is_not_nan())
    return Rolled(frame, missing, refused)


def state(usable: pl.DataFrame, frame: pl.DataFrame, rule: RollingRule) -> bytes:
    """State of a rolling tau for the artefact: what has ended by the last row before the sealed block.

    Parameters
    ----------
    usable
        Rows that tau is the percentile of.
    frame
        Rows with block and product_id; those of train and validation say how far the state goes.
    rule
        As in :func:`rolling`.
    """
    states = {}
    for product in sorted(frame["product_id"].unique()):
        seen = frame.filter((pl.col("product_id") == product) & (pl.col("block") != "test"))["event_time_ns"]
        if seen.is_empty():
            continue
        now = int(seen.to_numpy().max())
        sealed = frame.filter((pl.col("product_id") == product) & (pl.col("block") == "test"))["event_time_ns"]
        mine = usable.filter(
            (pl.col("product_id") == product)
            & (pl.col("event_time_ns") + rule.horizon_s * NS <= now)
            & ~pl.col("event_time_ns").is_in(sealed.implode())
        )
        states[product] = trailing(mine["event_time_ns"].to_numpy(), mine["sigma_fwd"].to_numpy(), rule, now)
    return encode(states)
