"""Skill that no forecast has: on labels that mean nothing, at any distance in time, or no better than doing nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.audit.evidence import Evidence
from training.audit.findings import Finding
from training.audit.fitted import columns
from training.audit.truth import NS, at_rows

PERFECT: Final = 0.9
"""PR-AUC, measured from the prevalence (0) to 1, from which on a model is near-perfect. Who knows the generated
market's hidden volatility reaches about 0.4; published leaks 0.98 and more."""
IMPOSSIBLE: Final = 0.98
"""The same, from which on it is a leak whatever ties it."""
TIE: Final = 0.05
"""How near the best baseline must come to a near-perfect model to tie it."""
KEPT: Final = 0.9
"""Share of its skill that a model must have lost when its forecasts are judged on labels an hour or more away."""
_SOME: Final = 0.15  # skill under which nothing can be seen falling off
_LEAST_SPIKES: Final = 20
_FEW: Final = 10
_SHUFFLES: Final = 12
_ERRORS: Final = 4.0  # standard errors of the mean over the shuffles: one clean run in a thousand is beyond (t, 11)
_LEARNED: Final = 0.05
_MOVES: Final = 8
_BLOCK_S: Final = 900
_AWAY_S: Final = (3600, 5400, 7200)
_ROUNDS: Final = 40
_MOST_ROWS: Final = 60_000

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def average_precision(p: Floats, y: Bools) -> float:
    """Area under the precision-recall curve in steps; ties share one step.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = np.cumsum(y[order])[last]
    return float(np.sum(hits / (last + 1) * np.diff(hits, prepend=0)) / hits[-1])


def skill(p: Floats, y: Bools) -> float:
    """PR-AUC from 0 at the prevalence to 1 at perfection."""
    prevalence = float(y.mean())
    return (average_precision(p, y) - prevalence) / (1 - prevalence)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The block that a model is judged on, with its forecasts."""

    block: str
    rows: NDArray[np.int64]
    p: Floats
    y: Bools


def _judged(e: Evidence) -> _Judged | None:
    """The last block there is, if it has enough of both kinds."""
    if e.artefact is None:
        return None
    for block in ("test", "validation"):
        rows = np.flatnonzero(e.mask(block))
        y = e.spike[rows]
        if _LEAST_SPIKES <= int(y.sum()) <= len(y) - _LEAST_SPIKES:
            return _Judged(block, rows, e.artefact.margin(columns(e, e.artefact)[rows]), y)
    return None


def perfect(e: Evidence) -> Iterator[Finding]:
    """Doubt a model that is near-perfect, the more where the last minute's volatility alone ties it."""
    judged = _judged(e)
    if judged is None:
        return
    reached = skill(judged.p, judged.y)
    if reached < PERFECT or _within(e, judged) < PERFECT:
        return
    ties = []
    if e.quotes is not None:
        before = at_rows(e, e.quotes, shift_s=-e.horizon_s)[judged.rows]
        known = np.isfinite(before)
        y, tau = judged.y[known], e.rows["tau"].to_numpy()[judged.rows][known]
        if 0 < y.sum() < len(y) and skill(before[known] / tau, y) >= reached - TIE:
            ties = ["the volatility of the last 60 s"]
    pr_auc, prevalence = average_precision(judged.p, judged.y), judged.y.mean()
    said = f"PR-AUC on {judged.block} is {pr_auc:.4f} at a prevalence of {prevalence:.4f}"
    if ties:
        yield Finding(
            "BASELINE_TIES", "leak", f"{said}, and {ties[0]} alone has it too: the label is not about the future"
        )
    elif reached >= IMPOSSIBLE:
        yield Finding("NEAR_PERFECT", "leak", f"{said}: nobody forecasts a market so; find what gives the answer away")


def _within(e: Evidence, judged: _Judged) -> float:
    """Median skill within quarters of an hour of one product that have both kinds.

    A calm hour and a stormy one are told apart by anybody; it takes a leak to be near-perfect inside both.
    """
    product = e.rows["product_id"][judged.rows].rank("dense").to_numpy().astype(np.int64)
    place = product * (1 << 40) + e.t_ns[judged.rows] // (_BLOCK_S * NS)
    found = []
    for rows in (np.flatnonzero(place == code) for code in np.unique(place)):
        y = judged.y[rows]
        if _FEW <= int(y.sum()) <= len(y) - _FEW:
            found.append(skill(judged.p[rows], y))
    return float(np.median(found)) if found else 0.0


