"""Models on purged folds: how good hyperparameters are, how many trees it takes, and forecasts of unseen rows.

A fold is prepared once (medians, scales, bins: of its train rows alone) and then asked for many hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training import models
from training.calibration import sigmoid
from training.design import Design
from training.folds import Rows
from training.models import Hyper, Truth, Vector
from training.objectives import Objective

Floats = NDArray[np.floating]
Score = Callable[[NDArray[np.float64]], float]
"""From margins on a fold's test rows to how good they are; more is better."""
TOLERANCE: Final = 1e-5
MAX_ITERATIONS: Final = 25
"""Enough to rank; the refit goes on to convergence."""
TREE_ROWS: Final = 40_000
"""Rows that trees are grown on in a fold, drawn from all: neighbouring seconds nearly repeat each other, so more of
them tell hardly more; all test rows are scored, and the refit grows on all."""
STEP: Final = 5
"""Trees between two scores."""
FOLD_ROUNDS: Final = 100
FOLD_PATIENCE: Final = 10
"""Trees in a fold at most, and how many without gain end it: forecasts of a market are at their best within
fifty (docs/adr/0060), and a grid that grew hundreds would take its time where nothing is to be had."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One set of hyperparameters on one fold.

    Attributes
    ----------
    curve
        Score on the test rows after each :data:`STEP` trees; of other models one number.
    fitted
        What to ask for margins.
    """

    curve: list[float]
    fitted: Any = field(repr=False)


