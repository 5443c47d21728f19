"""The model artefact: a folder without pickle that says what it is and can prove it.

::

    folder/
    ├── model.json | model.ubj    weights of a linear model, or an XGBoost booster
    ├── tau.json                  where tau rolls: the horizons it is the percentile of, to go on from
    ├── manifest.json             what it reads, predicts, was trained on; sha256 of the other files
    └── manifest.sha256           sha256 of manifest.json

:func:`load` hashes the very bytes it then parses, so a file that changes in between cannot slip through. This module
is what the service imports: numpy, msgspec and the standard library only, xgboost once a booster is loaded.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import (
    HORIZON_S,
    LABEL_VERSION,
    SERVICES,
    feature_hash,
    service_hash,
)
from feature_repo.errors import ArtefactError, ContractError, InputError, StoreError
from training.inplace import Margins

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
MODEL_FILE: Final = {"zscore": "model.json", "lr": "model.json", "xgb": "model.ubj"}
"""File that holds the weights, by kind of model."""
TAU_FILE: Final = "tau.json"
"""State of a rolling tau (see :mod:`training.rolling_state`); there iff the label's rule is ``rolling``."""
_ONE_THREAD_ROWS = 16_384  # under this, waking threads costs more than they save

Kind = Literal["zscore", "lr", "xgb"]


class Rule(msgspec.Struct, frozen=True):
    """How tau was chosen; ``value`` is the percentile, or tau itself where it is ``absolute``.

    ``percentile`` is of the training block; ``rolling`` is of the last ``hours`` of horizons that had ended.
    """

    kind: Literal["percentile", "absolute", "rolling"]
    value: float
    hours: float | None = None


class Label(msgspec.Struct, frozen=True):
    """What the model forecasts: ``sigma_fwd >= tau[product]``; tau per one-second (or tick) log return.

    Where the rule is ``rolling``, ``tau`` is the state's last one: for readers that do not go on with the state.
    """

    rule: Rule
    tau: dict[str, float]
    version: int = LABEL_VERSION
    horizon_s: int = HORIZON_S
    returns: Literal["1s", "tick"] = "1s"


class Service(msgspec.Struct, frozen=True):
    """Feast feature service the features come from, and its hash at training time."""

    name: str
    hash: str


