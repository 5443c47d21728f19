"""What was typed becomes options, and what split and train have to say becomes plain values."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from feature_repo.contract import DEFAULT_SERVICE, HORIZON_S, TOP_SERVICE
from feature_repo.errors import UsageError
from training.gate import MIN_EPISODES
from training.labels import labels_of
from training.options import TrainOptions
from training.sessions import recorded, resolve
from training.spikes import Spikes, spikes
from training.splits import BLOCKS

if TYPE_CHECKING:
    from training.train import TrainReport
    from training.tune import TuneReport

ROLLING_HOURS: Final = 6.0
"""Trailing hours of a rolling tau unless told otherwise: the level of recorded tapes moves by the hour, and a shorter
window would follow the very clusters that are to be forecast."""


def options(
    *,
    service: str = "",
    top: bool = False,
    session: str = "",
    exclude_products: str = "",
    experiment: str = "",
    threshold_percentile: float | None = None,
    tau: float | None = None,
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15),
    min_coverage: float | None = None,
    seed: int = 7,
    horizon: str = "",
    returns: str = "1s",
    threshold: str = "fixed",
    rolling_hours: float | None = None,
    sessions: str = "",
    train_sessions: str = "",
    val_sessions: str = "",
    test_sessions: str = "",
) -> TrainOptions:
    """Turn what was typed into options; empty text and None mean the default.

    Raises
    ------
    UsageError
        If a value is not allowed, two exclude each other, or a session is not in the tables.
    """
    if threshold not in ("fixed", "rolling"):
        raise UsageError(f"--threshold is {threshold!r}, must be fixed or rolling")
    if rolling_hours is not None and threshold != "rolling":
        raise UsageError(f"--rolling-hours {rolling_hours:g} goes with --threshold rolling; give both or none")
    if session and sessions:
        raise UsageError(
            "--session chooses what is split as one, --sessions what is split one by one; give one of them"
        )
    if tau is not None and threshold == "rolling":
        raise UsageError(f"--tau {tau:g} is absolute and cannot roll; leave --tau or --threshold rolling out")
    if top and service not in ("", TOP_SERVICE):
        raise UsageError(f"--use-top-features is {TOP_SERVICE}, --service is {service!r}; give one of them")
    if tau is not None and threshold_percentile is not None:
        raise UsageError(f"--tau {tau:g} and --threshold-percentile {threshold_percentile:g} exclude each other")
    given: dict[str, Any] = {
        "experiment": experiment or None,
        "percentile": threshold_percentile,
        "tau": tau,
        "min_coverage_s": min_coverage,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if threshold_percentile is not None or threshold == "rolling":
        given["tau"] = None  # said now, it goes before an absolute tau in the settings
    return TrainOptions(
        service=TOP_SERVICE if top else service or DEFAULT_SERVICE,
        exclude_products=_names(exclude_products),
        sessions=resolve(_names(session or sessions), option="--sessions" if sessions else "--session"),
        ratios=ratios,
        seed=seed,
        horizon_s=seconds(horizon) if horizon else HORIZON_S,
        returns=cast(Literal["1s", "tick"], returns),  # TrainOptions refuses any other
        rolling_hours=(ROLLING_HOURS if rolling_hours is None else rolling_hours) if threshold == "rolling" else None,
        each_session=bool(sessions),
        train_sessions=resolve(_names(train_sessions), option="--train-sessions"),
        val_sessions=resolve(_names(val_sessions), option="--val-sessions"),
        test_sessions=resolve(_names(test_sessions), option="--test-sessions"),
        **given,
    )


def seconds(text: str) -> int:
    """Read a duration in whole seconds.

    Examples
    --------
    >>> seconds("60s"), seconds("2m"), seconds("1h"), seconds("90")
    (60, 120, 3600, 90)
    """
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text.strip())
    if found is None:
        raise UsageError(f"--horizon is {text!r}, must be whole seconds, minutes or hours such as 60s, 2m or 1h")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def split_summary(chosen: TrainOptions) -> dict[str, Any]:
    """Count rows, spikes and episodes per block, the rows lost between them, and the rows per session and block.

    Raises
    ------
    InsufficientDataError
        If there is nothing to split, or a block would be empty.
    """
    found = spikes(labels_of(chosen), chosen)
    blocks: list[dict[str, Any]] = [
        {
            "block": name,
            **{key: count[key] for key in ("rows", "spikes", "episodes")},
            "from": utc(count["start_ns"]),
            "to": utc(count["end_ns"]),
        }
        for name, count in found.counts().items()
    ]
    warnings = [
        f"{b['block']} has {b['episodes']} separate spike episodes, under {MIN_EPISODES}: its figures say little"
        for b in blocks
        if b["episodes"] < MIN_EPISODES
    ]
    warnings += [
        f"{b['block']} has {b['spikes']} spikes in {b['rows']} rows: nothing can be learned from it or measured on it"
        for b in blocks
        if not 0 < b["spikes"] < b["rows"]
    ]
    without = [
        f"{product}: {count:,} rows have no rolling tau ({reason})"
        for product, counts in found.missing.items()
        for reason, count in counts.items()
    ]
    return {
        "blocks": blocks,
        "lost": found.split.lost,
        "purge_s": found.split.purge_s,
        "horizon_s": found.label.horizon_s,
        "rule": {"kind": found.label.rule.kind, "value": found.label.rule.value, "hours": found.label.rule.hours},
        "tau": found.tau,
        "refused": found.refused,
        "sessions": _sessions(found),
        "warnings": [
            *warnings,
            *found.split.warnings,
            *without,
            *(f"left out: {reason}" for reason in found.refused.values()),
        ],
    }


def _sessions(found: Spikes) -> list[dict[str, Any]]:
    """Rows per session and block; the numbers are those that --sessions takes."""
    counts = found.frame.group_by("session", "block").len()
    rows = {(session, block): n for session, block, n in counts.iter_rows()}
    return [
        {"number": number, "session": session, **{block: rows.get((session, block), 0) for block in BLOCKS}}
        for number, session in enumerate(recorded(), 1)
        if session in found.sessions
    ]


def model_rows(report: TrainReport) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows of the table of models: figures on validation, the prevalence beside each PR-AUC."""
    names = ("pr_auc", "prevalence", "roc_auc", "f1", "precision", "recall")
    header = ("model", "PR-AUC", "prevalence", "ROC-AUC", "F1", "precision", "recall", "PR-AUC folds", "version", "run")
    rows: list[tuple[object, ...]] = []
    for m in report.models:
        folds = m.metrics.get("folds", {}).get("pr_auc")
        shown = [m.metrics["validation"][n] for n in names]
        rows.append((f"{m.kind} {m.product}".strip(), *shown, folds, m.version or "refused", m.run_id))
    return header, rows


