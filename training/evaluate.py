"""Measure a run on a block of rows: everything a report says, as plain numbers.

Without ``final`` the block is validation, on which the run was stopped, calibrated and cut: it flatters, and says so.
``final`` opens the sealed block, once, and the opening is on record before a row of it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from feature_repo.errors import InputError, InsufficientDataError, SealedError, StoreError, UsageError
from infra.settings import settings
from training import curves
from training.baselines import BASELINES
from training.bootstrap import MIN_BLOCKS, intervals, paired
from training.breakdown import breakdown
from training.evaluation import Curves, Difference, Evaluation
from training.events_view import events
from training.gate import MIN_EPISODES
from training.importance import importance
from training.metrics import figures
from training.runs import Run, spikes_of
from training.scoring import VOLATILITIES, Rivals, probabilities, read, rivals
from training.sealed import BLOCK, Opening, open_block, openings
from training.sealed import opening as opening_of
from training.spikes import episodes
from training.tracking import tracking

INTERVALS: Final = (
    "pr_auc", "roc_auc", "precision_at_recall50", "ece_equal_mass", "brier_skill", "log_loss", "f1", "precision",
    "recall",
)  # fmt: skip
SLOPES: Final = 200
"""Resamples of the calibration slope, which is fitted anew in each."""
COMPARED: Final = ("pr_auc", "brier_skill", "log_loss")
FOLDER: Final = "evaluation"
"""Folder of reports in a run."""
FIGURES: Final = ".json"
"""The figures lie beside the report under its name with this ending."""
NEAR_PERFECT: Final = 0.8
"""PR-AUC above which the report itself tells the reader to look for a leak first."""


def evaluate(
    ref: str,
    *,
    final: bool = False,
    delay_ms: float | None = None,
    out: Path | None = None,
    reason: str = "evaluate --final",
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure a run, write its report and log both with the run.

    Parameters
    ----------
    ref
        As :meth:`training.runs.Run.load` takes it.
    final
        Open the sealed block; otherwise validation is measured.
    delay_ms
        How late features arrive; None for ``live_delay_ms`` of the settings.
    out
        HTML file to write, its figures beside it as JSON; None for one in the reports folder.
    reason
        For the record of the opening.
    progress
        Told what is being done.

    Raises
    ------
    UsageError
        If ``out`` is named as the file of figures would be.
    SealedError
        If the sealed block was opened before.
    InsufficientDataError
        If the block has no row.
    InputError, ArtefactError, ContractError, StoreError
        If the run, its artefact, the tables or MLflow can't be used.
    """
    from training.report import write

    if out is not None and out.suffix == FIGURES:
        raise UsageError(f"--out is {str(out)!r}, where the figures would replace the report; end the name in .html")
    run = Run.load(ref)
    if final and not run.run_id:
        raise InputError(f"{ref} is a folder and no run, so an opening could not be recorded; give a run id")
    progress("training set")
    block = BLOCK if final else "validation"
    opening = _opened(run, reason) if final else None
    found = measure(run, block, delay_ms=delay_ms, opening=opening, progress=progress)
    path = out if out is not None else settings().reports / f"evaluate-{run.run_id[:12] or 'folder'}-{block}.html"
    progress("report")
    found = replace(found, report=str(path))
    write(path, found, run.manifest)
    if run.run_id:
        _log(run.run_id, found, path)
    return found


def _opened(run: Run, reason: str) -> Opening:
    """Open the sealed block; or go on with an opening for this run that died before it had shown anything."""
    before = opening_of(run.run_id, manifest=run.manifest)
    if before is not None and before.run_id == run.run_id and not _shown(run.run_id):
        return before
    return open_block(run.run_id, reason, manifest=run.manifest)


def _shown(run_id: str) -> bool:
    with tracking() as client:
        return bool(client.list_artifacts(run_id, f"{FOLDER}/final"))


