"""The gate before champion: whether the evidence for a challenger is enough, by rules written down beforehand.

::

    evidence    rows >= 960 s after everything that challenger and champion were trained, tuned or calibrated on, and
                of which nobody was shown figures of another run: the challenger's sealed block, and what came later
    question    is its PR-AUC on them greater than the champion's (without one: than the best baseline's)?
    answer      yes, if the lower bound of the paired difference over resampled blocks of time is above 0

Attempt k of a registry may err with probability ``alpha / (k (k + 1))``. These sum to alpha however long the series
gets, so trying often enough does not make a model that is no better a champion.

Source: Foster and Stine, "Alpha-investing", 2008, section 2, for spending of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.bootstrap import MIN_BLOCKS, paired

MIN_EPISODES: Final = 20
STAT: Final = "pr_auc"
RESAMPLES: Final = 2000
ECE_SHARE: Final = 0.25
"""A calibration error up to this share of the prevalence is good enough, whatever the opponent's is."""


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a model may not become champion: a code for machines, a sentence for people."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may cost: milliseconds for one forecast at the 99th percentile, megabytes on disk."""

    p99_ms: float
    size_mb: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """PR-AUC of the challenger minus the opponent's on the same rows, and how little it may really be.

    Attributes
    ----------
    difference, low, high
        As measured, and its 95 % interval.
    lower_bound
        Bound at the confidence of this attempt.
    alpha
        Probability with which this attempt may err.
    blocks, spike_blocks
        Quarters of an hour with a row, and with a spike.
    """

    difference: float
    low: float
    high: float
    lower_bound: float
    alpha: float
    blocks: int
    spike_blocks: int


@dataclass(frozen=True, slots=True)
class Contest:
    """Everything the gate judges.

    Attributes
    ----------
    opponent
        ``champion VERSION (run)`` or ``baseline NAME``.
    p99_ms, size_mb
        One forecast at the 99th percentile; the artefact's files.
    start_ns, end_ns, rows, spikes, episodes, blocks
        The evidence: rows on the clock, ns UTC; separate spike episodes; quarters of an hour. Spikes and episodes are
        not counted, and 0, where the blocks are too few: the sealed block then stays sealed.
    left_out
        Rows that are no evidence, by reason.
    attempt
        Number of this comparison in the registry, from 1; 0 where none was made.
    challenger, against, baseline
        Figures on these rows, of the challenger, its opponent and the best baseline on validation.
    baseline_name
        Which that is.
    comparison
        None where the evidence is too thin to compare.
    audit
        Leaks that the audit found, as text.
    refused
        What stood in the way before anything could be compared.
    """

    opponent: str
    p99_ms: float
    size_mb: float
    start_ns: int = 0
    end_ns: int = 0
    rows: int = 0
    spikes: int = 0
    episodes: int = 0
    blocks: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    attempt: int = 0
    challenger: dict[str, float | None] = field(default_factory=dict)
    against: dict[str, float | None] = field(default_factory=dict)
    baseline: dict[str, float | None] = field(default_factory=dict)
    baseline_name: str = ""
    comparison: Comparison | None = None
    audit: tuple[str, ...] = ()
    refused: tuple[Objection, ...] = ()


def spend(alpha: float, attempt: int) -> float:
    """Share of alpha that an attempt may use; over all attempts from 1 on they sum to alpha.

    Examples
    --------
    >>> spend(0.05, 1), round(sum(spend(0.05, k) for k in range(1, 10_000)), 4)
    (0.025, 0.05)
    """
    return alpha / (attempt * (attempt + 1))


def compare(
    p: NDArray[np.float64],
    other: NDArray[np.float64],
    y: NDArray[np.bool_],
    t_ns: NDArray[np.int64],
    alpha: float,
    *,
    resamples: int = RESAMPLES,
) -> Comparison | None:
    """Compare two forecasts of the same rows.

    Parameters
    ----------
    p, other
        float64[n], probabilities of the challenger and of its opponent.
    y, t_ns
        bool[n] spikes and int64[n] times, ns UTC.
    alpha
        Probability with which the bound may be wrong.

    Returns
    -------
    Comparison or None
        None where there are too few blocks for an interval.
    """
    found = paired(STAT, p, other, y, t_ns, n=resamples)
    if found is None:
        return None
    bound = found.lower_bound(alpha)
    return Comparison(found.difference, found.low, found.high, bound, alpha, found.blocks, found.spike_blocks)


