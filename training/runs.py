"""A finished run, found by any of its names, and its training set made anew from the tables."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InputError
from infra.settings import settings
from training.artefact import MANIFEST, Artefact, Manifest, load
from training.datasets import Dataset, dataset
from training.labels import labels_of
from training.options import TrainOptions
from training.spikes import Spikes, spikes
from training.tracking import MODEL_DIR, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

OPTIONS: Final = "options.json"
"""File with a run's :class:`TrainOptions`, in the run; the same as the manifest's ``options``."""
_RUN_ID: Final = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True, slots=True)
class Run:
    """A trained model and what it was trained with.

    Attributes
    ----------
    run_id
        MLflow's; empty for a folder that is no run's.
    artefact
        Loaded and verified.
    options
        What training was told.
    path
        Folder of the artefact.
    """

    run_id: str
    artefact: Artefact
    options: TrainOptions
    path: Path

    @property
    def manifest(self) -> Manifest:
        """The artefact's manifest."""
        return self.artefact.manifest

    @staticmethod
    def load(ref: str | Path) -> Run:
        """Find a run.

        Parameters
        ----------
        ref
            Run id or a unique beginning of one of at least 4 digits, ``NAME@alias``, ``NAME/version``, or a folder with
            an artefact in it.

        Raises
        ------
        InputError
            If there is no such run, or its training options are not on record.
        ArtefactError, ContractError
            If its artefact doesn't verify.
        StoreError
            If MLflow is locked or unreachable.
        """
        folder = Path(ref)
        if (folder / MANIFEST).is_file():
            name = folder.resolve().name
            return _run(name if re.fullmatch(r"[0-9a-f]{32}", name) else "", folder)
        with tracking() as client:
            run_id = _find(client, str(ref))
            return _run(run_id, fetch(client, run_id))


def options_of(manifest: Manifest) -> TrainOptions:
    """Training options that a manifest holds.

    Raises
    ------
    InputError
        If it has none, or they are not of this code.
    """
    if not manifest.options:
        raise InputError(f"model {manifest.name} ({manifest.kind}) holds no training options; train it again")
    try:
        return msgspec.convert(manifest.options, TrainOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"training options of model {manifest.name}: {error}; train it again") from error


def fetch(client: MlflowClient, run_id: str) -> Path:
    """Folder of a run's artefact on this machine, downloaded whole from the run if it isn't here.

    Raises
    ------
    InputError
        If the run has none.
    """
    folder = settings().models / run_id
    if folder.exists():
        return folder
    if not client.list_artifacts(run_id, MODEL_DIR):
        status = client.get_run(run_id).info.status
        raise InputError(f"run {run_id} ({status}) holds no model; give a finished run of volspike train or tune")
    settings().models.mkdir(parents=True, exist_ok=True)
    temporary = settings().models / f".{run_id}.{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        client.download_artifacts(run_id, MODEL_DIR, str(temporary))
        load(temporary / MODEL_DIR)
        (temporary / MODEL_DIR).rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def rebuild(run: Run, blocks: Sequence[str] = ("train", "validation")) -> Dataset:
    """Make the training set of a run anew from the tables.

    Rows that came after the run was trained are left out, so tables that have grown give the same set.

    Parameters
    ----------
    run
        As loaded.
    blocks
        Blocks whose features and labels are read; no other's are. The test block is sealed: see
        :mod:`training.sealed` before naming it.

    Returns
    -------
    Dataset
        Columns as the manifest's features.

    Raises
    ------
    InsufficientDataError
        If the tables hold too little of what they did.
    """
    found = spikes_of(run)
    frame = found.frame.filter(pl.col("block").is_in(list(blocks)))
    return dataset(frame, run.options.service, run.manifest.features)


def spikes_of(run: Run) -> Spikes:
    """Labels, split and thresholds of a run, computed anew as of the time it was trained."""
    frame = labels_of(run.options, sessions=run.manifest.training.sessions)
    return spikes(as_of(frame, run.manifest.data, run.options.horizon_s), run.options)


def as_of(frame: pl.DataFrame, data: dict[str, Any], horizon_s: int = HORIZON_S) -> pl.DataFrame:
    """Keep the labels that were known when a data manifest was written.

    Parameters
    ----------
    frame
        As :func:`training.labels.labels` gives it.
    data
        Data manifest; without time ranges everything is kept.
    horizon_s
        Of the labels, seconds.
    """
    known: dict[tuple[str, str], int] = {}
    for table in data.values():
        for key, (_, end_ns) in table.get("ranges", {}).items():
            session, product = key.split("/", 1)
            known[session, product] = max(known.get((session, product), end_ns), end_ns)
    if not known:
        return frame
    ends = pl.DataFrame(
        [(session, product, end) for (session, product), end in known.items()],
        schema={"session": pl.String, "product_id": pl.String, "known_ns": pl.Int64},
        orient="row",
    )
    kept = frame.join(ends, on=["session", "product_id"], how="inner", maintain_order="left")
    return kept.filter(pl.col("event_time_ns") + horizon_s * 1_000_000_000 <= pl.col("known_ns")).drop("known_ns")


def _run(run_id: str, folder: Path) -> Run:
    artefact = load(folder)
    return Run(run_id, artefact, options_of(artefact.manifest), folder)


def _find(client: MlflowClient, ref: str) -> str:
    """Run id that a reference names."""
    from mlflow.exceptions import MlflowException

    try:
        if "@" in ref:
            name, alias = ref.rsplit("@", 1)
            return str(client.get_model_version_by_alias(name, alias).run_id)
        if "/" in ref:
            name, version = ref.rsplit("/", 1)
            return str(client.get_model_version(name, version).run_id)
        if _RUN_ID.fullmatch(ref):
            where = [e.experiment_id for e in client.search_experiments()]
            found = client.search_runs(where, f"attributes.run_id LIKE '{ref}%'", max_results=2)
            if len(found) == 1:
                return str(found[0].info.run_id)
            if found:
                raise InputError(f"run {ref!r} fits several runs, must fit one; give more digits of its id")
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        raise InputError(f"run {ref!r}: {str(error)[:200]}; {_KNOWN}") from error
    raise InputError(f"run {ref!r} does not exist; {_KNOWN}")


_KNOWN = (
    "must be a run id, NAME@alias, NAME/version or a folder with a manifest.json; volspike train and tune print the ids"
)
