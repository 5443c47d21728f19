"""The picture of ``volspike label``: volatility to come with tau, spikes per hour, and what has no label."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from training.label_view import LabelView
from training.labels import REASONS

MAX_PRODUCTS: Final = 20
"""Products drawn; a picture of more is too tall to look at. All are in the JSON."""
_MINUTE_NS: Final = 60 * 1_000_000_000


def draw(view: LabelView, path: Path) -> None:
    """Draw a row of three panels for each product.

    Parameters
    ----------
    view
        Labels and counts.
    path
        PNG to write; its folder is created if needed.
    """
    # The object interface keeps no global state and needs no display.
    from matplotlib.figure import Figure

    shown = view.products[:MAX_PRODUCTS]
    figure = Figure(figsize=(13, 0.6 + 2.4 * len(shown)), dpi=90, layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False, width_ratios=[5, 3, 2])
    for axes, said in zip(grid, shown, strict=True):
        mine = pl.col("product_id") == said["product"]
        _sigma(axes[0], said, view.labels.filter(mine), view.marked.filter(mine))
        _hours(axes[1], said)
        _nulls(axes[2], said)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _sigma(axes: Any, said: dict[str, Any], labels: pl.DataFrame, marked: pl.DataFrame) -> None:
    """Greatest sigma_fwd of each minute, so that a day is drawn as fast as an hour and no peak is lost."""
    minute = pl.col("event_time_ns") // _MINUTE_NS
    peaks = labels.drop_nulls("sigma_fwd").group_by(m=minute).agg(pl.col("sigma_fwd").max()).sort("m")
    # a minute without a label breaks the line
    whole = peaks.upsample("m", every="1i") if peaks.height > 1 else peaks
    axes.plot(_times(whole["m"]), whole["sigma_fwd"].to_numpy(), linewidth=0.8, color="tab:blue", label="sigma_fwd")
    tau = marked.group_by(m=minute).agg(pl.col("tau").last(), pl.col("spike").any()).sort("m")
    if tau.height:
        axes.plot(_times(tau["m"]), tau["tau"].to_numpy(), linewidth=1, color="tab:orange", label="tau")
        hit = tau.filter(pl.col("spike"))
        axes.plot(
            _times(hit["m"]), hit["tau"].to_numpy(), "|", color="tab:red", markersize=7, label="minute with a spike"
        )
    axes.set_title(f"{said['product']}: volatility of the next horizon", fontsize=9)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=7, loc="upper left", ncols=3, frameon=False)
    axes.tick_params(axis="x", labelsize=7, rotation=20)
    axes.tick_params(axis="y", labelsize=7)


def _hours(axes: Any, said: dict[str, Any]) -> None:
    found = said["hours"]
    axes.bar(range(len(found)), [100 * h["share"] for h in found], color="tab:red")
    step = max(1, len(found) // 8)
    ticks = range(0, len(found), step)
    axes.set_xticks(list(ticks), [found[i]["hour"][5:] for i in ticks], rotation=30, fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("share of spikes per hour, %" if found else "no tau, hence no spikes", fontsize=9)


def _nulls(axes: Any, said: dict[str, Any]) -> None:
    names = ("labelled", "usable", *REASONS)
    axes.barh(names, [said[name] for name in names], color=["tab:green", "tab:green", *["tab:grey"] * len(REASONS)])
    for i, name in enumerate(names):
        axes.text(0, i, f" {said[name]:,}", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"{said['rows']:,} rows: labels and nulls", fontsize=9)


def _times(minutes: pl.Series) -> list[datetime]:
    return [datetime.fromtimestamp(int(m) * 60, UTC) for m in minutes.to_numpy().astype(np.int64)]
