"""What an evaluation found, as plain numbers: :func:`training.evaluate.evaluate` fills it, a report draws it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from training.breakdown import Group
from training.curves import Bin, Points
from training.events_view import Events
from training.importance import Importance
from training.metrics import figures
from training.sealed import Opening

__all__ = ["Curves", "Difference", "Evaluation", "figures"]

_PLAIN: Final = (
    "run_id", "kind", "block", "blocks", "purge_s", "folds", "threshold", "pooled", "intervals", "baselines",
    "best_baseline", "delay_ms", "delayed", "warnings", "report", "at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of the model minus the best baseline's on the same rows, with its 95 % interval, None if unknown."""

    stat: str
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Curves:
    """Points to draw, by who forecast."""

    precision_recall: dict[str, Points]
    roc: dict[str, Points]
    costs: dict[str, Points]
    reliability: list[Bin]
    shifted: Points
    by_luck: list[float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured.

    Attributes
    ----------
    run_id, kind, block
        The run, its kind of model, and ``validation`` or ``test``.
    opening
        Record of the sealed block's opening; None on validation.
    blocks, purge_s
        Blocks of the split on the clock, and the seconds between them.
    folds
        Figures of the purged folds as the run logged them.
    threshold
        Alarm where p ≥ threshold.
    pooled, intervals
        Figures of all rows, and their 95 % intervals.
    baselines, best_baseline
        Figures of each baseline on the same rows; the one that was best on validation.
    differences
        Against that one.
    groups
        By product, session and hour.
    events, baseline_events
        Episodes and alerts; the baseline's at as many alarms as the model raises.
    delay_ms, delayed, delay_costs
        Features so late; figures with them; PR-AUC lost by it.
    warnings
        What a reader must know first.
    report
        The HTML file, empty before it is written.
    """

    run_id: str
    kind: str
    block: str
    opening: Opening | None
    blocks: dict[str, dict[str, int]]
    purge_s: int
    folds: dict[str, float | None]
    threshold: float
    pooled: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    baselines: dict[str, dict[str, float | None]]
    best_baseline: str
    differences: list[Difference]
    groups: list[Group]
    events: Events
    baseline_events: Events
    delay_ms: float
    delayed: dict[str, float | None]
    delay_costs: Difference
    importance: Importance
    curves: Curves
    timeline: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    report: str = ""
    at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``, without the points of the curves."""
        said = {name: getattr(self, name) for name in _PLAIN}
        return said | {
            "opening": asdict(self.opening) if self.opening else None,
            "differences": [asdict(d) for d in self.differences],
            "delay_costs": asdict(self.delay_costs),
            "groups": [asdict(g) for g in self.groups],
            "events": self.events.to_dict(),
            "baseline_events": self.baseline_events.to_dict(),
            "importance": [
                {"feature": n, "contribution": c, "gain": g, "direction": d}
                for n, c, g, d in self.importance.ranked(30)
            ],
        }
