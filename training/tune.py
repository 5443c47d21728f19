"""``volspike tune`` as a function: search, log every candidate, refit the best of each model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from feature_repo.errors import UsageError
from training.alone import alone
from training.crossval import STEP
from training.options import TrainOptions
from training.preparation import prepare
from training.tracking import experiment_id, log_run, tracking
from training.train import TrainReport, train
from training.tuning import Candidate, candidates, journal_of, problem_of, search

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.fitting import Material

TUNABLE = ("lr", "xgb")


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a tune found.

    Attributes
    ----------
    run_id
        Parent run of all.
    folds
        Purged folds that were used.
    candidates
        Kind, hyperparameters, mean score, trees and run of each, the best of each kind first.
    resumed
        Candidates that an earlier, interrupted tune had finished.
    trained
        The refitted models.
    """

    run_id: str
    folds: int
    candidates: list[dict[str, Any]]
    resumed: int
    trained: TrainReport
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {**asdict(self), "trained": self.trained.to_dict()}


def tune(
    options: TrainOptions,
    *,
    kinds: Sequence[str] = TUNABLE,
    quick: bool = False,
    override: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TuneReport:
    """Search the grids of these models, and train each with the best of its candidates.

    Parameters
    ----------
    options
        As for training; ``hyper`` is what this finds. ``jobs`` processes search, 0 for one a core.
    kinds
        lr, xgb or both.
    quick
        Small grids.
    override, progress
        As for training.

    Raises
    ------
    InsufficientDataError
        If there is too little data, or no fold with spikes on both sides.
    StoreError
        If a table, the feature store, MLflow or the journal can't be used, or the same tune runs already.
    UsageError
        If a kind has nothing to tune, or ``per_product`` is asked for.
    """
    unknown = sorted(set(kinds) - set(TUNABLE))
    if unknown or not kinds:
        raise UsageError(f"--model is {','.join(kinds)!r}, must be {' or '.join(TUNABLE)}, or left out for both")
    if options.per_product:
        raise UsageError("--per-product has no tuning of its own; tune all products, then train with --per-product")
    material = prepare(options, progress, least_folds=1)
    grid = {kind: candidates(kind, quick=quick) for kind in kinds}
    journal = journal_of(material, grid)
    with alone(journal.with_suffix(".lock"), "tune of the same candidates on the same data"), tracking() as client:
        log = _Log.open(client, material, journal)
        total = sum(map(len, grid.values()))

        def done(candidate: Candidate, resumed: bool) -> None:
            log.candidate(candidate, resumed)
            progress(f"{len(log.runs) - 1} of {total} candidates")

        problem = problem_of(material, journal)
        try:
            progress(f"{total} candidates on {len(material.folds)} folds")
            search(problem, material.folds, grid, jobs=options.jobs or os.cpu_count() or 1, done=done)
            best = {kind: max(wanted, key=lambda c: c.result[1]).hyper for kind, wanted in grid.items()}
            trained = train(
                replace(options, models=("zscore", *kinds), hyper=best),
                override=override,
                parent=log.parent,
                progress=progress,
            )
        except BaseException:
            client.set_terminated(log.parent, "KILLED")
            raise
        finally:
            problem.table.unlink(missing_ok=True)
        params = {f"best_{kind}_{name}": v for kind, hyper in best.items() for name, v in hyper.items()}
        scores = {kind: {"score": max(c.result[1] for c in wanted)} for kind, wanted in grid.items()}
        log_run(client, log.parent, params={**params, **_said(options, material)}, metrics=scores, folders={})
    ranked = [c for wanted in grid.values() for c in sorted(wanted, key=lambda c: -c.result[1])]
    shutil.rmtree(journal, ignore_errors=True)
    return TuneReport(
        log.parent,
        len(material.folds),
        [
            {"kind": c.kind, "hyper": c.hyper, "score": c.result[1], "trees": _trees(c), "run_id": log.runs[c.key]}
            for c in ranked
        ],
        log.resumed,
        trained,
        list(material.notes),
    )


def _trees(candidate: Candidate) -> int | None:
    return candidate.result[0] * STEP if candidate.kind == "xgb" else None


def _said(options: TrainOptions, material: Material) -> dict[str, object]:
    return {"kind": "tune", "folds": len(material.folds), **msgspec.to_builtins(options)}


@dataclass(slots=True)
class _Log:
    """The parent run and its children, remembered in the journal so that a resumed tune goes on with them."""

    client: MlflowClient
    experiment: str
    parent: str
    path: Path
    runs: dict[str, str] = field(default_factory=dict)
    resumed: int = 0

    @staticmethod
    def open(client: MlflowClient, material: Material, journal: Path) -> _Log:
        path = journal / "runs.json"
        experiment = experiment_id(client, material.options.experiment)
        known: dict[str, str] = {}
        if path.is_file():
            try:
                known = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
                client.get_run(known["parent"])
            except (msgspec.DecodeError, KeyError):
                known = {}
        if known:
            client.update_run(known["parent"], status="RUNNING")
            return _Log(client, experiment, known["parent"], path, known)
        parent = str(client.create_run(experiment, run_name="tune", tags={"kind": "tune"}).info.run_id)
        log = _Log(client, experiment, parent, path, {"parent": parent})
        log.save()
        return log

    def candidate(self, candidate: Candidate, resumed: bool) -> None:
        """Log a candidate as a child, once."""
        self.resumed += resumed
        if candidate.key in self.runs:
            return
        rounds, score = candidate.result
        tags = {"mlflow.parentRunId": self.parent, "kind": f"candidate {candidate.kind}"}
        run_id = str(self.client.create_run(self.experiment, run_name=candidate.name, tags=tags).info.run_id)
        folds = {str(i): curve[min(rounds, len(curve)) - 1] for i, curve in sorted(candidate.curves.items())}
        metrics = {"score": {"mean": score}, "fold": {str(int(i) + 1): v for i, v in folds.items()}}
        trees = {"trees": rounds * STEP} if candidate.kind == "xgb" else {}
        log_run(self.client, run_id, params={**candidate.hyper, **trees}, metrics=metrics, folders={})
        self.runs[candidate.key] = run_id
        self.save()

    def save(self) -> None:
        """Write the journal's list of runs."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self.runs))
        os.replace(temporary, self.path)
