"""The model registry: versions, the alias that is served, and a log of every deployment in the registry's own tags.

MLflow is the truth. ``<data>/models/champion.json`` is a view of it for the service, which then needs no MLflow;
artefacts are served from ``<data>/models/<run>``, verified against their manifest whenever they are loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from feature_repo.errors import InputError, PromotionRefused, StoreError
from infra.settings import settings
from training.artefact import Artefact, load
from training.gate import objections
from training.tracking import MODEL_DIR, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"
_LOG_TAG = "deploy."


class Resolved(NamedTuple):
    """Where a version's artefact lies on this machine, and which one it is."""

    path: Path
    version: str
    run_id: str


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
        The gate's objections that were forced aside.
    evidence
        Test figures of the version and of the baseline on the same rows.
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
    evidence: dict[str, dict[str, float | None]] = field(default_factory=dict)
    at: str = ""


def register(client: MlflowClient, run_id: str) -> str:
    """Make a version of the registered model of the settings from a run's artefact; returns its number."""
    from mlflow.exceptions import MlflowException

    name = settings().model_name
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, f"runs:/{run_id}/{MODEL_DIR}", run_id=run_id)
    return str(version.version)


def promote(run_or_version: str, *, force: str | None = None) -> Deployment:
    """Make a version the champion, if the gate agrees.

    Parameters
    ----------
    run_or_version
        Run id, a unique beginning of one, or a version number.
    force
        Reason for overriding the gate; recorded. A damaged artefact or one of another contract cannot be forced.

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
        If MLflow is locked or unreachable.
    """
    if force is not None and not force.strip():
        raise InputError("--force must give a reason, such as --force 'first model', was empty")
    with tracking() as client:
        version, run_id = _find(client, run_or_version)
        artefact = _artefact(client, run_id)
        found = objections(artefact.manifest.metrics)
        if found and force is None:
            raise PromotionRefused(
                f"{'; '.join(map(str, found))}. Version {version} (run {run_id}) was not promoted; "
                "--force 'reason' overrides this and is recorded"
            )
        log = _history(client)
        stack = _stack(log)
        metrics = artefact.manifest.metrics
        entry = Deployment(
            number=len(log) + 1,
            action="promote",
            version=version,
            run_id=run_id,
            digest=artefact.digest,
            previous=stack[-1] if stack else None,
            force=force,
            overridden=[o.code for o in found],
            evidence={block: dict(metrics[block]) for block in ("test", "baseline") if block in metrics},
            at=datetime.now(UTC).isoformat(timespec="seconds"),
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
    with tracking() as client:
        log = _history(client)
        stack = _stack(log)
        if len(stack) < 2:
            raise InputError(
                f"{len(stack)} champions on the deployment log, a rollback needs 2; promote another version first"
            )
        version, run_id = _find(client, stack[-2])
        artefact = _artefact(client, run_id)
        entry = Deployment(
            number=len(log) + 1,
            action="rollback",
            version=version,
            run_id=run_id,
            digest=artefact.digest,
            previous=stack[-1],
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _deploy(client, entry)
    return entry


def history() -> list[Deployment]:
    """Deployment log, oldest first, read from the registry's tags."""
    with tracking() as client:
        return _history(client)


def resolve(alias: str = CHAMPION) -> Resolved:
    """Find the artefact that an alias names, fetched to this machine if it isn't here, and verified.

    Raises
    ------
    InputError
        If no version has that alias.
    ArtefactError, ContractError, StoreError
        As :func:`promote`.
    """
    from mlflow.exceptions import MlflowException

    with tracking() as client:
        try:
            version = client.get_model_version_by_alias(settings().model_name, alias)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            raise InputError(
                f"no version of {settings().model_name!r} has the alias {alias!r}; run volspike train, then promote"
            ) from error
        run_id = str(version.run_id)
        _artefact(client, run_id)
        return Resolved(settings().models / run_id, str(version.version), run_id)


def resolve_fast() -> Resolved:
    """Read the champion from ``champion.json`` without importing MLflow; the artefact is not verified here.

    Raises
    ------
    InputError
        If nothing was promoted yet, or the file is not what :func:`promote` writes.
    """
    view = settings().models / f"{CHAMPION}.json"
    try:
        said = json.loads(view.read_bytes())
        return Resolved(view.parent / said["path"], str(said["version"]), str(said["run_id"]))
    except FileNotFoundError as error:
        raise InputError(f"no champion: {view} does not exist; run volspike train, then volspike promote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{view} is not a champion's pointer ({error!r}); run volspike promote again") from error


def _find(client: MlflowClient, wanted: str) -> tuple[str, str]:
    """Version and run that a version number, run id or beginning of one names."""
    versions = _versions(client)
    by_version = [(str(v.version), str(v.run_id)) for v in versions]
    fits = [(v, r) for v, r in by_version if v == wanted]
    fits = fits or [(v, r) for v, r in by_version if r == wanted]
    fits = fits or [(v, r) for v, r in by_version if len(wanted) >= 4 and r.startswith(wanted)]
    if len(fits) != 1:
        known = ", ".join(f"{v} ({r[:8]})" for v, r in by_version[:10]) or "none"
        raise InputError(
            f"run or version {wanted!r} fits {len(fits)} registered versions of {settings().model_name!r}, must fit "
            f"one of: {known}; volspike train prints them"
        )
    return fits[0]


def _versions(client: MlflowClient) -> list[Any]:
    name = settings().model_name.replace("'", "")
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda v: -int(v.version))


def _history(client: MlflowClient) -> list[Deployment]:
    entries = [
        Deployment(**json.loads(value))
        for version in _versions(client)
        for key, value in version.tags.items()
        if key.startswith(_LOG_TAG)
    ]
    return sorted(entries, key=lambda e: e.number)


def _stack(log: list[Deployment]) -> list[str]:
    """Champions that a rollback can return to, the present one last."""
    stack: list[str] = []
    for entry in log:
        if entry.action == "rollback":
            stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    return stack


def _artefact(client: MlflowClient, run_id: str) -> Artefact:
    """Load and verify a run's artefact, from this machine or else fetched whole from the run."""
    folder = settings().models / run_id
    if not folder.exists():
        settings().models.mkdir(parents=True, exist_ok=True)
        temporary = settings().models / f".{run_id}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            client.download_artifacts(run_id, MODEL_DIR, str(temporary))
            load(temporary / MODEL_DIR)
            (temporary / MODEL_DIR).rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return load(folder)


def _deploy(client: MlflowClient, entry: Deployment) -> None:
    """Record, move the alias, then the view: dying in between leaves an entry that can be seen and repeated."""
    name = settings().model_name
    client.set_model_version_tag(name, entry.version, f"{_LOG_TAG}{entry.number:06d}", json.dumps(asdict(entry)))
    client.set_registered_model_alias(name, CHAMPION, entry.version)
    view = settings().models / f"{CHAMPION}.json"
    said = {
        "name": name,
        "alias": CHAMPION,
        "version": entry.version,
        "run_id": entry.run_id,
        "path": entry.run_id,
        "sha256": entry.digest,
        "at": entry.at,
    }
    temporary = view.with_name(f".{view.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, view)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"can't write {view}: {error.strerror}; free space, then promote again") from error
