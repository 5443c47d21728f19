"""Figures by product, session and hour of the day: where a model is good, and where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from training.bootstrap import interval, paired
from training.metrics import Probability, figures
from training.spikes import episodes

GROUPS: Final = ("product", "session", "hour")
RESAMPLES: Final = 400


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of some of the rows.

    Attributes
    ----------
    by, key
        One of :data:`GROUPS`, and which product, session or hour (UTC).
    figures
        See :func:`training.metrics.figures`.
    interval
        95 % interval of PR-AUC; None where there are too few blocks.
    difference
        PR-AUC minus the best baseline's; None where undefined.
    difference_interval
        Its 95 % interval.
    """

    by: str
    key: str
    figures: dict[str, float | None]
    interval: tuple[float, float] | None
    difference: float | None
    difference_interval: tuple[float, float] | None


def breakdown(frame: pl.DataFrame, p: Probability, baseline: Probability, threshold: float) -> list[Group]:
    """Measure each product, session and hour.

    Parameters
    ----------
    frame
        Rows with product_id, session, event_time_ns and spike.
    p, baseline
        float64[n], probabilities of the model and of the best baseline.
    threshold
        Of the model.
    """
    hour = pl.from_epoch("event_time_ns", time_unit="ns").dt.strftime("%H:00")
    keys = frame.select(product=pl.col("product_id"), session=pl.col("session"), hour=hour)
    y, t = frame["spike"].to_numpy(), frame["event_time_ns"].to_numpy()
    out = []
    for by in GROUPS:
        column = keys[by].to_numpy()
        for key in np.unique(column):
            rows = np.flatnonzero(column == key)
            count = episodes(frame[rows])
            mine = figures(p[rows], y[rows], threshold, t_ns=t[rows], episodes=count)
            other = figures(baseline[rows], y[rows])["pr_auc"]
            pair = paired("pr_auc", p[rows], baseline[rows], y[rows], t[rows], n=RESAMPLES)
            own = mine["pr_auc"]
            out.append(
                Group(
                    by,
                    str(key),
                    mine,
                    interval("pr_auc", p[rows], y[rows], t[rows], n=RESAMPLES),
                    own - other if own is not None and other is not None else None,
                    (pair.low, pair.high) if pair is not None else None,
                )
            )
    return out
