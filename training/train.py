"""Train: labels → spikes → training set → three models → runs, artefacts and registered versions.

What is fitted where::

    train        tau per product, medians, means and scales, weights, trees
    validation   early stopping, calibration, decision threshold
    test         nothing
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import feature_hash, service_hash
from infra.settings import settings
from ingestion import tables
from training import artefact as art
from training import models, plots
from training.calibration import best_f1, sigmoid
from training.datasets import Dataset, dataset, feature_names
from training.evaluation import figures
from training.labels import labels_of
from training.options import TrainOptions
from training.registry import register
from training.spikes import Spikes, check, episodes, spikes
from training.splits import BLOCKS
from training.tracking import MODEL_DIR, experiment_id, log_run, tracking

Metrics = dict[str, dict[str, float | None]]
LIBRARIES: Final = ("numpy", "polars", "scikit-learn", "xgboost-cpu", "xgboost", "feast", "deltalake", "mlflow")


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One trained model: where it is and how it did, figures by block."""

    kind: str
    run_id: str
    version: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run made.

    Attributes
    ----------
    experiment, service, features
        MLflow experiment; Feast service; number of features read.
    blocks
        Rows, spikes, episodes and times of train, validation and test.
    lost
        Rows in the purged stretches.
    tau, refused
        Threshold per product; reason per product that was left out.
    models
        The baseline first.
    """

    experiment: str
    service: str
    features: int
    blocks: dict[str, dict[str, int]]
    lost: int
    tau: dict[str, float]
    refused: dict[str, str]
    models: list[ModelReport] = field(default_factory=list)

    @property
    def best(self) -> ModelReport:
        """Model of the greatest PR-AUC on **validation**: choosing on test would spend it."""
        return max(self.models, key=lambda m: m.metrics["validation"]["pr_auc"] or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self) | {"best": self.best.run_id}


def train(options: TrainOptions, *, progress: Callable[[str], None] = lambda _: None) -> TrainReport:
    """Train the three models on the tables and log each as a run with an artefact and a registered version.

    Parameters
    ----------
    options
        What to train on.
    progress
        Told what is being done, a few words at a time.

    Raises
    ------
    InsufficientDataError
        If there is too little data, no spike in a block, or no product with a threshold.
    StoreError
        If a table, the feature store or MLflow can't be used.
    """
    progress("labels")
    source = _data_manifest()
    found = spikes(labels_of(options), options)
    check(found.frame)
    names = feature_names(options.service, found.split)
    progress(f"training set: {found.frame.height:,} rows × {len(names)} features")
    data = dataset(found.frame, options.service, names)
    fitted = _fit(data, options, progress)
    report = TrainReport(
        options.experiment, options.service, len(names), found.counts(), found.split.lost, found.tau, found.refused
    )
    baseline: dict[str, float | None] = {}
    settings().models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings().models, prefix=".plots-") as folder, tracking() as client:
        experiment = experiment_id(client, options.experiment)
        for model in fitted:
            progress(f"{model.kind}: evaluate and log")
            manifest = _calibrated(model, data, found, options, source)
            baseline = baseline or manifest.metrics["test"]
            manifest = msgspec.structs.replace(manifest, metrics={**manifest.metrics, "baseline": baseline})
            run_id = str(client.create_run(experiment, run_name=model.kind, tags={"kind": model.kind}).info.run_id)
            try:
                home = settings().models / run_id
                manifest = art.save(home, manifest, model.model, found.tau_state)
                pictures = Path(folder) / model.kind
                _draw(pictures, art.load(home), model, data)
                log_run(
                    client,
                    run_id,
                    params=_params(options, model, manifest),
                    metrics=manifest.metrics,
                    folders={MODEL_DIR: home, "plots": pictures},
                )
                version = register(client, run_id)
            except BaseException:
                client.set_terminated(run_id, "FAILED")
                raise
            report.models.append(ModelReport(model.kind, run_id, version, manifest.metrics))
    return report


def _fit(data: Dataset, options: TrainOptions, progress: Callable[[str], None]) -> list[models.Fitted]:
    x, y = data.block("train")
    x_val, y_val = data.block("validation")
    progress("zscore: fit")
    fitted = [models.zscore(x, data.features)]
    progress("lr: fit")
    fitted.append(models.logistic(x, y, data.features, seed=options.seed))
    progress("xgb: fit")
    fitted.append(models.boosted(x, y, x_val, y_val, data.features, seed=options.seed, jobs=options.jobs))
    return fitted


def _columns(data: Dataset, model: models.Fitted, block: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x, y = data.block(block)
    return x[:, [data.column(name) for name in model.features]], y


def _calibrated(
    model: models.Fitted, data: Dataset, found: Spikes, options: TrainOptions, source: dict[str, Any]
) -> art.Manifest:
    """Calibrate and cut on validation, measure on every block."""
    raw = art.Manifest(
        name=settings().model_name,
        kind=model.kind,
        service=art.Service(options.service, service_hash(options.service)),
        features=list(model.features),
        feature_hash=feature_hash(model.features),
        label=found.label,
        threshold=0.5,
        calibration=art.Calibration(),
        imputation=model.imputation,
        training=art.Training(
            blocks=found.counts(),
            products=sorted(found.tau),
            sessions=list(found.sessions),
            min_coverage_s=options.min_coverage_s,
            purge_s=options.purge_s,
        ),
        data=source,
        metrics={},
        seeds={"model": options.seed},
        versions=_versions(),
    )
    x, y = _columns(data, model, "validation")
    calibration = sigmoid(art.Artefact(raw, "", model.model).margin(x), y)
    calibrated = msgspec.structs.replace(raw, calibration=calibration)
    scorer = art.Artefact(calibrated, "", model.model)
    threshold = best_f1(scorer.predict_proba(x), y)
    metrics: Metrics = {}
    for block in BLOCKS:
        x, y = _columns(data, model, block)
        rows = data.frame.filter(pl.col("block") == block)
        metrics[block] = figures(
            scorer.predict_proba(x), y, threshold, t_ns=rows["event_time_ns"].to_numpy(), episodes=episodes(rows)
        )
    return msgspec.structs.replace(calibrated, threshold=threshold, metrics=metrics)


def _draw(folder: Path, model: art.Artefact, fitted: models.Fitted, data: Dataset) -> None:
    x, y = _columns(data, fitted, "test")
    title = f"{fitted.kind}, test block"
    plots.write(folder, title, model.predict_proba(x), y, model.manifest.threshold, fitted.importance)


def _params(options: TrainOptions, model: models.Fitted, manifest: art.Manifest) -> dict[str, object]:
    said = {name: value for name, value in asdict(options).items() if name not in ("experiment",)}
    own = {f"model_{name}": value for name, value in model.params.items()}
    tau = {f"tau_{product}": value for product, value in manifest.label.tau.items()}
    shape = {"features": len(manifest.features), "feature_hash": manifest.feature_hash}
    return {"kind": model.kind, **said, **shape, **tau, **own}


def _data_manifest() -> dict[str, Any]:
    """What the tables hold now: files with their hashes, last message number per session and product."""
    root = settings().tables
    return {
        name: {
            "parts": [
                {"path": p.path.relative_to(root).as_posix(), "rows": p.num_records, "sha256": p.sha256()}
                for p in tables.parts(name)
            ],
            "last_n": {f"{session}/{product}": n for (session, product), n in sorted(tables.last_n(name).items())},
        }
        for name in ("spike_features", "quotes")
    }


def _versions() -> dict[str, str]:
    there = {d.name: d.version for d in map(_distribution, LIBRARIES) if d is not None}
    return {"python": platform.python_version(), **there}


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None  # xgboost has two names, one of which is installed
