"""Logistic regression for targets in [0, 1], by Newton's method with halved steps.

scikit-learn's takes classes only, so that a soft target would need every row twice. Penalty and balanced weights are
defined as there: for targets of 0 and 1 both give one answer.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
_CHUNK: Final = 16_384
"""Rows whose weighted copy is made at once for the Hessian."""
HALVINGS: Final = 30


class Logit:
    """Minimise C·Σ wᵢ·(cross-entropy of pᵢ to targetᵢ) + ½·|coefficients|², the intercept without penalty.

    Parameters
    ----------
    C
        Inverse strength of the penalty, > 0.
    balanced
        Whether spikes and the rest weigh the same in all.
    max_iter
        Newton steps.
    tol
        It ends once a step would gain less than this share of the loss.

    Attributes
    ----------
    coef_, intercept_
        float64[f] and float64, after :meth:`fit`, which begins at them when called again.
    n_iter_
        Newton steps that were taken.
    """

    def __init__(self, C: float, *, balanced: bool, max_iter: int = 50, tol: float = 1e-12) -> None:
        self.C = C
        self.balanced = balanced
        self.max_iter = max_iter
        self.tol = tol
        self.coef_: NDArray[np.float64] = np.empty(0)
        self.intercept_ = 0.0
        self.n_iter_ = 0

    def fit(self, z: Floats, target: Floats | NDArray[np.bool_]) -> Logit:
        """Fit to rows z, float[n, f], and targets, bool[n] or float[n] in [0, 1] with a mean strictly between."""
        t = np.asarray(target, np.float64)
        n, f = z.shape
        up, down = (n / (2 * t.sum()), n / (2 * (n - t.sum()))) if self.balanced else (1.0, 1.0)
        weight = up * t + down * (1 - t)
        aim = up * t / weight
        at = np.append(self.coef_, self.intercept_) if len(self.coef_) == f else np.zeros(f + 1)
        ridge = np.append(np.full(f, 1 / self.C), 0.0)
        loss, p = self._loss(z, aim, weight, at, ridge)
        self.n_iter_ = 0
        for _ in range(self.max_iter):
            residual = weight * (p - aim)
            slope = np.append(_times(z, residual), residual.sum()) + ridge * at
            hessian = _gram(z, weight * p * (1 - p))
            hessian[np.diag_indices(f + 1)] += ridge + 1e-10 * np.trace(hessian) / (f + 1)
            step = np.linalg.solve(hessian, slope)
            gain, size = float(slope @ step), 1.0
            if not gain > self.tol * loss:
                break
            for _ in range(HALVINGS):
                there = at - size * step
                new_loss, new_p = self._loss(z, aim, weight, there, ridge)
                if new_loss <= loss:
                    break
                size /= 2
            else:
                break
            at, loss, p = there, new_loss, new_p
            self.n_iter_ += 1
        self.coef_, self.intercept_ = at[:-1], float(at[-1])
        return self

    def margin(self, z: Floats) -> NDArray[np.float64]:
        """Log-odds of rows, float64[n]."""
        return np.asarray(z @ self.coef_.astype(z.dtype), np.float64) + self.intercept_

    @staticmethod
    def _loss(
        z: Floats, aim: Floats, weight: Floats, at: NDArray[np.float64], ridge: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        m = np.asarray(z @ at[:-1].astype(z.dtype), np.float64) + at[-1]
        e = np.exp(-np.abs(m))
        p = np.where(m >= 0, 1 / (1 + e), e / (1 + e))
        entropy = np.log1p(e) + np.maximum(m, 0.0) - aim * m
        return float(weight @ entropy + 0.5 * (ridge * at) @ at), p


def _times(z: Floats, v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(z.T @ v.astype(z.dtype), np.float64)


def _gram(z: Floats, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Second derivative of the loss: [z 1]ᵀ·diag(weight)·[z 1], float64[f + 1, f + 1]."""
    f = z.shape[1]
    out = np.zeros((f + 1, f + 1))
    for a in range(0, len(z), _CHUNK):
        rows, w = z[a : a + _CHUNK], weight[a : a + _CHUNK].astype(z.dtype)
        weighted = rows * w[:, None]
        out[:f, :f] += rows.T @ weighted
        out[:f, f] += weighted.sum(axis=0, dtype=np.float64)
    out[f, :f] = out[:f, f]
    out[f, f] = weight.sum()
    return out