def time_shift(e: Evidence) -> Iterator[Finding]:
    """Judge the forecasts on labels of another time: what was foreseen must be about its own time."""
    judged = _judged(e)
    if judged is None or (now := skill(judged.p, judged.y)) < _SOME:
        return
    kept = {}
    for away in _AWAY_S:
        pairs = [_moved(e, judged.rows, sign * away) for sign in (1, -1)]
        here = np.concatenate([a for a, _ in pairs])
        there = np.concatenate([b for _, b in pairs])
        y = judged.y[there]
        if len(here) >= len(judged.y) // 2 and _LEAST_SPIKES <= int(y.sum()) <= len(y) - _LEAST_SPIKES:
            kept[away] = skill(judged.p[here], y)
    if kept and min(kept.values()) >= KEPT * now:
        text = ", ".join(f"{away} s away {value:.3f}" for away, value in kept.items())
        yield Finding(
            "SKILL_WITHOUT_TIME",
            "leak",
            f"the forecasts of {judged.block} have skill {now:.3f} on their own labels and {text}: they know the "
            "stretch of the recording, not what comes next",
        )


def _moved(e: Evidence, rows: NDArray[np.int64], away_s: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of row numbers (of those judged) of one product that are ``away_s`` apart."""
    product = e.rows["product_id"][rows].rank("dense").to_numpy().astype(np.int64)
    t = e.t_ns[rows]
    here, there = [], []
    for code in np.unique(product):
        mine = np.flatnonzero(product == code)
        mine = mine[np.argsort(t[mine], kind="stable")]
        at = np.minimum(np.searchsorted(t[mine], t[mine] + away_s * NS), len(mine) - 1)
        found = t[mine][at] == t[mine] + away_s * NS
        here.append(mine[found])
        there.append(mine[at[found]])
    return np.concatenate(here), np.concatenate(there)


def shuffled(e: Evidence) -> Iterator[Finding]:
    """Learn labels that were moved along the clock: what is left of skill on the later block came by another way.

    The labels of each product are cut into pieces of 15 minutes that change places, and moved round in a circle: their
    autocorrelation stays, their tie to the features goes. Trees are fitted on train and judged on the block after it,
    many times; over these times the interval of the PR-AUC must cover the prevalence. Where spikes come in a few
    clusters a forecast that knows nothing has a PR-AUC above the prevalence by chance; so of each the mean of the same
    forecasts on labels moved against them is taken off.
    """
    block = next((b for b in ("test", "validation") if e.mask(b).any()), None)
    train = e.mask("train")
    if block is None or not 0 < e.spike[train].sum() < train.sum():
        return
    ratios = np.array(list(_on_shuffled(e, train, e.mask(block))))
    if len(ratios) < _SHUFFLES // 2:
        return
    low = float(ratios.mean() - _ERRORS * ratios.std(ddof=1) / np.sqrt(len(ratios)))
    if low > 0 and ratios.mean() > _LEARNED:
        yield Finding(
            "LEARNS_SHUFFLED",
            "leak",
            f"trees that learned labels moved along the clock still have a skill of {ratios.mean():.3f} on {block} "
            f"(over {len(ratios)} shuffles; its interval begins at {low:.3f}, must cover 0, which is the prevalence): "
            "rows of the two blocks know each other",
        )


def _on_shuffled(e: Evidence, train: Bools, later: Bools) -> Iterator[float]:
    import xgboost

    rng = np.random.default_rng(20251201)
    products = e.rows["product_id"].to_numpy()
    step = max(1, e.rows.height // _MOST_ROWS)
    thin = np.zeros(e.rows.height, np.bool_)
    thin[::step] = True
    x_train, x_later = (
        xgboost.QuantileDMatrix(e.x[train & thin], max_bin=32),
        xgboost.DMatrix(e.x[later & thin]),
    )
    for _ in range(_SHUFFLES):
        y = np.zeros(e.rows.height, np.bool_)
        for product in np.unique(products):
            rows = np.flatnonzero(products == product)
            y[rows] = _shuffle(e.t_ns[rows], e.spike[rows], rng)
        judged = y[later & thin]
        if not 0 < judged.sum() < len(judged) or not 0 < y[train & thin].sum() < (train & thin).sum():
            continue
        x_train.set_label(y[train & thin].astype(np.float32))
        params = {
            "objective": "binary:logistic", "tree_method": "hist", "max_bin": 32, "max_depth": 4, "eta": 0.3,
            "nthread": 1, "seed": 7,
        }  # fmt: skip
        p = xgboost.train(params, x_train, _ROUNDS).predict(x_later).astype(np.float64)
        along = np.lexsort((e.t_ns[later & thin], products[later & thin].astype(str)))
        p, judged = p[along], judged[along]
        moves = (np.arange(1, _MOVES + 1) * len(p)) // (_MOVES + 1)
        yield skill(p, judged) - float(np.mean([skill(p, np.roll(judged, m)) for m in moves]))


def _shuffle(t_ns: NDArray[np.int64], y: Bools, rng: np.random.Generator) -> Bools:
    """Move labels along the clock: the pieces of 15 minutes change places."""
    order = np.argsort(t_ns, kind="stable")
    pieces = np.unique(t_ns[order] // (_BLOCK_S * NS), return_index=True)[1][1:]
    parts = np.split(y[order], pieces)
    moved = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
    out = np.empty_like(y)
    out[order] = np.roll(moved, int(rng.integers(len(y))))
    return out