class Calibration(msgspec.Struct, frozen=True):
    """From margin to probability, 1 / (1 + exp(−z)).

    ``none`` and ``sigmoid`` have z = slope · margin + intercept. ``isotonic`` draws straight lines through the points
    (``margins``, ``log_odds``), both strictly increasing, and goes on with ``slope`` beyond the first and last.
    """

    method: Literal["none", "sigmoid", "isotonic"] = "none"
    slope: float = 1.0
    intercept: float = 0.0
    margins: list[float] = []
    log_odds: list[float] = []

    def apply(self, margin: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated log-odds z, float64[n]."""
        if not self.margins:
            return np.asarray(self.slope * margin + self.intercept)
        inside = np.interp(margin, self.margins, self.log_odds)
        below = np.minimum(margin - self.margins[0], 0.0)
        above = np.maximum(margin - self.margins[-1], 0.0)
        return np.asarray(inside + self.slope * (below + above))


class Imputation(msgspec.Struct, frozen=True):
    """What stands for a missing value: ``native`` (the trees route it) or the training block's ``median``.

    ``indicators`` names the features whose missingness is an input of its own.
    """

    strategy: Literal["native", "median"]
    values: dict[str, float] = {}
    indicators: list[str] = []


class Training(msgspec.Struct, frozen=True):
    """Blocks train, validation and test: start_ns, end_ns (UTC, inclusive), rows, spikes."""

    blocks: dict[str, dict[str, int]]
    products: list[str]
    sessions: list[str]
    min_coverage_s: float
    purge_s: int


class Manifest(msgspec.Struct, frozen=True):
    """Everything a reader must know before it trusts the model.

    ``options`` are those of :class:`training.options.TrainOptions`; ``code`` names the git commit and the sha256 of the
    lock that the model was made with. ``files`` is filled by :func:`save`.
    """

    name: str
    kind: Kind
    service: Service
    features: list[str]
    feature_hash: str
    label: Label
    threshold: float
    calibration: Calibration
    imputation: Imputation
    training: Training
    data: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    seeds: dict[str, int]
    versions: dict[str, str]
    options: dict[str, Any] = {}
    code: dict[str, str] = {}
    files: dict[str, str] = {}
    schema_version: int = SCHEMA_VERSION


def signed_log(x: NDArray[np.float64], unit: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Odd logarithm sign(x)·ln(1 + |x|/unit), linear about 0."""
    return np.asarray(np.copysign(np.log(1.0 + np.abs(x) / unit), x))


class Linear(msgspec.Struct, frozen=True):
    """Standardised linear margin: Σ weight·(x − mean)/scale + Σ missing_weight·[x is missing] + intercept.

    All lists are in the order of the manifest's features; a missing x is replaced by ``fill`` first. Where ``log``
    holds a number above 0, it is the unit of :func:`signed_log`, which x goes through before it is standardised.
    """

    fill: list[float]
    mean: list[float]
    scale: list[float]
    weight: list[float]
    missing_weight: list[float]
    intercept: float
    log: list[float] = []


class Artefact:
    """A loaded, verified model.

    Attributes
    ----------
    manifest
        The manifest as verified.
    digest
        sha256 of the manifest, hex: names this artefact, weights included.
    tau_state
        Content of :data:`TAU_FILE`, None where tau does not roll.
    """

    def __init__(self, manifest: Manifest, digest: str, model: bytes, tau_state: bytes | None = None) -> None:
        self.manifest = manifest
        self.digest = digest
        self.tau_state = tau_state
        self._model = model
        self._trees_by_threads: dict[int, Margins] = {}
        if manifest.kind == "xgb":
            found = int(self._trees(1).booster.num_features())
            if found != len(manifest.features):
                raise ArtefactError(f"model.ubj reads {found} features, the manifest names {len(manifest.features)}")
        else:
            try:
                linear = msgspec.json.decode(model, type=Linear)
            except msgspec.DecodeError as error:
                raise ArtefactError(f"model.json is not a linear model: {error}; train again") from error
            columns = (linear.fill, linear.mean, linear.scale, linear.weight, linear.missing_weight)
            if any(len(c) != len(manifest.features) for c in columns):
                raise ArtefactError(f"model.json must hold {len(manifest.features)} weights, one per feature")
            self._fill, self._mean, self._scale, self._weight, self._missing = (np.array(c) for c in columns)
            self._intercept = linear.intercept
            log = np.array(linear.log or [0.0] * len(linear.fill))
            if len(log) != len(linear.fill) or not (np.isfinite(log) & (log >= 0)).all():
                raise ArtefactError("model.json: log must hold a finite unit >= 0 per feature, or nothing; train again")
            self._logged = np.flatnonzero(log > 0)
            self._unit = log[self._logged]

    @property
    def model(self) -> bytes:
        """Bytes of the model file, as they were verified."""
        return self._model

    def margin(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uncalibrated log-odds, float64[n]; parameters and errors as :meth:`predict_proba`."""
        x = np.asarray(x, np.float64)
        features = self.manifest.features
        if x.ndim != 2 or x.shape[1] != len(features):
            raise ValueError(f"x must be float64[n, {len(features)}] in the manifest's order, was {list(x.shape)}")
        infinite = np.isinf(x)
        if infinite.any():
            row, column = (int(i) for i in np.argwhere(infinite)[0])
            raise InputError(f"{features[column]} is infinite in row {row}; must be finite, or NaN where missing")
        if self.manifest.kind == "xgb":
            threads = 1 if len(x) <= _ONE_THREAD_ROWS else 0
            return self._trees(threads)(x).astype(np.float64)
        missing = np.isnan(x)
        filled = np.where(missing, self._fill, x)
        if len(self._logged):
            filled[:, self._logged] = signed_log(filled[:, self._logged], self._unit)
        z = (filled - self._mean) / self._scale
        return np.asarray(z @ self._weight + missing @ self._missing + self._intercept)

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probability of a spike within the label's horizon.

        Parameters
        ----------
        x
            float64[n, f], columns in the order of ``manifest.features``, NaN where missing. Map by name before.

        Returns
        -------
        float64[n] in [0, 1]; a row's value does not depend on the rows beside it.

        Raises
        ------
        ValueError
            If the shape is not [n, f].
        InputError
            If a value is infinite.
        """
        z = self.manifest.calibration.apply(self.margin(x))
        # exp of −|z| cannot overflow; which branch holds decides between p and 1 − p
        e = np.exp(-np.abs(z))
        return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)))

    def _trees(self, threads: int) -> Margins:
        # Two boosters, since changing nthread on one reconfigures it at each call.
        if threads not in self._trees_by_threads:
            import xgboost

            booster = xgboost.Booster({"nthread": threads} if threads else {})
            try:
                booster.load_model(bytearray(self._model))
            except xgboost.core.XGBoostError as error:
                raise ArtefactError(f"model.ubj is not an XGBoost model: {str(error)[:200]}; train again") from error
            if threads:
                booster.set_param({"nthread": threads})
            self._trees_by_threads[threads] = Margins(booster)
        return self._trees_by_threads[threads]


