"""Forecasts to be measured: the features of labelled rows, the model's probabilities, and the baselines beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import ENTITY, FEATURE_NAMES, VIEW, WINDOWS
from feature_repo.errors import ContractError, InsufficientDataError
from training import baselines
from training.artefact import Artefact
from training.metrics import Forecast

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

VOLATILITIES: Final = tuple(
    name for w in WINDOWS for stat in baselines.STATS if (name := f"w{w}_{stat}") in FEATURE_NAMES
)
"""Features that the baselines read."""


@dataclass(frozen=True, slots=True)
class Rivals:
    """Baselines fitted on the training block, the best of them chosen on validation.

    Attributes
    ----------
    fitted
        By name.
    validation
        PR-AUC on validation by name, which the choice was made by; None where undefined.
    best
        Name of the chosen one.
    """

    fitted: dict[str, baselines.Baseline]
    validation: dict[str, float | None]
    best: str

    def forecast(self, name: str, volatilities: Matrix, tau: Vector) -> Vector:
        """Probabilities of one baseline; ``volatilities`` has the columns :data:`VOLATILITIES`."""
        return self.fitted[name].predict_proba(volatilities, tau)


def read(frame: pl.DataFrame, names: Sequence[str], *, delay_ms: float = 0.0) -> Matrix:
    """Join features to labelled rows as they were known ``delay_ms`` before the row, through Feast.

    Parameters
    ----------
    frame
        Labelled rows with product_id and row_time.
    names
        Features of the view, in the wanted order.
    delay_ms
        How late features arrive: a row is given the newest that was made at least so long before.

    Returns
    -------
    float64[n, len(names)], NaN where missing.

    Raises
    ------
    StoreError
        If the feature store was not applied.
    ContractError
        If the store returns another number of rows than were asked for.
    """
    from feature_repo.store import store

    if not frame.height or not names:
        return np.empty((frame.height, len(names)))
    at = pl.col("row_time") - pl.duration(microseconds=round(delay_ms * 1000))
    entity = frame.select(ENTITY, event_timestamp=at).with_row_index("row")
    job = store().get_historical_features(entity_df=entity.to_pandas(), features=[f"{VIEW}:{n}" for n in names])
    found = pl.from_arrow(job.to_arrow())
    assert isinstance(found, pl.DataFrame)  # noqa: S101  # of a table, never of an array
    if found.height != frame.height:
        raise ContractError(f"feature store returned {found.height} rows for {frame.height} asked; a join is broken")
    found = found.sort("row").select(pl.col(list(names)).cast(pl.Float64).fill_null(float("nan")))
    return np.ascontiguousarray(found.to_numpy(order="c"))


def probabilities(artefact: Artefact, x: Matrix, names: Sequence[str]) -> Vector:
    """Score rows whose columns are ``names``, mapped by name."""
    there = list(names)
    return artefact.predict_proba(np.ascontiguousarray(x[:, [there.index(f) for f in artefact.manifest.features]]))


def rivals(frame: pl.DataFrame, volatilities: Matrix) -> Rivals:
    """Fit every baseline on the training block and choose one on validation.

    Parameters
    ----------
    frame
        Rows of the blocks train and validation, with block, spike, sigma_fwd and tau.
    volatilities
        float64[n, v], their columns :data:`VOLATILITIES`.

    Raises
    ------
    InsufficientDataError
        If not even the prevalence can be fitted: training has no spike, or nothing but spikes.
    """
    y, tau, sigma = (frame[c].to_numpy() for c in ("spike", "tau", "sigma_fwd"))
    train, held = ((frame["block"] == name).to_numpy() for name in ("train", "validation"))
    known = ~np.isnan(volatilities[train]).all(axis=0)
    fitted: dict[str, baselines.Baseline] = {}
    validation: dict[str, float | None] = {}
    x = np.where(known, volatilities, np.nan)
    for name in baselines.BASELINES:
        try:
            fitted[name] = baselines.fit(name, x[train], VOLATILITIES, y[train], sigma_fwd=sigma[train], tau=tau[train])
        except InsufficientDataError:
            if name == "prevalence":
                raise
            continue  # without that volatility there is no such baseline to beat
        figure = Forecast(fitted[name].predict_proba(x[held], tau[held]), y[held]).measure(fit=False)[0, 0]
        validation[name] = float(figure) if np.isfinite(figure) else None
    best = max(validation, key=lambda name: validation[name] or 0.0)
    return Rivals(fitted, validation, best)
