"""The training set: features of the labelled rows, point-in-time-correct, through Feast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import CALENDAR, CALENDAR_MIN_DAYS, ENTITY, SERVICES
from feature_repo.errors import ContractError

_DAY_NS = 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Dataset:
    """Features and truth of all blocks, aligned by row.

    Attributes
    ----------
    x
        float64[n, f], NaN where missing, columns as ``features``.
    features
        Names of the columns of x.
    frame
        The labelled rows, n of them, in the same order (see :class:`training.spikes.Spikes`).
    """

    x: NDArray[np.float64]
    features: tuple[str, ...]
    frame: pl.DataFrame

    def block(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Features and spikes of one block."""
        mask = (self.frame["block"] == name).to_numpy()
        return self.x[mask], self.frame["spike"].to_numpy()[mask]

    def column(self, name: str) -> int:
        """Index of a feature's column."""
        return self.features.index(name)


def feature_names(service: str, frame: pl.DataFrame) -> tuple[str, ...]:
    """Features of a service that a model may read: no calendar where training has rows of under a week."""
    t = frame.filter(pl.col("block") == "train")["event_time_ns"].to_numpy()
    if np.ptp(t) < CALENDAR_MIN_DAYS * _DAY_NS or len(np.unique(t // _DAY_NS)) < CALENDAR_MIN_DAYS:
        return tuple(name for name in SERVICES[service] if name not in CALENDAR)
    return SERVICES[service]


def dataset(frame: pl.DataFrame, service: str, names: Sequence[str]) -> Dataset:
    """Join the features of a Feast service to labelled rows as of their row_time.

    Parameters
    ----------
    frame
        Labelled rows with product_id and row_time.
    service
        Feature service.
    names
        Features to keep, mapped by name.

    Raises
    ------
    StoreError
        If the feature store was not applied.
    ContractError
        If the store returns another number of rows, or lacks a feature.
    """
    from feature_repo.store import store

    entity = frame.select(ENTITY, event_timestamp="row_time").with_row_index("row")
    feast = store()
    job = feast.get_historical_features(
        entity_df=entity.to_pandas(), features=feast.get_feature_service(service)
    )
    found = pl.from_arrow(job.to_arrow())
    assert isinstance(found, pl.DataFrame)  # noqa: S101  # of a table, never of an array
    lacking = sorted(set(names) - set(found.columns))
    if lacking:
        raise ContractError(f"feature store lacks {lacking[:5]} of service {service}; run: feast apply in feature_repo")
    if found.height != frame.height:
        raise ContractError(f"feature store returned {found.height} rows for {frame.height} asked; a join is broken")
    found = found.sort("row").select(pl.col(list(names)).cast(pl.Float64))
    x = found.select(pl.all().fill_null(float("nan"))).to_numpy(order="c")
    return Dataset(np.ascontiguousarray(x), tuple(names), frame)