def measure(
    run: Run,
    block: str,
    *,
    delay_ms: float | None = None,
    opening: Opening | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure a run on one block; parameters and errors as :func:`evaluate`, which see to the seal first."""
    manifest = run.manifest
    delay_ms = settings().live_delay_ms if delay_ms is None else delay_ms
    every = spikes_of(run).frame.filter(pl.col("product_id").is_in(list(manifest.label.tau)))
    known = every.filter(pl.col("block").is_in(["train", "validation"]))
    frame, spent = _unseen(every.filter(pl.col("block") == block), opening)
    if frame.is_empty():
        raise InsufficientDataError(
            f"block {block} of run {run.run_id} has no row in the tables; replay its tapes again"
        )
    progress("baselines")
    others = rivals(known, read(known, VOLATILITIES))
    progress("forecasts")
    names = tuple(dict.fromkeys([*manifest.features, *VOLATILITIES]))
    x = read(frame, names)
    y, tau, t = (frame[c].to_numpy() for c in ("spike", "tau", "event_time_ns"))
    p = probabilities(run.artefact, x, names)
    late = probabilities(run.artefact, read(frame, manifest.features, delay_ms=delay_ms), manifest.features)
    volatilities = x[:, [names.index(v) for v in VOLATILITIES]]
    rival = {name: others.forecast(name, volatilities, tau) for name in others.fitted}
    base = rival[others.best]
    cut = manifest.threshold
    horizon_s = run.options.horizon_s
    count = episodes(frame, horizon_s)
    progress("intervals")
    alarm = p >= cut
    return Evaluation(
        run_id=run.run_id,
        kind=manifest.kind,
        block=block,
        opening=opening,
        blocks=manifest.training.blocks,
        purge_s=manifest.training.purge_s,
        folds=dict(manifest.metrics.get("folds", {})),
        threshold=cut,
        pooled=figures(p, y, cut, t_ns=t, episodes=count),
        intervals=intervals(INTERVALS, p, y, t, threshold=cut) | intervals(("calibration_slope",), p, y, t, n=SLOPES),
        baselines={name: figures(q, y, t_ns=t, episodes=count) for name, q in rival.items()},
        best_baseline=others.best,
        differences=[_difference(stat, p, base, frame) for stat in COMPARED],
        groups=breakdown(frame, p, base, cut),
        events=events(frame, alarm, horizon_s),
        baseline_events=events(frame, _as_many(base, int(alarm.sum())), horizon_s),
        delay_ms=delay_ms,
        delayed=figures(late, y, cut, t_ns=t, episodes=count),
        delay_costs=_difference("pr_auc", late, p, frame),
        importance=importance(run.artefact, x[:, [names.index(f) for f in manifest.features]]),
        curves=_curves(p, base, others.best, frame),
        timeline=_timeline(every.filter(pl.col("block") != BLOCK) if block != BLOCK else every, horizon_s),
        warnings=[*spent, *_warnings(figures(p, y, cut, t_ns=t, episodes=count), block, others, manifest.metrics)],
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _unseen(frame: pl.DataFrame, opening: Opening | None) -> tuple[pl.DataFrame, list[str]]:
    """Leave out the rows that other splits' sealed blocks showed before, and say so."""
    if opening is None or not opening.overlaps:
        return frame, []
    t = pl.col("event_time_ns")
    earlier = [o for o in openings() if o.key in opening.overlaps]
    kept = frame.filter(~pl.any_horizontal(t.is_between(o.start_ns, o.end_ns) for o in earlier))
    if kept.is_empty() and not frame.is_empty():
        raise SealedError(
            f"all {frame.height:,} rows of the sealed block were seen before, with {len(earlier)} others; "
            "record newer data and train on that"
        )
    lost = frame.height - kept.height
    return kept, [f"{lost:,} of {frame.height:,} rows were seen before in another split's sealed block: left out."]


def _difference(stat: str, p: np.ndarray[Any, Any], other: np.ndarray[Any, Any], frame: pl.DataFrame) -> Difference:
    y, t = frame["spike"].to_numpy(), frame["event_time_ns"].to_numpy()
    mine, theirs = (figures(q, y)[stat] for q in (p, other))
    pair = paired(stat, p, other, y, t)
    value = mine - theirs if mine is not None and theirs is not None else None
    return Difference(stat, value, (pair.low, pair.high) if pair is not None else None)


def _as_many(p: np.ndarray[Any, Any], alarms: int) -> np.ndarray[Any, Any]:
    """The greatest p, as many as asked for: a baseline judged at the model's own readiness to call."""
    out = np.zeros(len(p), np.bool_)
    out[np.argsort(-p, kind="stable")[:alarms]] = True
    return out


def _curves(p: np.ndarray[Any, Any], base: np.ndarray[Any, Any], name: str, frame: pl.DataFrame) -> Curves:
    y, t = frame["spike"].to_numpy(), frame["event_time_ns"].to_numpy()
    both = {"model": p, f"baseline {name}": base}
    return Curves(
        {who: curves.precision_recall(q, y) for who, q in both.items()},
        {who: curves.roc(q, y) for who, q in both.items()},
        {who: curves.costs(q, y) for who, q in both.items()},
        curves.reliability(p, y, t),
        curves.shifted(p, y, t, frame["product_id"].to_numpy().astype(str)),
        curves.by_luck(p, y, t),
    )


def _timeline(frame: pl.DataFrame, horizon_s: int) -> list[tuple[int, int, str]]:
    """Spike episodes of all products as (start_ns, end_ns, block)."""
    rows = frame.filter(pl.col("spike")).select("event_time_ns", "block").unique().sort("event_time_ns")
    out: list[tuple[int, int, str]] = []
    for t, block in rows.iter_rows():
        if out and out[-1][2] == block and t - out[-1][1] <= horizon_s * 1_000_000_000:
            out[-1] = (out[-1][0], t, block)
        else:
            out.append((t, t, block))
    return out


def _warnings(
    pooled: dict[str, float | None], block: str, others: Rivals, logged: dict[str, dict[str, float | None]]
) -> list[str]:
    out = []
    if block != BLOCK:
        out.append(
            "These rows are validation: the model was stopped, calibrated and cut on them, so its figures here "
            "flatter. Those of the purged folds and of the sealed block (--final) do not."
        )
    spans, count = pooled["blocks"] or 0, pooled["episodes"] or 0
    if spans < MIN_BLOCKS:
        out.append(
            f"{spans:.0f} blocks of 15 minutes hold a row, under {MIN_BLOCKS}: there is no interval, and the figures "
            "may be luck."
        )
    if count < MIN_EPISODES:
        out.append(f"{count:.0f} separate spike episodes, under {MIN_EPISODES}: the figures say little.")
    if pooled["pr_auc"] is None:
        out.append("No figure of ranking or skill is defined: the rows hold no spike, or nothing but spikes.")
    elif pooled["pr_auc"] > NEAR_PERFECT:
        out.append(
            f"PR-AUC {pooled['pr_auc']:.3f} is too good for a market: take it for a leak until volspike audit and a "
            "look at the importances say otherwise."
        )
    left_out = sorted(set(BASELINES) - set(others.fitted))
    if left_out:
        out.append(f"Baselines that could not be fitted: {', '.join(left_out)}.")
    if "folds" not in logged:
        out.append("The run logged no figures of purged folds.")
    return out


def _log(run_id: str, found: Evaluation, path: Path) -> None:
    """Keep report and numbers with the run, so that they stay when the tables move on."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    name = "final" if found.block == BLOCK else found.block
    numbers = path.with_suffix(FIGURES)
    try:
        numbers.write_text(json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"can't write {numbers}: {error.strerror}; free space, or give another --out") from error
    with tracking() as client:
        try:
            now = int(client.get_run(run_id).info.start_time)
        except MlflowException:
            return  # an artefact that was copied here from elsewhere
        values = [(k, v) for k, v in found.pooled.items() if v is not None and math.isfinite(v)]
        if found.block == BLOCK:
            client.log_batch(run_id, metrics=[Metric(f"{name}_{k}", v, now, 0) for k, v in values])
        for file in (path, numbers):
            client.log_artifact(run_id, str(file), f"{FOLDER}/{name}")
