"""From labels to spikes: usable rows, blocks on the clock, a tau per product from the training block alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InsufficientDataError
from ingestion.kernel.label import percentile_tau
from training.options import TrainOptions
from training.splits import BLOCKS, Split, chronological


@dataclass(frozen=True, slots=True)
class Spikes:
    """Rows that models learn from and are tested on.

    Attributes
    ----------
    frame
        The usable rows of :func:`training.labels.labels` that lie in a block, with block, tau (as sigma_fwd) and
        spike (bool), in the order of time.
    split
        Blocks on the clock.
    tau
        Threshold per product.
    refused
        Reason per product that was left out.
    """

    frame: pl.DataFrame
    split: Split
    tau: dict[str, float]
    refused: dict[str, str]

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows, spikes and episodes per block."""
        out = {}
        for name in BLOCKS:
            part = self.frame.filter(pl.col("block") == name)
            out[name] = {
                "rows": part.height,
                "spikes": int(part["spike"].sum()),
                "episodes": episodes(part),
                "start_ns": self.split[name].start_ns,
                "end_ns": self.split[name].end_ns,
            }
        return out


def spikes(labels: pl.DataFrame, options: TrainOptions) -> Spikes:
    """Choose the usable rows, split them in time and mark the spikes.

    Raises
    ------
    InsufficientDataError
        If no row is usable, a block would be empty, or no product has a threshold.
    """
    usable = labels.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= options.min_coverage_s))
    if usable.is_empty():
        labelled = labels["sigma_fwd"].is_not_null().sum()
        longest = labels.select(pl.col("coverage_s").max()).item()
        raise InsufficientDataError(
            f"no usable row: {labelled} of {labels.height} grid rows have a label, none of them coverage_s >= "
            f"{options.min_coverage_s:g} (the longest is {longest}); replay a longer tape or lower --min-coverage"
        )
    split = chronological(usable["event_time_ns"].to_numpy(), options.ratios)
    t = usable["event_time_ns"].to_numpy()
    held = [split[name].holds(t) for name in BLOCKS]
    block = np.select(held, BLOCKS, "lost")
    frame = usable.with_columns(pl.Series("block", block)).filter(pl.col("block") != "lost")
    tau, refused = thresholds(frame, options)
    if not tau:
        reasons = "; ".join(refused.values())
        raise InsufficientDataError(f"no product is left to train on: {reasons}")
    frame = (
        frame.filter(pl.col("product_id").is_in(list(tau)))
        .with_columns(tau=pl.col("product_id").replace_strict(tau, return_dtype=pl.Float64))
        .with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau"))
    )
    return Spikes(frame, split, tau, refused)


def thresholds(frame: pl.DataFrame, options: TrainOptions) -> tuple[dict[str, float], dict[str, str]]:
    """Find tau for each product from its training block; a product that has none is refused, the others go on."""
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


def check(frame: pl.DataFrame, blocks: Sequence[str] = BLOCKS) -> None:
    """Refuse rows that nothing can be learned from or measured on.

    Parameters
    ----------
    frame
        As :class:`Spikes` has it.
    blocks
        Blocks to look at.

    Raises
    ------
    InsufficientDataError
        If a block is empty, has no spike, or has nothing but spikes.
    """
    for name in blocks:
        part = frame.filter(pl.col("block") == name)
        found = int(part["spike"].sum())
        if found == 0 or found == part.height:
            raise InsufficientDataError(
                f"{name} block has {found} spikes in {part.height} rows, must have at least 1 spike and 1 other row; "
                "replay a longer tape, move the ratios, or lower --threshold-percentile"
            )


def episodes(frame: pl.DataFrame) -> int:
    """Count separate spike episodes: spike rows of one product no more than a horizon apart are one.

    Examples
    --------
    >>> rows = {"product_id": ["A"] * 3, "event_time_ns": [0, 60 * 10**9, 200 * 10**9], "spike": [True] * 3}
    >>> episodes(pl.DataFrame(rows))
    2
    """
    total = 0
    for part in frame.filter(pl.col("spike")).partition_by("product_id"):
        t: NDArray[np.int64] = np.sort(part["event_time_ns"].to_numpy())
        total += 1 + int((np.diff(t) > HORIZON_S * 1_000_000_000).sum())
    return total
