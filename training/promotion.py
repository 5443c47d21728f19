"""Who is champion, and why: promotions and rollbacks, with their evidence in the registry's tags.

Two kinds of tags make the record. ``attempt.NNNNNN`` of the registered model is a comparison that the gate made,
whatever came of it: their number decides how sure the next one must be. ``deploy.NNNNNN`` of a version is a deployment;
the deployment log is a view of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from feature_repo.errors import (
    ArtefactError,
    ContractError,
    InputError,
    InsufficientDataError,
    PromotionRefused,
    UsageError,
)
from infra.settings import settings
from training import registry
from training.alone import alone
from training.gate import Contest, Limits, Objection, objections
from training.tracking import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.runs import Run

_DEPLOY: Final = "deploy."
_ATTEMPT: Final = "attempt."
_LOCK: Final = ".promotion.lock"
_KEPT: Final = frozenset(
    (
        "pr_auc",
        "prevalence",
        "roc_auc",
        "f1",
        "precision",
        "recall",
        "brier_skill",
        "ece_equal_mass",
        "calibration_slope",
    )
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One entry of the deployment log.

    Attributes
    ----------
    number
        1, 2, … in the order in which they happened.
    version, run_id, digest
        What is champion since; digest is the sha256 of its manifest.
    previous
        Version that was champion before, None for the first.
    force
        The reason given with ``--force``, None if the gate said yes.
    overridden
        The gate's objections that were forced aside, ``CODE: text``.
    evidence
        What the gate judged: rows, figures of the version, of its opponent and of the best baseline on the same rows.
    at
        When, ISO 8601 UTC.
    """

    number: int
    action: Literal["promote", "rollback"]
    version: str
    run_id: str
    digest: str
    previous: str | None
    force: str | None = None
    overridden: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    at: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One comparison that the gate made: who against whom, on which rows, how sure it had to be, what came of it."""

    number: int
    run_id: str
    opponent: str
    start_ns: int
    end_ns: int
    rows: int
    alpha: float
    difference: float | None
    lower_bound: float | None
    codes: list[str]
    at: str


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Version and run of the present champion."""

    version: str
    run_id: str


Judge = Callable[[str, Incumbent | None, list[Attempt]], Contest]
"""From a run id, the champion and the earlier comparisons to what the gate judges."""


def promote(run_or_version: str, *, force: str | None = None, judge: Judge | None = None) -> Deployment:
    """Make a version the champion, if the gate agrees.

    Parameters
    ----------
    run_or_version
        Run id, a unique beginning of one, or a version number.
    force
        Reason for overriding the gate; recorded. A damaged artefact or one of another contract cannot be forced.
    judge
        What gathers the evidence; None for :func:`examine`.

    Returns
    -------
    Deployment

    Raises
    ------
    PromotionRefused
        If the gate objects; the message begins with the reason's code.
    InputError
        If there is no such run or version, or the reason is empty.
    ArtefactError, ContractError
        If the artefact doesn't verify.
    StoreError
        If MLflow or a table is locked or unreachable, or another promotion is under way.
    """
    if force is not None and not force.strip():
        raise InputError("--force must give a reason, such as --force 'first model', was empty")
    with _alone():
        return _promote(run_or_version, force, judge or examine)


def _promote(run_or_version: str, force: str | None, judge: Judge) -> Deployment:
    with tracking() as client:
        version, run_id = registry.find(client, run_or_version)
        artefact = registry.verified(client, run_id)
        stack = _stack(_history(client))
        champion = Incumbent(*registry.find(client, stack[-1])) if stack and stack[-1] != version else None
        past = _attempts(client)
    contest = judge(run_id, champion, past)
    limits = Limits(settings().max_predict_ms, settings().max_model_mb)
    found = objections(contest, limits)
    with tracking() as client:
        if contest.comparison is not None:
            _record(client, run_id, contest, found)
        if found and force is None:
            raise PromotionRefused(
                f"{'; '.join(map(str, found))}. Version {version} (run {run_id}) was not promoted; "
                "--force 'reason' overrides this and is recorded"
            )
        log = _history(client)
        stack = _stack(log)
        entry = Deployment(
            number=len(log) + 1,
            action="promote",
            version=version,
            run_id=run_id,
            digest=artefact.digest,
            previous=stack[-1] if stack else None,
            force=force if found else None,
            overridden=[str(o)[:300] for o in found],
            evidence=_evidence(contest),
            at=_now(),
        )
        _deploy(client, entry)
    return entry


def rollback() -> Deployment:
    """Give the alias back to the version that was champion before the present one.

    Raises
    ------
    InputError
        If there was none.
    ArtefactError, ContractError, StoreError
        As :func:`promote`.
    """
    with _alone(), tracking() as client:
        log = _history(client)
        stack = _stack(log)
        if len(stack) < 2:
            raise InputError(
                f"{len(stack)} champions to choose from, a rollback needs 2: no earlier one is left; promote another "
                "version first"
            )
        version, run_id = registry.find(client, stack[-2])
        artefact = registry.verified(client, run_id)
        number = len(log) + 1
        entry = Deployment(number, "rollback", version, run_id, artefact.digest, stack[-1], at=_now())
        _deploy(client, entry)
    return entry


def _alone() -> AbstractContextManager[None]:
    """Keep others out from the judgement to the deployment.

    Two at once would be judged against the same champion, so that one of them replaces the other without having been
    compared with it, and would number their comparisons alike, so that one of these would not be counted.
    """
    return alone(settings().models / _LOCK, "promote or rollback")