def objections(contest: Contest, limits: Limits) -> list[Objection]:
    """Judge.

    Returns
    -------
    list of Objection
        Empty if the model may pass. Codes, in this order: AUDIT_FAILED; what stood in the way (HASH_DIFFERS,
        CHAMPION_DAMAGED, NO_EVIDENCE); INSUFFICIENT_EVIDENCE; NOT_BETTER, BELOW_PREVALENCE, BELOW_BASELINE,
        CALIBRATION_WORSE; TOO_SLOW, TOO_LARGE.
    """
    found = []
    if contest.audit:
        text = f"the audit found {len(contest.audit)} leaks, must find none: {'; '.join(contest.audit)[:600]}"
        found.append(Objection("AUDIT_FAILED", text))
    found += contest.refused
    if contest.comparison is None or contest.episodes < MIN_EPISODES or contest.blocks < MIN_BLOCKS:
        if not contest.refused:
            found.append(_thin(contest))
    else:
        found += _worse(contest, contest.comparison)
    if contest.p99_ms > limits.p99_ms:
        text = f"one forecast takes {contest.p99_ms:.2f} ms at the 99th percentile, must be <= {limits.p99_ms:g} ms"
        found.append(Objection("TOO_SLOW", text))
    if contest.size_mb > limits.size_mb:
        text = f"the artefact has {contest.size_mb:.1f} MB, must be <= {limits.size_mb:g} MB"
        found.append(Objection("TOO_LARGE", text))
    return found


def _thin(contest: Contest) -> Objection:
    lost = ", ".join(f"{rows:,} rows {why}" for why, rows in contest.left_out.items() if rows)
    known = f"{contest.episodes} spike episodes in " if contest.episodes else ""
    return Objection(
        "INSUFFICIENT_EVIDENCE",
        f"{known}{contest.blocks} blocks of 15 minutes on which neither model was trained or chosen, must be at least "
        f"{MIN_EPISODES} episodes in {MIN_BLOCKS} blocks with spikes in several of them"
        + (f"; no evidence are {lost}" if lost else "")
        + "; record longer, then try again",
    )


def _worse(contest: Contest, comparison: Comparison) -> list[Objection]:
    found = []
    own, against = contest.challenger, contest.against
    if not comparison.lower_bound > 0:
        found.append(
            Objection(
                "NOT_BETTER",
                f"PR-AUC {_said(own, STAT)} against {_said(against, STAT)} of {contest.opponent}: the difference "
                f"{comparison.difference:+.4f} may be as little as {comparison.lower_bound:+.4f} (attempt "
                f"{contest.attempt}, alpha {comparison.alpha:.2g}, {comparison.blocks} blocks), must be above 0",
            )
        )
    pr_auc, prevalence = own.get(STAT), own.get("prevalence")
    if pr_auc is None or prevalence is None or pr_auc <= prevalence:
        text = f"PR-AUC {_said(own, STAT)} must be above the prevalence {_said(own, 'prevalence')}"
        found.append(Objection("BELOW_PREVALENCE", text))
    floor = contest.baseline.get(STAT)
    if pr_auc is None or floor is None or pr_auc < floor:
        text = f"PR-AUC {_said(own, STAT)} must not be below {floor} of baseline {contest.baseline_name}"
        found.append(Objection("BELOW_BASELINE", text))
    ece, limit = own.get("ece_equal_mass"), against.get("ece_equal_mass")
    allowed = max(limit or 0.0, ECE_SHARE * (prevalence or 0.0))
    skill = own.get("brier_skill")
    if ece is None or ece > allowed or skill is None or skill <= 0:
        found.append(
            Objection(
                "CALIBRATION_WORSE",
                f"calibration error {_said(own, 'ece_equal_mass')} must be <= {allowed:.4f} (the opponent's, or "
                f"{ECE_SHARE:g} of the prevalence), Brier skill {_said(own, 'brier_skill')} must be > 0",
            )
        )
    return found


def _said(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    return "undefined" if value is None else f"{value:.4f}"
