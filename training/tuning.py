"""Tune: a grid of hyperparameters on purged folds inside the training block, the best refitted as a training run.

::

    parent run ── child run per candidate (score on each fold)
              └── child runs of the refitted models, as volspike train makes them

The work is one unit per model and fold, which prepares its fold once and tries every candidate on it; joblib gives the
units to processes, the longest first. Each finished (model, candidate, fold) is a file in a journal, so that an
interrupted tune goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.errors import StoreError
from infra.settings import settings
from training import crossval
from training.fitting import Material
from training.folds import Rows
from training.models import Hyper
from training.objectives import parse
from training.provenance import code

GRIDS: Final[dict[str, dict[str, tuple[float | int | str, ...]]]] = {
    "lr": {
        "scale": ("log", "plain"),
        "soft": (0.0, 0.2, 0.4),
        "C": (1e-4, 1e-3, 1e-2, 1e-1),  # upwards: each fit begins at the last one
    },
    "xgb": {
        "max_bin": (32,),
        "eta": (0.15, 0.3),
        "soft": (0.0, 0.2, 0.4),
        "max_depth": (2, 4),
        "colsample_bytree": (0.25, 0.5),
    },
}
"""Values per hyperparameter, 24 candidates a model."""
QUICK: Final[dict[str, dict[str, tuple[float | int | str, ...]]]] = {
    "lr": {"soft": (0.0, 0.3), "C": (1e-3, 1e-1)},
    "xgb": {"max_bin": (32,), "eta": (0.2,), "soft": (0.0, 0.3), "max_depth": (2, 4)},
}
"""Four candidates a model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Hyperparameters of one model, with the curve (of :class:`training.crossval.Tried`) of each fold tried so far."""

    kind: str
    hyper: dict[str, float | int | str]
    curves: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for people and files."""
        said = ",".join(f"{k}={v}" for k, v in self.hyper.items())
        return f"{self.kind} {said}"

    @property
    def key(self) -> str:
        """Hash of the name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:12]

    @property
    def result(self) -> tuple[int, float]:
        """Best point of the curves and mean score there, as :func:`training.crossval.together` has them."""
        return crossval.together(list(self.curves.values()))


def candidates(kind: str, *, quick: bool = False) -> list[Candidate]:
    """List the candidates of a model.

    Examples
    --------
    >>> [len(candidates(kind)) for kind in GRIDS], [len(candidates(kind, quick=True)) for kind in GRIDS]
    ([24, 24], [4, 4])
    """
    grid = (QUICK if quick else GRIDS)[kind]
    return [Candidate(kind, dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a unit of work needs, small enough to send; the table lies in files that processes share.

    Attributes
    ----------
    table
        ``.npy`` of float32[n, f]: features of the training block.
    y, excess, t_ns, products
        bool[n], float64[n] as in :func:`training.models.softened`, int64[n] ns UTC, str[n].
    """

    table: Path
    y: NDArray[np.bool_]
    excess: NDArray[np.float64]
    t_ns: NDArray[np.int64]
    products: NDArray[np.str_]
    objective: str
    seed: int
    device: str
    journal: Path


def search(
    problem: Problem,
    folds: Sequence[tuple[Rows, Rows]],
    grid: Mapping[str, Sequence[Candidate]],
    *,
    jobs: int,
    done: Callable[[Candidate, bool], None] = lambda *_: None,
) -> None:
    """Try every candidate on every fold; what the journal holds already is not tried again.

    Parameters
    ----------
    problem
        Rows, features and objective.
    folds
        As :func:`training.folds.usable` makes them.
    grid
        Candidates by kind; their curves are filled in.
    jobs
        Processes; 1 works in this one.
    done
        Told each candidate as its last fold is done, and whether that was found in the journal.
    """
    from joblib import Parallel, delayed

    units = []
    for kind, wanted in grid.items():
        for i, (train, test) in enumerate(folds):
            missing = []
            for candidate in wanted:
                curve = _read(_entry(problem.journal, candidate, i))
                if curve is None:
                    missing.append(candidate)
                else:
                    candidate.curves[i] = curve
            if missing:
                rows = len(train) + len(test) if kind == "lr" else 3 * min(len(train), crossval.TREE_ROWS) + len(test)
                units.append((rows * len(missing), kind, i, train, test, missing))
    for candidate in (c for wanted in grid.values() for c in wanted if len(c.curves) == len(folds)):
        done(candidate, True)
    units.sort(key=lambda u: -u[0])
    by_key = {c.key: c for wanted in grid.values() for c in wanted}
    work = (
        delayed(_tried)(problem, kind, i, train, test, [(c.key, c.hyper, _entry(problem.journal, c, i)) for c in some])
        for _, kind, i, train, test, some in units
    )
    results: Iterator[tuple[int, dict[str, list[float]]]] = Parallel(
        n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all"
    )(work)
    for i, curves in results:
        for key, curve in curves.items():
            candidate = by_key[key]
            candidate.curves[i] = curve
            if len(candidate.curves) == len(folds):
                done(candidate, False)


def _tried(
    problem: Problem,
    kind: str,
    number: int,
    train: Rows,
    test: Rows,
    wanted: Sequence[tuple[str, Hyper, Path]],
) -> tuple[int, dict[str, list[float]]]:
    """Try candidates on one fold; each result is on disk before the next begins."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        x = np.load(problem.table, mmap_mode="r")
        score = crossval.scorer(parse(problem.objective), problem.y[test], problem.t_ns[test], problem.products[test])
        more: dict[str, Any] = {"device": problem.device} if kind == "xgb" else {}
        fold = crossval.FOLDS[kind](x, problem.y, problem.excess, train, test, jobs=1, **more)
        out = {}
        for key, hyper, entry in wanted:
            began = time.process_time()
            out[key] = fold.tried(hyper, score, seed=problem.seed).curve
            _write(entry, {"curve": out[key], "cpu_s": time.process_time() - began})
    return number, out


def _entry(journal: Path, candidate: Candidate, fold: int) -> Path:
    return journal / f"{candidate.kind}-{candidate.key}-{fold}.json"


def _read(path: Path) -> list[float] | None:
    """Curve in a journal's file; None where there is none or it is not whole."""
    try:
        curve = [float(v) for v in json.loads(path.read_bytes())["curve"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return curve or None


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def problem_of(material: Material, journal: Path) -> Problem:
    """Lay the training block's features down beside the journal for all processes to read."""
    x, y = material.data.block("train")
    rows = material.rows("train")
    table = journal / "x.npy"
    try:
        np.save(table, x.astype(np.float32))
    except OSError as error:
        raise StoreError(f"can't write {table}: {error.strerror}; free space or set VOLSPIKE_DATA") from error
    return Problem(
        table,
        y,
        material.excess(),
        rows["event_time_ns"].to_numpy(),
        rows["product_id"].to_numpy().astype(np.str_),
        material.options.objective,
        material.options.seed,
        material.options.device,
        journal,
    )


def journal_of(material: Material, grid: Mapping[str, Sequence[Candidate]]) -> Path:
    """Folder of the journal of this search: the same options, data, code and grid have the same one."""
    said = [
        {k: v for k, v in msgspec.to_builtins(material.options).items() if k not in ("jobs", "hyper", "models")},
        material.source,
        code(),
        len(material.folds),
        {kind: [c.name for c in wanted] for kind, wanted in grid.items()},
    ]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    folder = settings().data / "tune" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder
