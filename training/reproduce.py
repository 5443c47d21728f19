"""Make a run again in a fresh environment, from its record alone, and say where the two differ.

::

    record of the run ── data manifest ──► the tables as they were, in a fresh folder ─┐
                      ── commit ─────────► its code, where that is not what runs now   ├─► a fresh process trains
                      ── lock's hash ────► its libraries, where they are others, or    │   the same options
                                           anew with ``fresh``                        ─┘
                      ── artefact ───────► compared: figures, thresholds, forecasts of every row
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.errors import StoreError
from infra.settings import ROOT, child_environment, settings
from training import artefact as art
from training import snapshot
from training.provenance import LOCK, code, lock_hash
from training.runs import Run

TOLERANCE: Final = 1e-9
"""Largest difference that still counts as the same."""
CHILD: Final = "training.remake"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of it.

    Attributes
    ----------
    run_id, kind
        The run.
    differences
        Greatest absolute difference by what was compared: ``figures``, ``tau``, ``threshold``, ``calibration``,
        ``forecasts``; infinite where one side lacks what the other has.
    identical
        Whether the model files are equal byte for byte.
    rows
        Forecasts compared.
    environment
        Where it was made: python, lock, code.
    notes
        What was not as it had been.
    """

    run_id: str
    kind: str
    differences: dict[str, float]
    identical: bool
    rows: int
    environment: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether no difference exceeds :data:`TOLERANCE`."""
        return all(d <= TOLERANCE for d in self.differences.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``; an infinite difference is null."""
        finite = {k: v if np.isfinite(v) else None for k, v in self.differences.items()}
        return {**asdict(self), "differences": finite, "same": self.same}


def reproduce(ref: str, *, fresh: bool = False, progress: Progress = lambda _: None) -> Reproduction:
    """Train a run again from its record and compare.

    Parameters
    ----------
    ref
        As :meth:`training.runs.Run.load` takes it.
    fresh
        Make a new environment from the lock even where the present one has the same.
    progress
        Told what is being done.

    Raises
    ------
    InputError
        If there is no such run, or its record is not enough to make it again.
    StoreError
        If its rows, its lock or its libraries can't be had any more.
    """
    run = Run.load(ref)
    settings().data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings().data, prefix=".reproduce-") as name:
        home = Path(name)
        progress("tables as they were")
        notes = snapshot.restore(run.manifest.data, home / "data" / "tables")
        progress("code")
        source, said = _code(run, home)
        notes += said
        progress("libraries")
        python, said = _python(run, home, fresh=fresh, progress=progress)
        notes += said
        progress("train in a fresh process")
        made, x = _remake(run, home, source, python)
        here = code()
        environment = {
            "python": "a new environment from the lock" if python != Path(sys.executable) else "this environment",
            "lock_sha256": run.manifest.code.get("lock_sha256", ""),
            "git_commit": run.manifest.code.get("git_commit", "") if source != ROOT else here.get("git_commit", ""),
        }
        differences = _compare(run.artefact, made, x)
        return Reproduction(
            run.run_id,
            run.manifest.kind,
            differences,
            run.artefact.model == made.model,
            len(x),
            environment,
            notes,
        )


def _code(run: Run, home: Path) -> tuple[Path, list[str]]:
    """Folder of the code that the run was made with, or of this code where that is all there is."""
    wanted = run.manifest.code.get("git_commit", "")
    if not wanted:
        return ROOT, ["the run's git commit is not on record; this code was used"]
    if wanted == code().get("git_commit"):
        changed = ["the run was made with uncommitted changes; this code was used"]
        return ROOT, changed if wanted.endswith("-dirty") else []
    if wanted.endswith("-dirty"):
        return ROOT, [f"the run was made from {wanted[:12]} with uncommitted changes; this code was used"]
    archive = _git("archive", "--format=tar", wanted)
    if archive is None:
        return ROOT, [f"commit {wanted[:12]} is not in this repository; this code was used"]
    target = home / "code"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    return target, []


def _git(*arguments: str) -> bytes | None:
    try:
        said = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout if said.returncode == 0 else None


