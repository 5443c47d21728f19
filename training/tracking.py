"""MLflow as we use it: one guarded client, runs with parameters, metrics and files, nothing guessed or inferred."""

from __future__ import annotations

import errno
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_repo.errors import StoreError
from infra.settings import settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_WAIT_S: Final = 2.0
"""How long another writer may hold the database before we say so. MLflow itself would retry for minutes."""
MODEL_DIR: Final = "model"
"""Folder of the artefact inside a run."""
_SQLITE = "sqlite:///"
_OF_DATABASE: Final = re.compile(r"database is locked|database or disk is full|disk I/O error|readonly database")


def database() -> Path | None:
    """File of the tracking database, None where tracking is a server."""
    uri = settings().mlflow_uri
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


@contextmanager
def tracking() -> Iterator[MlflowClient]:
    """Open the tracking store and registry.

    Yields
    ------
    mlflow.MlflowClient

    Raises
    ------
    StoreError
        If the database is locked, full or unreachable, at once or at any point inside the block.
    """
    uri = settings().mlflow_uri
    _refuse_if_locked()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a tool that watches markets tells nobody
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would stand among our own lines
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default waits minutes for a server that is gone
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with warnings.catch_warnings():
        # MLflow's own use of SQLAlchemy and alembic is deprecated there; nothing here can change it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tells what it raises, with its stack
        try:
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise _said(uri, error) from error


def _said(uri: str, error: Exception) -> StoreError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(f"{error.filename or uri}: {error.strerror}; free space and run again")
    # what the database says stands in the middle of what SQLAlchemy and MLflow make of it
    found = _OF_DATABASE.search(str(error))
    first = found[0] if found else str(error).strip().splitlines()[0][:300]
    return StoreError(
        f"MLflow at {uri}: {first}; must be reachable, writable and unlocked: close what holds it, free space, or set "
        "MLFLOW_TRACKING_URI"
    )


def _refuse_if_locked() -> None:
    path = database()
    if path is None or not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StoreError(
            f"MLflow database {path}: {error} after {LOCK_WAIT_S:g} s, must be writable; stop the process that holds "
            "it and try again"
        ) from error


def experiment_id(client: MlflowClient, name: str) -> str:
    """Find or create an experiment; its files go to ``mlartifacts`` beside the database, as ``mlflow ui`` has it."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise StoreError(f"MLflow experiment {name!r} was deleted; restore it, or give another --experiment-name")
    if found is not None:
        return str(found.experiment_id)
    path = database()
    location = (path.resolve().parent / "mlartifacts").as_uri() if path else None
    return str(client.create_experiment(name, artifact_location=location))


def log_run(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, Mapping[str, float | None]],
    folders: Mapping[str, Path],
) -> None:
    """Fill a run and end it.

    Parameters
    ----------
    client, run_id
        An active run.
    params
        Logged as text.
    metrics
        Figures by block; logged as ``block_figure``, undefined ones left out.
    folders
        Local folders by their name in the run.
    """
    from mlflow.entities import Metric, Param

    now = int(client.get_run(run_id).info.start_time)
    flat = [
        Metric(f"{block}_{name}", value, now, 0)
        for block, values in metrics.items()
        for name, value in values.items()
        if value is not None
    ]
    client.log_batch(run_id, metrics=flat, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
    for name, folder in folders.items():
        client.log_artifacts(run_id, str(folder), name)
    client.set_terminated(run_id)