def save(folder: Path, manifest: Manifest, model: bytes, tau_state: bytes | None = None) -> Manifest:
    """Write an artefact whole or not at all: into a temporary folder beside it, then renamed.

    Parameters
    ----------
    folder
        Must not exist yet.
    manifest
        ``files`` is filled in here.
    model
        Bytes of the model file of this kind.
    tau_state
        State of a rolling tau, as :func:`training.rolling_state.encode` gives it.

    Returns
    -------
    Manifest
        As written.

    Raises
    ------
    ArtefactError
        If the manifest contradicts the contract or holds numbers out of range.
    StoreError
        If the folder exists, or the disk is full or read-only.
    """
    contents = {MODEL_FILE[manifest.kind]: model} | ({} if tau_state is None else {TAU_FILE: tau_state})
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = msgspec.structs.replace(manifest, files=hashes)
    _check(manifest)
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    seal = (hashlib.sha256(text).hexdigest() + "\n").encode()
    if folder.exists():
        raise StoreError(f"artefact folder {folder} exists; artefacts are never overwritten, choose another name")
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        for name, content in {**contents, MANIFEST: text, SEAL: seal}.items():
            with (temporary / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        temporary.rename(folder)
    except OSError as error:
        raise StoreError(f"can't write artefact {folder}: {error.strerror}; free space or set VOLSPIKE_DATA") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def load(folder: Path) -> Artefact:
    """Read and verify an artefact.

    Parameters
    ----------
    folder
        As written by :func:`save`.

    Raises
    ------
    ArtefactError
        If a file is missing, was changed, or does not say what a manifest must.
    ContractError
        If its service, features or label are not those of this code; the message names what differs.
    """
    text, seal = _read(folder, MANIFEST), _read(folder, SEAL)
    digest = hashlib.sha256(text).hexdigest()
    if seal.decode("ascii", "replace").strip() != digest:
        raise ArtefactError(
            f"{folder / MANIFEST}: sha256 is {digest}, {SEAL} says {seal[:80]!r}; the artefact was changed after "
            "it was written: train or fetch it again"
        )
    if seal != (digest + "\n").encode():
        raise ArtefactError(f"{folder / SEAL} was changed: must be one line of 64 hex digits; fetch the artefact again")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtefactError(f"{folder / MANIFEST}: {error}; the manifest's schema must be {SCHEMA_VERSION}") from error
    _check(manifest)
    contents = {}
    for name, expected in manifest.files.items():
        contents[name] = _read(folder, name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ArtefactError(
                f"{folder / name}: sha256 is {found}, the manifest says {expected}; the file was changed after "
                "it was written: train or fetch it again"
            )
    return Artefact(manifest, digest, contents[MODEL_FILE[manifest.kind]], contents.get(TAU_FILE))


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{folder / name}: {error.strerror}; an artefact holds {MANIFEST}, {SEAL} and its model file"
        ) from error


def _check(m: Manifest) -> None:
    """Refuse a manifest that contradicts itself (ArtefactError) or this code's contract (ContractError)."""
    if m.schema_version != SCHEMA_VERSION:
        raise ArtefactError(f"manifest schema_version is {m.schema_version}, must be {SCHEMA_VERSION}; train again")
    rolling = m.label.rule.kind == "rolling"
    files = [MODEL_FILE[m.kind], TAU_FILE] if rolling else [MODEL_FILE[m.kind]]
    if sorted(m.files) != sorted(files):
        raise ArtefactError(
            f"manifest files are {list(m.files)}, a {m.kind} model of a {m.label.rule.kind} tau has {files} only"
        )
    if rolling and not 0 < (m.label.rule.hours or 0) < math.inf:
        raise ArtefactError(f"manifest label.rule.hours is {m.label.rule.hours}, must be > 0 where tau rolls")
    if not m.features or len(set(m.features)) != len(m.features):
        raise ArtefactError(f"manifest features must be distinct and at least one, were {len(m.features)}")
    if not 0 <= m.threshold <= 1:
        raise ArtefactError(f"manifest threshold is {m.threshold}, must be a probability in [0, 1]")
    if not (math.isfinite(m.calibration.intercept) and 0 < m.calibration.slope < math.inf):
        raise ArtefactError(f"manifest calibration {m.calibration} must have a finite intercept and a slope > 0")
    points = m.calibration.margins, m.calibration.log_odds
    if len({len(p) for p in points}) > 1 or any(not (a < b) for p in points for a, b in pairwise(p)):
        raise ArtefactError("manifest calibration margins and log_odds must be equally many and strictly increasing")
    if (m.calibration.method == "isotonic") != bool(points[0]) or not all(math.isfinite(v) for p in points for v in p):
        raise ArtefactError(
            f"manifest calibration {m.calibration.method} has {len(points[0])} points; isotonic must have finite ones, "
            "the others none"
        )
    bad = {p: tau for p, tau in m.label.tau.items() if not 0 < tau < math.inf}
    if bad or not m.label.tau:
        raise ArtefactError(f"manifest label.tau must hold a tau > 0 for each product, was {bad or m.label.tau}")
    if m.label.version != LABEL_VERSION:
        raise ContractError(
            f"label version is {m.label.version}, this code has {LABEL_VERSION}; train again with this code"
        )
    if m.service.name not in SERVICES:
        raise ContractError(f"service {m.service.name!r} is unknown, must be one of {sorted(SERVICES)}; train again")
    if m.service.hash != service_hash(m.service.name):
        raise ContractError(
            f"hash of service {m.service.name} is {m.service.hash} in the model, {service_hash(m.service.name)} in "
            "this code: its features or their versions changed; train again, or run the code the model was trained with"
        )
    unknown = [f for f in m.features if f not in SERVICES[m.service.name]]
    if unknown:
        raise ContractError(f"features {unknown[:5]} are not in service {m.service.name}; train again with this code")
    if m.feature_hash != feature_hash(m.features):
        raise ContractError(
            f"feature_hash is {m.feature_hash} in the model, {feature_hash(m.features)} in this code for the same "
            f"{len(m.features)} names: a dtype, window or version changed; train again"
        )