def baseline_rows(report: TrainReport) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows of the table of baselines, on validation."""
    names = ("pr_auc", "prevalence", "roc_auc", "f1", "brier_skill")
    header = ("baseline", "PR-AUC", "prevalence", "ROC-AUC", "F1", "Brier skill")
    return header, [(name, *(figures[n] for n in names)) for name, figures in report.baselines.items()]


def best_lines(report: TrainReport) -> list[str]:
    """Name the best model on validation, of each product where each has its own, and a baseline that beats it."""
    lines = []
    for product in dict.fromkeys(m.product for m in report.models):
        best = report.best_of(product)
        mine = best.metrics["validation"]["pr_auc"] or 0.0
        ending = f" {product}" if product else ""
        rivals = {
            name.removesuffix(ending): figures["pr_auc"] or 0.0
            for name, figures in report.baselines.items()
            if name.endswith(ending)
        }
        line = f"best on validation{ending and ' of' + ending}: {best.kind}, PR-AUC {mine:.4f}"
        if rivals and rivals[rival := max(rivals, key=rivals.__getitem__)] >= mine:
            line += f", not above baseline {rival}, {rivals[rival]:.4f}"
        lines.append(f"{line}. Next: volspike evaluate {best.run_id}")
    return lines


def candidate_rows(report: TuneReport, most: int = 5) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows of the best candidates of each model."""
    rows: list[tuple[object, ...]] = []
    for kind in dict.fromkeys(c["kind"] for c in report.candidates):
        for c in [c for c in report.candidates if c["kind"] == kind][:most]:
            rows.append(
                (kind, " ".join(f"{k}={v}" for k, v in c["hyper"].items()), c["trees"], c["score"], c["run_id"])
            )
    return ("model", "hyperparameters", "trees", "score", "run"), rows


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def utc(ns: int) -> str:
    """Write a time as date and time of day in UTC."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