def history() -> list[Deployment]:
    """Deployment log, oldest first, read from the registry's tags."""
    with tracking() as client:
        return _history(client)


def attempts() -> list[Attempt]:
    """Comparisons that the gate made, oldest first, read from the registry's tags."""
    with tracking() as client:
        return _attempts(client)


def examine(run_id: str, champion: Incumbent | None, past: list[Attempt]) -> Contest:
    """Gather the evidence for a run; what stands in the way becomes an objection of the contest."""
    from training import contest
    from training.runs import Run

    challenger = Run.load(run_id)
    cost = (contest.latency_ms(challenger.artefact), contest.megabytes(challenger.path))
    opponent = "the best baseline" if champion is None else f"champion {champion.version} (run {champion.run_id})"
    incumbent = None
    try:
        incumbent = Run.load(champion.run_id) if champion is not None else None
        return contest.hold(
            challenger,
            incumbent,
            name=opponent,
            alpha=settings().gate_alpha,
            number=lambda who, start_ns, end_ns, rows: number_of(run_id, who, start_ns, end_ns, rows, past),
            open_sealed=lambda: _open(challenger),
            audited=lambda quick: _leaks(challenger, quick),
        )
    except ArtefactError as error:
        return Contest(opponent, *cost, refused=(Objection("CHAMPION_DAMAGED", str(error)),))
    except ContractError as error:
        return Contest(opponent, *cost, refused=(Objection("HASH_DIFFERS", f"{opponent}: {error}"),))
    except (InsufficientDataError, InputError, UsageError) as error:
        return Contest(opponent, *cost, refused=(Objection("NO_EVIDENCE", str(error)),))


def number_of(run_id: str, opponent: str, start_ns: int, end_ns: int, rows: int, past: list[Attempt]) -> int:
    """Number of a comparison: a new one, unless just this one was made before, which costs nothing to ask again."""
    same = (run_id, opponent, start_ns, end_ns, rows)
    for a in past:
        if (a.run_id, a.opponent, a.start_ns, a.end_ns, a.rows) == same:
            return a.number
    return max((a.number for a in past), default=0) + 1


def _open(run: Run) -> None:
    from training.evaluate import evaluate
    from training.sealed import opening

    before = opening(run.run_id, manifest=run.manifest)
    if before is None or before.run_id != run.run_id:
        evaluate(run.run_id, final=True, reason="promote")


def _leaks(run: Run, quick: bool) -> tuple[str, ...]:
    from training.audit import audit

    return tuple(str(f) for f in audit(run, quick=quick).leaks)


def _evidence(contest: Contest) -> dict[str, Any]:
    """What fits into a tag, which holds 5,000 characters."""
    said = asdict(contest)
    for who in ("challenger", "against", "baseline"):
        said[who] = {k: None if v is None else float(f"{v:.6g}") for k, v in said[who].items() if k in _KEPT}
    said["audit"] = [text[:200] for text in contest.audit[:5]]
    del said["refused"]  # stands among what was overridden
    return said


def _record(client: MlflowClient, run_id: str, contest: Contest, found: list[Objection]) -> None:
    c = contest.comparison
    assert c is not None  # noqa: S101  # the caller asked
    attempt = Attempt(
        contest.attempt, run_id, contest.opponent, contest.start_ns, contest.end_ns, contest.rows,
        c.alpha, c.difference, c.lower_bound, [o.code for o in found], _now(),
    )  # fmt: skip
    key = f"{_ATTEMPT}{attempt.number:06d}"
    client.set_registered_model_tag(settings().model_name, key, json.dumps(asdict(attempt)))


def _attempts(client: MlflowClient) -> list[Attempt]:
    tags = client.get_registered_model(settings().model_name).tags
    found = [Attempt(**json.loads(value)) for key, value in tags.items() if key.startswith(_ATTEMPT)]
    return sorted(found, key=lambda a: a.number)


def _history(client: MlflowClient) -> list[Deployment]:
    entries = [
        Deployment(**json.loads(value))
        for version in registry.versions(client)
        for key, value in version.tags.items()
        if key.startswith(_DEPLOY)
    ]
    entries.sort(key=lambda e: e.number)
    return entries[:-1] if _unfinished(client, entries) else entries


def _unfinished(client: MlflowClient, entries: list[Deployment]) -> bool:
    """Tell whether the last entry was written by somebody who died before he moved the alias."""
    served = client.get_registered_model(settings().model_name).aliases.get(registry.CHAMPION)
    now = [] if served is None else [str(served)]
    return bool(entries) and _stack(entries)[-1:] != now and _stack(entries[:-1])[-1:] == now


def _stack(log: list[Deployment]) -> list[str]:
    """Champions that a rollback can return to, the present one last."""
    stack: list[str] = []
    for entry in log:
        if entry.action == "rollback":
            stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    return stack


def _deploy(client: MlflowClient, entry: Deployment) -> None:
    """Record, move the alias, then the view: dying before the alias leaves an entry that doesn't count."""
    key = f"{_DEPLOY}{entry.number:06d}"
    for version in registry.versions(client):
        if key in version.tags:  # of an entry that doesn't count
            client.delete_model_version_tag(settings().model_name, version.version, key)
    client.set_model_version_tag(settings().model_name, entry.version, key, json.dumps(asdict(entry)))
    registry.point(client, entry.version, entry.run_id, entry.digest, entry.at)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
