"""The model registry: versions and the alias that is served; who moves it, and why, is :mod:`training.promotion`'s.

MLflow is the truth. ``<data>/models/champion.json`` is a view of it for the service, which then needs no MLflow;
artefacts are served from ``<data>/models/<run>``, verified against their manifest whenever they are loaded.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from feature_repo.errors import InputError, StoreError
from infra.settings import settings
from training.artefact import Artefact, load
from training.tracking import MODEL_DIR, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"


class Resolved(NamedTuple):
    """Where a version's artefact lies on this machine, and which one it is."""

    path: Path
    version: str
    run_id: str


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


def resolve(alias: str = CHAMPION) -> Resolved:
    """Find the artefact that an alias names, fetched to this machine if it isn't here, and verified.

    Raises
    ------
    InputError
        If no version has that alias.
    ArtefactError, ContractError, StoreError
        If the artefact doesn't verify, or MLflow is locked or unreachable.
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
        verified(client, run_id)
        return Resolved(settings().models / run_id, str(version.version), run_id)


def resolve_fast() -> Resolved:
    """Read the champion from ``champion.json`` without importing MLflow; the artefact is not verified here.

    Raises
    ------
    InputError
        If nothing was promoted yet, or the file is not what :func:`point` writes.
    """
    view = settings().models / f"{CHAMPION}.json"
    try:
        said = json.loads(view.read_bytes())
        return Resolved(view.parent / said["path"], str(said["version"]), str(said["run_id"]))
    except FileNotFoundError as error:
        raise InputError(f"no champion: {view} does not exist; run volspike train, then volspike promote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{view} is not a champion's pointer ({error!r}); run volspike promote again") from error


def find(client: MlflowClient, wanted: str) -> tuple[str, str]:
    """Version and run that a version number, run id or beginning of one, ``NAME/version`` or ``NAME@alias`` names."""
    there = versions(client)
    name = settings().model_name
    if wanted.startswith(f"{name}@"):
        aliases = client.get_registered_model(name).aliases
        wanted = str(aliases.get(wanted.removeprefix(f"{name}@"), wanted))
    wanted = wanted.removeprefix(f"{name}/")
    by_version = [(str(v.version), str(v.run_id)) for v in there]
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


def versions(client: MlflowClient) -> list[Any]:
    """All versions of the registered model, as MLflow describes them, the newest first."""
    name = settings().model_name.replace("'", "")
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda v: -int(v.version))


def verified(client: MlflowClient, run_id: str) -> Artefact:
    """Load and verify a run's artefact, from this machine or else fetched whole from the run."""
    from training.runs import fetch

    return load(fetch(client, run_id))


def point(client: MlflowClient, version: str, run_id: str, digest: str, at: str) -> None:
    """Move the alias, then the view."""
    name = settings().model_name
    client.set_registered_model_alias(name, CHAMPION, version)
    view = settings().models / f"{CHAMPION}.json"
    said = {
        "name": name,
        "alias": CHAMPION,
        "version": version,
        "run_id": run_id,
        "path": run_id,
        "sha256": digest,
        "at": at,
    }
    temporary = view.with_name(f".{view.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, view)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"can't write {view}: {error.strerror}; free space, then promote again") from error