class LinearFold:
    """A fold for logistic regressions; its design tables are float32, which ranks as well and halves the time.

    ``train`` holds the rows that it is fitted to.
    """

    def __init__(self, x: Floats, y: Truth, excess: Vector | None, train: Rows, test: Rows, *, jobs: int = 1) -> None:
        self._x, self._y, self._excess, self.train, self._test = x, y, excess, train, test
        self._scale: Any = None
        self._tables: tuple[Floats, Floats] | None = None
        self._model: tuple[Any, Any] = (None, None)

    def tried(self, hyper: Hyper, score: Score, *, seed: int) -> Tried:
        """Fit and score; it goes on from the last fit where only C differs."""
        from threadpoolctl import threadpool_limits

        chosen = models.merged("lr", hyper)
        if self._tables is None or self._scale != chosen["scale"]:
            raw = self._x[self.train]
            design = Design.fit(raw, log=chosen["scale"] == "log")
            self._tables = design.apply(raw, np.float32), design.apply(self._x[self._test], np.float32)
            self._scale, self._model = chosen["scale"], (None, None)
        fit, held = self._tables
        key, model = self._model
        if key != (chosen["weight"], chosen["soft"]):
            model = models.solver(chosen, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
        model.C = float(chosen["C"])
        excess = None if self._excess is None else self._excess[self.train]
        with threadpool_limits(1):
            model.fit(fit, models.softened(self._y[self.train], excess, float(chosen["soft"])))
        self._model = (chosen["weight"], chosen["soft"]), model
        margin = model.margin(held)
        return Tried([score(margin)], (fit, model.coef_.astype(fit.dtype), model.intercept_, margin))

    @staticmethod
    def margins(tried: Tried, rounds: int) -> tuple[Vector, Vector]:
        """Margins of the train and of the test rows."""
        fit, weight, intercept, held = tried.fitted
        return np.asarray(fit @ weight, np.float64) + intercept, held


class TreeFold:
    """A fold for boosted trees: binned once.

    ``train`` holds the rows that it is fitted to, a part of a long fold's.
    """

    def __init__(
        self,
        x: Floats,
        y: Truth,
        excess: Vector | None,
        train: Rows,
        test: Rows,
        *,
        jobs: int = 1,
        device: str = "cpu",
    ) -> None:
        if len(train) > TREE_ROWS:
            train = np.sort(np.random.default_rng(len(train)).choice(train, TREE_ROWS, replace=False))
        self._x, self._y, self._excess, self.train, self._test = x, y, excess, train, test
        self._threads = models.threads(len(train), jobs)
        self._device = device
        self._bins = 0
        self._tables: Any = None

    def tried(self, hyper: Hyper, score: Score, *, seed: int) -> Tried:
        """Grow trees until the score on the test rows has long been no better."""
        import xgboost

        chosen = models.merged("xgb", hyper)
        if self._tables is None or self._bins != chosen["max_bin"]:
            self._bins = int(chosen["max_bin"])
            table = xgboost.QuantileDMatrix(
                self._x[self.train], self._y[self.train], max_bin=self._bins, **self._threads
            )
            # not binned: trees answer rows of bins ten times as slowly
            held = xgboost.DMatrix(self._x[self._test], **self._threads)
            self._tables = table, held
        table, held = self._tables
        excess = None if self._excess is None else self._excess[self.train]
        models.aim(table, self._y[self.train], excess, float(chosen["soft"]))
        booster = xgboost.Booster(
            models.own({**chosen, "seed": seed, "device": self._device, **self._threads}), [table]
        )
        margin, curve = np.zeros(len(self._test)), list[float]()
        while len(curve) < FOLD_ROUNDS // STEP:
            span = range(len(curve) * STEP, (len(curve) + 1) * STEP)
            for i in span:
                booster.update(table, i)
            # base_score is a half, so that margins of parts add up
            margin += booster.predict(held, output_margin=True, iteration_range=(span.start, span.stop))
            curve.append(score(margin))
            if int(np.argmax(curve)) + FOLD_PATIENCE // STEP < len(curve):
                break
        return Tried(curve, (booster, table, held))

    @staticmethod
    def margins(tried: Tried, rounds: int) -> tuple[Vector, Vector]:
        """Margins of the train and of the test rows after so many trees, or as many as there are."""
        booster, *tables = tried.fitted
        until = min(rounds, booster.num_boosted_rounds())
        fit, held = (booster.predict(t, output_margin=True, iteration_range=(0, until)) for t in tables)
        return fit.astype(np.float64), held.astype(np.float64)


FOLDS: dict[str, type[LinearFold] | type[TreeFold]] = {"lr": LinearFold, "xgb": TreeFold}


def scorer(objective: Objective, y: Truth, t_ns: NDArray[np.int64], products: NDArray[np.str_]) -> Score:
    """Make the score of margins on test rows: what ``objective`` is worth, or PR-AUC where it is F1.

    A greatest F1 hangs on one point of a curve, which a few episodes decide; PR-AUC has the same order and less noise.
    """
    from training.objectives import F1

    if isinstance(objective, F1):
        return lambda margin: _average_precision(margin, y)
    return lambda margin: objective.value(1 / (1 + np.exp(-np.clip(margin, -700, 700))), y, t_ns, products)


def _average_precision(margin: NDArray[np.float64], y: Truth) -> float:
    """As scikit-learn has it, four times as fast."""
    order = np.argsort(-margin, kind="stable")
    ranked, hits = margin[order], np.cumsum(y[order])
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    found = hits[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / found[-1])


def together(curves: Sequence[Sequence[float]]) -> tuple[int, float]:
    """Find the point of the curves that is best over all folds; a fold that stopped early stays as it was.

    Returns
    -------
    int, float
        Number of the point, from 1, the first of equally good ones, and the mean score there. Trees have grown
        :data:`STEP` times as many by then.
    """
    longest = max(map(len, curves))
    table = np.array([[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves])
    mean = table.mean(axis=0)
    best = int(np.argmax(mean))
    return best + 1, float(mean[best])


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Forecasts of rows by models that were trained before them.

    Attributes
    ----------
    rows
        int64[m], row numbers, in the order of the folds.
    p
        float64[m], probabilities. Each fold is calibrated on the forecasts of the folds before it, a purge apart; the
        first on its own training rows.
    rounds
        Number of trees that is best over all folds; 0 for other models.
    score
        Mean over the folds.
    folds
        Score of each fold.
    """

    rows: Rows
    p: NDArray[np.float64]
    rounds: int
    score: float
    folds: list[float]


def out_of_fold(
    kind: str,
    x: Floats,
    y: Truth,
    t_ns: NDArray[np.int64],
    products: NDArray[np.str_],
    folds: Sequence[tuple[Rows, Rows]],
    *,
    hyper: Hyper,
    objective: Objective,
    purge_s: float,
    seed: int,
    excess: Vector | None = None,
    jobs: int = 1,
    device: str = "cpu",
) -> OutOfFold:
    """Train on each fold's train rows and forecast its test rows.

    Parameters
    ----------
    kind
        lr or xgb.
    x, y, t_ns, products
        All rows of the training block: float64[n, f], bool[n], int64[n] ns UTC, str[n].
    folds
        As :func:`training.folds.usable` makes them.
    excess
        As in :func:`training.models.softened`.
    """
    tried, learnt = [], []
    for train, test in folds:
        score = scorer(objective, y[test], t_ns[test], products[test])
        more = {"device": device} if kind == "xgb" else {}
        fold = FOLDS[kind](x, y, excess, train, test, jobs=jobs, **more)
        tried.append(fold.tried(hyper, score, seed=seed))
        learnt.append(y[fold.train])
    point, score_ = together([t.curve for t in tried])
    rounds = point * STEP if kind == "xgb" else 0
    margins = [FOLDS[kind].margins(t, rounds) for t in tried]
    p = [_calibrated(i, margins, learnt[i], y, t_ns, folds, purge_s) for i in range(len(folds))]
    each = [t.curve[min(point, len(t.curve)) - 1] for t in tried]
    rows = np.concatenate([test for _, test in folds])
    return OutOfFold(rows, np.concatenate(p), rounds, score_, each)


def _calibrated(
    i: int,
    margins: Sequence[tuple[Vector, Vector]],
    learnt: Truth,
    y: Truth,
    t_ns: NDArray[np.int64],
    folds: Sequence[tuple[Rows, Rows]],
    purge_s: float,
) -> NDArray[np.float64]:
    """Probabilities of fold i's test rows; ``learnt`` are the spikes that its model was fitted to."""
    test = folds[i][1]
    until = int(t_ns[test].min()) - round(purge_s * 1_000_000_000)
    early = [t_ns[folds[j][1]] <= until for j in range(i)]
    seen = np.concatenate([y[folds[j][1]][early[j]] for j in range(i)]) if i else np.empty(0, np.bool_)
    if not 0 < seen.sum() < len(seen):
        calibration = sigmoid(margins[i][0], learnt)
    else:
        calibration = sigmoid(np.concatenate([margins[j][1][early[j]] for j in range(i)]), seen)
    return np.asarray(1 / (1 + np.exp(-np.clip(calibration.apply(margins[i][1]), -700, 700))))
