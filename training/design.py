"""What a linear model sees of raw features: filled, on a log scale if told so, standardised, missingness beside them.

The same is done by :class:`training.artefact.Artefact` from the numbers of :class:`training.artefact.Linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.artefact import Linear, signed_log

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Design:
    """Everything that is fitted before the weights, on training rows alone.

    Attributes
    ----------
    fill
        float64[f], median of what is known; 0 where nothing is.
    log
        float64[f], unit u of the signed logarithm sign(x)·ln(1 + |x|/u): a tenth of the median of |x| ≠ 0, so that what
        varies over decades, as volatilities and sizes do, becomes linear in its logarithm; 0 for a plain column.
    mean, scale
        float64[f], of the filled column after that.
    known, usable, indicated
        bool[f]: ever known; of use, which a constant column is not; whether missingness is an input of its own.
    """

    fill: Vector
    log: Vector
    mean: Vector
    scale: Vector
    known: Mask
    usable: Mask
    indicated: Mask

    @staticmethod
    def fit(x: NDArray[np.floating], *, log: bool) -> Design:
        """Fit to training rows, float[n, f] with NaN where missing."""
        f = x.shape[1]
        fill, unit, mean, scale = np.zeros(f), np.zeros(f), np.zeros(f), np.ones(f)
        known, usable, indicated = np.zeros((3, f), np.bool_)
        for j in range(f):  # a column at a time, so that no second table of this size is made
            column = x[:, j].astype(np.float64)
            missing = np.isnan(column)
            if missing.all():
                continue
            known[j], indicated[j] = True, missing.any()
            there = column[~missing]
            fill[j] = np.median(there)
            size = np.abs(there[there != 0])
            unit[j] = 0.1 * np.median(size) if log and len(size) else 0.0
            filled = np.where(missing, fill[j], column)
            if unit[j] > 0:
                filled = signed_log(filled, unit[j])
            centre, spread = float(filled.mean()), float(filled.std())
            if spread > 1e-12 * abs(centre):
                usable[j], mean[j], scale[j] = True, centre, spread
        return Design(fill, unit, mean, scale, known, usable, indicated)

    def apply(self, x: NDArray[np.floating], dtype: type[np.floating] = np.float64) -> NDArray[np.floating]:
        """Turn rows into the table that the solver fits: usable columns, then indicators of missingness."""
        used, indicated = np.flatnonzero(self.usable), np.flatnonzero(self.indicated)
        out = np.empty((len(x), len(used) + len(indicated)), dtype, order="F")
        for i, j in enumerate(used):
            column = x[:, j].astype(np.float64)
            column = np.where(np.isnan(column), self.fill[j], column)
            if self.log[j] > 0:
                column = signed_log(column, self.log[j])
            out[:, i] = (column - self.mean[j]) / self.scale[j]
        for i, j in enumerate(indicated, len(used)):
            out[:, i] = np.isnan(x[:, j])
        return np.ascontiguousarray(out)

    def linear(self, coefficients: Vector, intercept: float) -> Linear:
        """Fold the weights of the columns of :meth:`apply` into what an artefact holds."""
        weight, missing_weight = np.zeros(len(self.fill)), np.zeros(len(self.fill))
        weight[self.usable] = coefficients[: self.usable.sum()]
        missing_weight[self.indicated] = coefficients[self.usable.sum() :]
        return Linear(
            fill=self.fill.tolist(),
            mean=self.mean.tolist(),
            scale=self.scale.tolist(),
            weight=weight.tolist(),
            missing_weight=missing_weight.tolist(),
            intercept=intercept,
            log=self.log.tolist() if self.log.any() else [],
        )