def _python(run: Run, home: Path, *, fresh: bool, progress: Progress) -> tuple[Path, list[str]]:
    """Python with the run's libraries: this one where its lock is this lock, else a new environment."""
    wanted, here = run.manifest.code.get("lock_sha256", ""), lock_hash()
    if not wanted:
        return Path(sys.executable), ["the run's lock is not on record; these libraries were used"]
    if wanted == here and not fresh:
        return Path(sys.executable), []
    lock = _lock(run, wanted, here)
    path = home / LOCK
    path.write_bytes(lock)
    uv = shutil.which("uv")
    if uv is None:
        raise StoreError("uv is not on the PATH, a new environment needs it; install uv, or leave --fresh out")
    progress("libraries: a new environment from the lock")
    target = home / "venv"
    python = target / "bin" / "python"
    steps = (
        ["venv", "--quiet", "--python", sys.executable, str(target)],
        ["pip", "sync", "--quiet", "--python", str(python), "--require-hashes", "--only-binary", ":all:", str(path)],
    )
    for step in steps:
        said = subprocess.run([uv, *step], capture_output=True, text=True, check=False, cwd=home)
        if said.returncode:
            raise StoreError(
                f"a new environment could not be made from the run's lock: uv {' '.join(step[:2])} said "
                f"{said.stderr.strip()[-300:]!r}; packages must be within reach, see infra/setup.sh for the settings"
            )
    return python, []


def _lock(run: Run, wanted: str, here: str) -> bytes:
    if wanted == here:
        return (ROOT / LOCK).read_bytes()
    commit = run.manifest.code.get("git_commit", "").removesuffix("-dirty")
    found = _git("show", f"{commit}:{LOCK}") if commit else None
    if found is None or hashlib.sha256(found).hexdigest() != wanted:
        raise StoreError(
            f"lock {wanted[:12]} of run {run.run_id} is neither {LOCK} here ({here[:12]}) nor that of its commit "
            f"{commit[:12] or '(unknown)'}, must be one of them; fetch that commit and try again"
        )
    return found


def _remake(run: Run, home: Path, source: Path, python: Path) -> tuple[art.Artefact, NDArray[np.float64]]:
    """Train in a process and a folder of its own; the new artefact, and the features of its rows."""
    order = home / "order.json"
    order.write_bytes(
        msgspec.json.encode(
            {
                "options": {**run.manifest.options, "models": [run.manifest.kind]},
                "products": sorted(run.manifest.label.tau),
                "features": run.manifest.features,
            }
        )
    )
    environment = child_environment(
        VOLSPIKE_DATA=str(home / "data"),
        VOLSPIKE_MLFLOW_TRACKING_URI=f"sqlite:///{home / 'mlflow.db'}",
        PYTHONPATH=str(source),
        PYTHONHASHSEED="0",
    )
    said = subprocess.run(
        [str(python), "-m", CHILD, str(order), str(home / "made")],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        last = "\n".join(said.stderr.strip().splitlines()[-3:])
        raise StoreError(f"run {run.run_id} could not be made again: {last}; expected what its record describes")
    answer = json.loads((home / "made" / "answer.json").read_bytes())
    made = art.load(home / "data" / "models" / answer["run_id"])
    return made, np.load(home / "made" / "x.npy")


def _compare(was: art.Artefact, now: art.Artefact, x: NDArray[np.float64]) -> dict[str, float]:
    a, b = was.manifest, now.manifest
    forecasts = np.abs(was.predict_proba(x) - now.predict_proba(x)) if a.features == b.features else np.array([np.inf])
    return {
        "figures": _apart(a.metrics, b.metrics),
        "tau": _apart(a.label.tau, b.label.tau),
        "threshold": abs(a.threshold - b.threshold),
        "calibration": _apart(msgspec.to_builtins(a.calibration), msgspec.to_builtins(b.calibration)),
        "forecasts": float(forecasts.max(initial=0.0)),
    }


def _apart(a: object, b: object) -> float:
    """Greatest difference of two nested values; infinite where they are not of one shape."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    if left.keys() != right.keys():
        return float("inf")
    return max((_distance(left[k], right[k]) for k in left), default=0.0)


def _distance(a: object, b: object) -> float:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return float(abs(a - b))
    return 0.0 if a == b else float("inf")


def _leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, (*path, i))
    else:
        yield path, value
