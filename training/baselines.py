"""What a model must beat: forecasts from volatility alone, as a trader without machine learning would make them.

::

    prevalence    the share of spikes in training, always
    zscore        volatility of the last 60 s, in standard deviations from its mean
    persistence   the next 60 s move as the last 60 s did: log(sigma_60 / tau)
    ewma          exponentially weighted variance, half-life chosen on training: log(sigma_ewma / tau)
    har           log sigma_fwd regressed on the log volatilities of all windows: (forecast - log tau)

Each turns its margin into a probability by one sigmoid. All of it is fitted on the rows given to :func:`fit`: train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import WINDOWS
from feature_repo.errors import InsufficientDataError, UsageError
from training.calibration import sigmoid

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Truth = NDArray[np.bool_]

STATS: Final = ("realized_vol", "mid_return_std", "return_std", "volatility_lag1")
"""Volatility of a window, in order of preference: the first that the features have is read."""
HALF_LIVES_S: Final = (10, 20, 40, 80, 160, 320, 640)
"""Half-lives among which training chooses."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a baseline is fitted to.

    Attributes
    ----------
    log_vol
        float64[n, k], log volatility per second of each window; NaN where missing.
    windows
        Lengths of the k windows in seconds, rising.
    y
        bool[n], spikes.
    sigma_fwd
        float64[n], the label's volatility, or None.
    log_tau
        float64[n], log of each row's threshold; 0 where none was given.
    """

    log_vol: Matrix
    windows: tuple[int, ...]
    y: Truth
    sigma_fwd: Vector | None
    log_tau: Vector


Margin = Callable[[Matrix, Vector], Vector]
"""From log_vol[n, k] and log_tau[n] to a margin [n]: greater, more likely a spike."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A fitted baseline.

    Attributes
    ----------
    name
        Key in :data:`BASELINES`.
    params
        What was fitted, for the record.
    """

    name: str
    params: dict[str, float]
    _columns: tuple[int, ...]
    _scales: tuple[float, ...]
    _floor: Vector
    _fill: Vector
    _margin: Margin | None
    _slope: float
    _intercept: float
    _with_tau: bool

    def margin(self, x: Matrix, tau: Vector | None = None) -> Vector:
        """Log-odds of a spike, float64[n]; parameters and errors as :meth:`predict_proba`."""
        if self._margin is None:
            return np.full(len(x), self._intercept)
        if self._with_tau and tau is None:
            raise UsageError(f"baseline {self.name} was fitted with tau; pass the rows' tau to predict_proba too")
        log_vol = _log_vol(x, self._columns, self._scales, self._floor)
        log_vol = np.where(np.isnan(log_vol), self._fill, log_vol)
        log_tau = np.zeros(len(x)) if tau is None or not self._with_tau else np.log(tau)
        return np.asarray(self._slope * self._margin(log_vol, log_tau) + self._intercept)

    def predict_proba(self, x: Matrix, tau: Vector | None = None) -> Vector:
        """Probability of a spike.

        Parameters
        ----------
        x
            float64[n, f], columns as in :func:`fit`, NaN where missing.
        tau
            float64[n], each row's threshold; needed where the baseline was fitted with one.

        Returns
        -------
        float64[n] in [0, 1]
        """
        from scipy.special import expit

        return np.asarray(expit(self.margin(x, tau)), np.float64)


def fit(
    name: str,
    x: Matrix,
    names: Sequence[str],
    y: Truth,
    *,
    sigma_fwd: Vector | None = None,
    tau: Vector | None = None,
) -> Baseline:
    """Fit a baseline to training rows.

    Parameters
    ----------
    name
        Key in :data:`BASELINES`.
    x, names
        float64[n, f], NaN where missing, and the names of its columns.
    y
        bool[n], spikes; both kinds present.
    sigma_fwd
        float64[n], the label's volatility; ``har`` needs it.
    tau
        float64[n], each row's threshold. Persistence, ewma and har forecast a volatility and compare it with tau, which
        tells products (and hours, where tau rolls) apart; without tau they order rows by the forecast alone.

    Raises
    ------
    UsageError
        If the name is unknown, or ``har`` is given no sigma_fwd.
    InsufficientDataError
        If x has no volatility, it is constant or always missing, or y has one kind only.
    """
    if name not in BASELINES:
        raise UsageError(f"baseline is {name!r}, must be one of {sorted(BASELINES)}")
    found = int(y.sum())
    if not 0 < found < len(y):
        raise InsufficientDataError(
            f"baseline {name}: {found} spikes in {len(y)} training rows, must have at least 1 spike and 1 other row"
        )
    if name == "prevalence":
        rate = found / len(y)
        none = np.empty(0)
        log_odds = float(np.log(rate / (1 - rate)))
        return Baseline(name, {"prevalence": rate}, (), (), none, none, None, 0.0, log_odds, False)
    windows, columns, scales = _columns(name, names, x)
    raw = x[:, list(columns)]
    # A market that did not move has volatility 0, whose log is below all: it stands at half the least seen.
    floor = np.nanmin(np.where(raw > 0, raw, np.nan), axis=0) / 2
    log_vol = _log_vol(x, columns, scales, floor)
    fill = np.nanmedian(log_vol, axis=0)
    log_vol = np.where(np.isnan(log_vol), fill, log_vol)
    log_tau = np.zeros(len(y)) if tau is None else np.log(tau)
    margin, params = BASELINES[name](Features(log_vol, windows, y, sigma_fwd, log_tau))
    platt = sigmoid(margin(log_vol, log_tau), y)
    params = {**params, "slope": platt.slope, "intercept": platt.intercept}
    with_tau = tau is not None
    return Baseline(name, params, columns, scales, floor, fill, margin, platt.slope, platt.intercept, with_tau)


def available(names: Sequence[str]) -> tuple[str, ...]:
    """Baselines that can be made of these features."""
    out = []
    for name in BASELINES:
        try:
            if name != "prevalence":
                _columns(name, names)
        except InsufficientDataError:
            continue
        out.append(name)
    return tuple(out)


def _columns(
    name: str, names: Sequence[str], x: Matrix | None = None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Windows a baseline reads, their columns, and what makes each a volatility per second.

    Where x is given, a column that is constant or missing in it is passed over.
    """
    there = {n: i for i, n in enumerate(names)}
    wanted = WINDOWS if name in ("ewma", "har") else (60,)
    named = [[(w, stat, there[n]) for stat in STATS if (n := f"w{w}_{stat}") in there] for w in wanted]
    found = [next((c for c in window if x is None or _varies(x[:, c[2]])), None) for window in named]
    chosen = [c for c in found if c is not None]
    if not chosen:
        said = f"reads a volatility of windows {list(wanted)} ({', '.join(STATS)})"
        if any(named):
            raise InsufficientDataError(f"baseline {name} {said}, all constant or missing in training; longer tape")
        raise InsufficientDataError(f"baseline {name} {said}, the features have none; choose another service")
    scales = tuple(w**-0.5 if stat == "realized_vol" else 1.0 for w, stat, _ in chosen)
    return tuple(w for w, _, _ in chosen), tuple(column for _, _, column in chosen), scales


