"""The picture of ``volspike label``: volatility to come with tau, spikes per hour, and what has no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.errors import StoreError, UsageError
from training.label_view import LabelView
from training.labels import REASONS
from training.summary import utc

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

    Raises
    ------
    UsageError
        If the name does not end in ``.png``.
    StoreError
        If it can't be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot is {str(path)!r}, must be a file whose name ends in .png, such as labels.png")
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}; free space, or give another --plot") from error


def _sigma(axes: Any, said: dict[str, Any], labels: pl.DataFrame, marked: pl.DataFrame) -> None:
    """Greatest sigma_fwd of each minute, so that a day is drawn as fast as an hour and no peak is lost."""
    minute = (pl.col("event_time_ns") // _MINUTE_NS).alias("minute")
    peaks = labels.drop_nulls("sigma_fwd").group_by(minute).agg(pl.col("sigma_fwd").max())
    tau = marked.group_by(minute).agg(pl.col("tau").last(), pl.col("spike").any())
    drawn = peaks.join(tau, on="minute", how="left").sort("minute")
    axes.set_title(f"{said['product']}: volatility of the next horizon", fontsize=9)
    if drawn.is_empty():
        axes.set_title(f"{said['product']}: no label", fontsize=9)
        return
    at, breaks = _places(drawn["minute"].to_numpy())
    sigma, line = (np.insert(drawn[c].fill_null(np.nan).to_numpy(), breaks, np.nan) for c in ("sigma_fwd", "tau"))
    hit = np.insert(drawn["spike"].fill_null(value=False).to_numpy(), breaks, values=False)
    axes.plot(at, sigma, linewidth=0.8, color="tab:blue", label="sigma_fwd")
    axes.plot(at, line, linewidth=1, color="tab:orange", label="tau")
    axes.plot(at[hit], line[hit], "|", color="tab:red", markersize=7, label="minute with a spike")
    minutes = np.insert(drawn["minute"].to_numpy(), breaks, 0)
    there = np.flatnonzero(minutes)
    ticks = np.unique(there[np.searchsorted(at[there], np.linspace(at[0], at[-1], 7))]).tolist()
    axes.set_xticks([at[k] for k in ticks], [utc(int(minutes[k]) * _MINUTE_NS)[5:16] for k in ticks], rotation=20)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=7, loc="upper left", ncols=3, frameon=False)
    axes.tick_params(labelsize=7)


def _places(minutes: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[int]]:
    """Where minutes stand on the axis, and before which of them a pause is: it takes ten minutes' room at most.

    The places have one more for each pause, in its middle, for a value that breaks the line.
    """
    steps = np.diff(minutes, prepend=minutes[:1] - 1)
    at = np.cumsum(np.minimum(steps, 10)).astype(np.float64)
    breaks = np.flatnonzero(steps > 1).tolist()
    return np.insert(at, breaks, [at[k] - 0.5 for k in breaks]), breaks


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
