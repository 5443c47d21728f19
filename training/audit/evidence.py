"""A plain description of a run, all that an audit looks at: rows, features, the fitted artefact, the source of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S, WINDOWS
from training.artefact import Artefact

KEYS = ("product_id", "session", "n", "k")
"""What names a row."""
COLUMNS = (*KEYS, "event_time_ns", "sigma_fwd", "tau", "spike", "block")
"""Columns that the frame of rows must have."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run was made of.

    Attributes
    ----------
    rows
        One row per example that the run used: :data:`COLUMNS`, block being train, validation or test. A sealed test
        block is not among them.
    x
        float64[n, f], the features of these rows as the models got them, NaN where missing.
    features
        Names of the columns of x.
    artefact
        The fitted model with its tau, imputation, scaler, calibration and threshold; None where only rows are judged.
    quotes
        Rows of the table ``quotes`` of these products and sessions; None where the table is gone.
    table
        Grid rows of the table ``spike_features``: keys, trigger, event_time_ns and the features; None where it is gone.
    tapes
        Raw tapes that are still there.
    objective
        What the decision threshold was chosen for, as :func:`training.objectives.parse` reads it.
    returns
        Returns that the label is made of: ``1s`` or ``tick``.
    by_session
        Whether blocks were cut in each session, or of whole sessions, so that one may lie between others on the clock.
    run_id
        The run, for the report.
    """

    rows: pl.DataFrame
    x: NDArray[np.float64]
    features: tuple[str, ...]
    artefact: Artefact | None = None
    quotes: pl.DataFrame | None = None
    table: pl.DataFrame | None = None
    tapes: Sequence[Path] = field(default=())
    objective: str = "f1"
    returns: str = "1s"
    by_session: bool = False
    run_id: str = ""

    def __post_init__(self) -> None:
        lacking = [c for c in COLUMNS if c not in self.rows.columns]
        if lacking or self.x.shape != (self.rows.height, len(self.features)):
            raise ValueError(
                f"rows must have columns {COLUMNS} and x the shape ({self.rows.height}, {len(self.features)}); "
                f"rows lack {lacking}, x has {self.x.shape}"
            )

    def mask(self, block: str) -> NDArray[np.bool_]:
        """Which rows lie in a block, bool[n]."""
        return (self.rows["block"] == block).to_numpy()

    @property
    def t_ns(self) -> NDArray[np.int64]:
        """Event times, int64[n], ns UTC."""
        return self.rows["event_time_ns"].to_numpy()

    @property
    def horizon_s(self) -> int:
        """Seconds ahead that the labels speak of."""
        return HORIZON_S if self.artefact is None else self.artefact.manifest.label.horizon_s

    @property
    def purge_s(self) -> int:
        """Least distance on the clock between rows of two blocks: label plus the longest window."""
        return self.horizon_s + max(WINDOWS)

    def where(self, row: int) -> str:
        """Name a row for a person: product and time."""
        found = self.rows.row(row, named=True)
        return f"{found['product_id']} {utc(found['event_time_ns'])}"

    @property
    def spike(self) -> NDArray[np.bool_]:
        """Labels as the run used them, bool[n]."""
        return self.rows["spike"].to_numpy()


def utc(ns: int) -> str:
    """Write a time for a person, whole seconds UTC."""
    return datetime.fromtimestamp(int(ns) // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
