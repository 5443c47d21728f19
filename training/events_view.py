"""Forecasts as somebody at a desk lives through them: episodes caught, seconds of warning, false alarms an hour.

::

    spike rows        · · · · S S S S S S · · ·      row s says: within (s, s + 60 s] it will have moved that much
    alarm rows        · · · · · · A A A · · · ·
                              |   |
                              s   a                  the second that made s a spike is s + 60
                                                     lead = s + 60 − a

Spike rows of one product no more than a horizon apart are one episode; alarm rows likewise one alert. An episode is
caught if one of its rows is an alarm. An alert is false if none of its rows is a spike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Events:
    """What alarms were worth.

    Attributes
    ----------
    episodes, caught
        Separate spike episodes, and how many of them raised an alarm.
    lead_s
        Seconds from the first alarm of each caught episode to the second that made it one, at most the horizon; in the
        order of the episodes.
    alerts, false_alerts
        Separate alerts, and how many of them met no spike.
    hours
        Hours in which rows were seen, of whatever product.
    """

    episodes: int
    caught: int
    lead_s: tuple[float, ...]
    alerts: int
    false_alerts: int
    hours: float

    @property
    def median_lead_s(self) -> float | None:
        """Median lead of the caught episodes."""
        return float(np.median(self.lead_s)) if self.lead_s else None

    @property
    def false_alerts_per_hour(self) -> float | None:
        """False alerts per hour seen."""
        return self.false_alerts / self.hours if self.hours else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        derived = {"median_lead_s": self.median_lead_s, "false_alerts_per_hour": self.false_alerts_per_hour}
        return asdict(self) | derived | {"lead_s": list(self.lead_s)}


def events(frame: pl.DataFrame, alarm: NDArray[np.bool_], horizon_s: int = HORIZON_S) -> Events:
    """Count episodes and alerts.

    Parameters
    ----------
    frame
        Rows with product_id, event_time_ns and spike.
    alarm
        bool[n], their alarms.
    horizon_s
        Of the label, seconds.

    Examples
    --------
    >>> t = [s * 10**9 for s in range(5)]
    >>> rows = pl.DataFrame({"product_id": ["A"] * 5, "event_time_ns": t, "spike": [False, True, True, True, False]})
    >>> found = events(rows, np.array([False, False, True, False, False]))
    >>> found.caught, found.lead_s, found.false_alerts
    (1, (59.0,), 0)
    """
    seconds = len(np.unique(frame["event_time_ns"].to_numpy() // _NS))
    totals = [0, 0, 0, 0]
    leads: list[float] = []
    for part in frame.with_columns(pl.Series("alarm", alarm)).partition_by("product_id", maintain_order=True):
        part = part.sort("event_time_ns")
        t, y, a = (part[c].to_numpy() for c in ("event_time_ns", "spike", "alarm"))
        spiking, sounding = _stretches(t, y, horizon_s), _stretches(t, a, horizon_s)
        for rows in spiking:
            alarms = t[rows][a[rows]]
            if len(alarms):
                leads.append(horizon_s - (int(alarms[0]) - int(t[rows[0]])) / _NS)
                totals[1] += 1
        totals[0] += len(spiking)
        totals[2] += len(sounding)
        totals[3] += sum(not y[rows].any() for rows in sounding)
    return Events(totals[0], totals[1], tuple(leads), totals[2], totals[3], seconds / 3600)


def _stretches(t: NDArray[np.int64], marked: NDArray[np.bool_], horizon_s: int) -> list[NDArray[np.int64]]:
    """Rows that are marked, in stretches no more than a horizon apart."""
    rows = np.flatnonzero(marked)
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(t[rows]) > horizon_s * _NS) + 1)