def _varies(column: Vector) -> bool:
    positive = column[column > 0]
    return bool(positive.size and positive.max() > positive.min())


def _log_vol(x: Matrix, columns: Sequence[int], scales: Sequence[float], floor: Vector) -> Matrix:
    return np.asarray(np.log(np.maximum(x[:, list(columns)], floor) * np.array(scales)))


def _zscore(f: Features) -> tuple[Margin, dict[str, float]]:
    vol = np.exp(f.log_vol[:, 0])
    mean, std = float(vol.mean()), float(vol.std())
    return lambda v, _: np.asarray((np.exp(v[:, 0]) - mean) / std), {"mean": mean, "std": std}


def _persistence(f: Features) -> tuple[Margin, dict[str, float]]:
    return lambda v, log_tau: v[:, 0] - log_tau, {}


def _ewma(f: Features) -> tuple[Margin, dict[str, float]]:
    best: tuple[float, float] | None = None
    for half_life in HALF_LIVES_S:
        margin = _ewma_log_vol(f.log_vol, f.windows, half_life) - f.log_tau
        platt = sigmoid(margin, f.y)
        z = platt.slope * margin + platt.intercept
        loss = float(np.mean(np.logaddexp(0, z) - f.y * z))
        best = min(best or (loss, half_life), (loss, half_life))
    assert best is not None  # noqa: S101  # there is a half-life
    chosen, windows = best[1], f.windows
    return lambda v, log_tau: _ewma_log_vol(v, windows, chosen) - log_tau, {"half_life_s": chosen}


def _ewma_log_vol(log_vol: Matrix, windows: Sequence[int], half_life_s: float) -> Vector:
    """Log of the exponentially weighted volatility, from variances of nested windows.

    What a window has beyond the next shorter one is the variance of the stretch between their ages; each stretch has
    the weight that the exponential gives to its ages.
    """
    variance = np.exp(2 * log_vol)
    total, weights = np.zeros(len(log_vol)), 0.0
    inner, inner_sum = 0, np.zeros(len(log_vol))
    for k, window in enumerate(windows):
        outer_sum = variance[:, k] * window
        stretch = np.maximum(outer_sum - inner_sum, 0.0) / (window - inner)
        weight = 2.0 ** (-inner / half_life_s) - 2.0 ** (-window / half_life_s)
        total, weights = total + weight * stretch, weights + weight
        inner, inner_sum = window, outer_sum
    return np.asarray(np.log(total / weights) / 2)


def _har(f: Features) -> tuple[Margin, dict[str, float]]:
    if f.sigma_fwd is None:
        raise UsageError("baseline har regresses sigma_fwd on the past; pass sigma_fwd of the training rows")
    moved = f.sigma_fwd > 0
    if int(moved.sum()) <= len(f.windows) + 1:
        raise InsufficientDataError(f"baseline har: {int(moved.sum())} horizons moved, more were needed; longer tape")
    design = np.column_stack([np.ones(int(moved.sum())), f.log_vol[moved]])
    beta = np.linalg.lstsq(design, np.log(f.sigma_fwd[moved]), rcond=None)[0]
    named = {f"beta_w{w}": float(b) for w, b in zip(f.windows, beta[1:], strict=True)}
    return lambda v, log_tau: np.asarray(beta[0] + v @ beta[1:] - log_tau), {"alpha": float(beta[0]), **named}


def _prevalence(f: Features) -> tuple[Margin, dict[str, float]]:
    raise AssertionError("prevalence has no margin")


BASELINES: Final[dict[str, Callable[[Features], tuple[Margin, dict[str, float]]]]] = {
    "prevalence": _prevalence,
    "zscore": _zscore,
    "persistence": _persistence,
    "ewma": _ewma,
    "har": _har,
}
"""Each baseline by name: from training rows to its margin and what it fitted.

Notes
-----
Sources: RiskMetrics technical document, 1996 (ewma); Corsi, "A simple approximate long-memory model of realized
volatility", 2009 (har).
"""
