"""The sealed block: the last stretch of a data split, opened once, and every opening on record.

Which rows are sealed follows from the data and from where the split cut it; all runs on that data share the seal, since
choosing the best of several runs by the sealed block would spend it. The record is an MLflow experiment named after the
split: the registry of names is what makes an opening atomic, and a name stays taken even after a deletion.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from feature_repo.errors import SealedError, StoreError
from infra.settings import settings
from training import artefact as art
from training.tracking import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX: Final = "sealed/"
"""Experiments of this prefix are records of openings; the rest of the name is the split's key."""
BLOCK: Final = "test"


@dataclass(frozen=True, slots=True)
class Opening:
    """The one opening of a sealed block.

    Attributes
    ----------
    key
        Names the data and its split.
    run_id, reason, at
        Who opened it, why and when (UTC, ISO 8601).
    start_ns, end_ns
        The block on the clock, ns UTC, inclusive.
    overlaps
        Keys of other splits opened before whose sealed block meets this one on the clock and in a session: rows that
        both hold were seen before, and are in no figure of this one.
    refused
        Later attempts, one line each.
    """

    key: str
    run_id: str
    reason: str
    at: str
    start_ns: int
    end_ns: int
    overlaps: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def split_key(manifest: art.Manifest) -> str:
    """Name the data and the split of a run, 16 hex digits.

    The data is what the tables held, as the last message number of each session and product in each table, so that a
    compaction, which rewrites files and changes no row, keeps the key.
    """
    training = manifest.training
    data = {table: part.get("last_n") for table, part in sorted(manifest.data.items()) if isinstance(part, dict)}
    edges = {name: (b["start_ns"], b["end_ns"]) for name, b in sorted(training.blocks.items())}
    said = [data, edges, sorted(training.sessions), training.min_coverage_s, training.purge_s]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def open_block(run_id: str, reason: str, *, manifest: art.Manifest | None = None) -> Opening:
    """Open the sealed block of a run's data split, once, and record it.

    Parameters
    ----------
    run_id
        The run that is to be measured.
    reason
        Why, for the record.
    manifest
        Of the run; read from its artefact where not given.

    Raises
    ------
    SealedError
        If the block was opened before, by this or another run, or as part of other splits' blocks; the attempt is
        recorded beside the opening.
    StoreError
        If MLflow can't be used.
    """
    from mlflow.exceptions import MlflowException

    manifest = manifest if manifest is not None else _manifest(run_id)
    key = split_key(manifest)
    block = manifest.training.blocks[BLOCK]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # a tag's name has no + in it
    tags = {
        "run_id": run_id,
        "reason": reason[:500],
        "at": now,
        "start_ns": str(block["start_ns"]),
        "end_ns": str(block["end_ns"]),
        "sessions": json.dumps(sorted(manifest.training.sessions)),
    }
    with tracking() as client:
        before = _find(client, key)
        met = [] if before is not None else _overlaps(client, manifest)
        if before is None and _covered(block["start_ns"], block["end_ns"], met):
            before = met[0]
        if before is None:
            tags["overlaps"] = json.dumps(sorted(found.name.removeprefix(PREFIX) for found in met))
            try:
                client.create_experiment(PREFIX + key, tags=tags)
            except MlflowException as error:
                before = _find(client, key)  # another process was faster
                if before is None:
                    raise StoreError(f"MLflow can't record the opening of {key}: {error}; try again") from error
            else:
                return _opening(key, tags)
        if before.lifecycle_stage != "active":
            client.restore_experiment(before.experiment_id)
        said = json.dumps({"run_id": run_id, "reason": reason[:500]})
        client.set_experiment_tag(before.experiment_id, f"refused.{now}", said)
        first = _opening(before.name.removeprefix(PREFIX), before.tags)
        seen = "" if first.key == key else ", and all of this block was seen with it"
        raise SealedError(
            f"sealed block of split {first.key} was opened by run {first.run_id} at {first.at} ({first.reason}), it "
            f"opens once{seen}; record newer data and train on that, its last block is sealed again"
        )


def opening(run_id: str, *, manifest: art.Manifest | None = None) -> Opening | None:
    """Look up the opening of a run's data split; None while the block is sealed."""
    manifest = manifest if manifest is not None else _manifest(run_id)
    key = split_key(manifest)
    with tracking() as client:
        found = _find(client, key)
        return None if found is None else _opening(key, found.tags)


def openings() -> list[Opening]:
    """Every opening of any split on record, oldest first."""
    from mlflow.entities import ViewType

    with tracking() as client:
        found = client.search_experiments(view_type=ViewType.ALL, filter_string=f"name LIKE '{PREFIX}%'")
        return sorted((_opening(e.name.removeprefix(PREFIX), e.tags) for e in found), key=lambda o: o.at)


def _find(client: MlflowClient, key: str) -> Any:
    return client.get_experiment_by_name(PREFIX + key)


def _overlaps(client: MlflowClient, manifest: art.Manifest) -> list[Any]:
    """Records of openings that showed rows of this block."""
    from mlflow.entities import ViewType

    block, sessions = manifest.training.blocks[BLOCK], set(manifest.training.sessions)
    out = []
    for found in client.search_experiments(view_type=ViewType.ALL, filter_string=f"name LIKE '{PREFIX}%'"):
        tags = found.tags
        meets = int(tags["start_ns"]) <= block["end_ns"] and int(tags["end_ns"]) >= block["start_ns"]
        if meets and sessions & set(json.loads(tags["sessions"])):
            out.append(found)
    return out


def _covered(start_ns: int, end_ns: int, met: list[Any]) -> bool:
    """Tell whether the blocks of these records together hold all of a stretch."""
    seen_to = start_ns - 1
    for low, high in sorted((int(m.tags["start_ns"]), int(m.tags["end_ns"])) for m in met):
        if low > seen_to + 1:
            break
        seen_to = max(seen_to, high)
    return seen_to >= end_ns


def _opening(key: str, tags: dict[str, str]) -> Opening:
    return Opening(
        key,
        tags["run_id"],
        tags["reason"],
        tags["at"],
        int(tags["start_ns"]),
        int(tags["end_ns"]),
        tuple(json.loads(tags.get("overlaps", "[]"))),
        tuple(f"{k.removeprefix('refused.')} {v}" for k, v in sorted(tags.items()) if k.startswith("refused.")),
    )


def _manifest(run_id: str) -> art.Manifest:
    path = settings().models / run_id / art.MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=art.Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"run {run_id}: can't read {path.name}: {error}; give a run that train made here") from error
