"""Train: labels → spikes → training set → models → runs, artefacts and registered versions.

What is fitted where::

    train        tau per product, medians, means and scales, weights, trees; purged folds inside it: number of trees
    validation   calibration, decision threshold
    test         nothing: it is sealed, neither its labels nor its features are looked at
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from feature_repo.errors import UsageError
from infra.settings import settings
from training import artefact as art
from training import plots
from training.fitting import Made, Material, Metrics, make, measured_baselines
from training.options import TrainOptions
from training.preparation import prepare
from training.provenance import code, versions
from training.registry import register
from training.runs import OPTIONS
from training.tracking import MODEL_DIR, experiment_id, log_run, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.audit import Evidence

__all__ = ["Metrics", "ModelReport", "TrainReport", "train"]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One trained model: where it is and how it did.

    Attributes
    ----------
    kind, product
        zscore, lr or xgb; the product it is for, empty for all of them.
    run_id, version
        Run, and registered version; None where the audit refused it.
    metrics
        Figures by block (train, folds, validation), and of the baselines on the same rows (``har.validation``).
    findings
        Leaks that the quick audit found, one line each.
    """

    kind: str
    run_id: str
    version: str | None
    metrics: Metrics
    product: str = ""
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training run made.

    Attributes
    ----------
    experiment, service, features
        MLflow experiment; Feast service; number of features read.
    blocks
        Rows, spikes, episodes and times of train and validation; rows and times of test, which is sealed.
    lost
        Rows in the purged stretches.
    tau, refused
        Threshold per product; reason per product that was left out.
    models
        The baseline first.
    baselines
        Figures of every baseline on validation.
    warnings
        What a reader must know.
    """

    experiment: str
    service: str
    features: int
    blocks: dict[str, dict[str, int]]
    lost: int
    tau: dict[str, float]
    refused: dict[str, str]
    models: list[ModelReport] = field(default_factory=list)
    baselines: Metrics = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def best(self) -> ModelReport:
        """As :meth:`best_of`, of all models."""
        return self.best_of("")

    def best_of(self, product: str) -> ModelReport:
        """Registered model of the greatest PR-AUC on **validation**, of one product where each has its own models."""
        mine = [m for m in self.models if m.product == product] or self.models
        there = [m for m in mine if m.version is not None] or mine
        return max(there, key=lambda m: m.metrics["validation"]["pr_auc"] or 0.0)

    @property
    def clean(self) -> bool:
        """Whether every model passed the audit or was registered all the same."""
        return all(m.version is not None for m in self.models)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self) | {"best": self.best.run_id}


def train(
    options: TrainOptions,
    *,
    override: str | None = None,
    parent: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> TrainReport:
    """Train the models on the tables and log each as a run with an artefact and a registered version.

    Parameters
    ----------
    options
        What to train, on what.
    override
        Reason for registering a model that the audit refuses; logged.
    parent
        Run of MLflow that these are children of.
    progress
        Told what is being done, a few words at a time.

    Raises
    ------
    InsufficientDataError
        If there is too little data, no spike in a block, or no product with a threshold.
    StoreError
        If a table, the feature store or MLflow can't be used.
    UsageError
        If the override gives no reason.
    """
    if override is not None and not override.strip():
        raise UsageError("--override must give a reason, such as --override 'known duplicate tape', was empty")
    material = prepare(options, progress)
    report = TrainReport(
        options.experiment,
        options.service,
        len(material.data.features),
        material.blocks,
        material.found.split.lost,
        material.found.tau,
        material.found.refused,
        warnings=material.notes,
    )
    settings().models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings().models, prefix=".plots-") as folder, tracking() as client:
        logger = _Logger(client, options, override, parent, Path(folder))
        for part in material.parts():
            baselines = measured_baselines(part, progress)
            report.baselines.update(
                {f"{n}{' ' + part.product if part.product else ''}": m["validation"] for n, m in baselines.items()}
            )
            evidence: Evidence | None = None
            for kind in options.models:
                progress(f"{kind} {part.product}: fit".replace(" :", ":"))
                made = make(kind, part)
                progress(f"{kind} {part.product}: evaluate and log".replace(" :", ":"))
                model, evidence = logger.log(made, part, baselines, evidence)
                report.models.append(model)
    return report


@dataclass(slots=True)
class _Logger:
    """Writes models down: artefact, audit, run, version."""

    client: MlflowClient
    options: TrainOptions
    override: str | None
    parent: str
    folder: Path
    provenance: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: (code(), versions()))

    def log(
        self, made: Made, part: Material, baselines: dict[str, Metrics], evidence: Evidence | None
    ) -> tuple[ModelReport, Evidence]:
        from training.audit import audit
        from training.audit.gather import describe

        client, said = self.client, self.provenance
        manifest = msgspec.structs.replace(
            made.manifest,
            metrics={**made.manifest.metrics, **_flat(baselines)},
            options=msgspec.to_builtins(self.options),
            code=said[0],
            versions=said[1],
        )
        name = f"{manifest.kind} {part.product}".strip()
        tags = {"kind": manifest.kind, **({"product": part.product} if part.product else {})}
        if self.parent:
            tags["mlflow.parentRunId"] = self.parent
        experiment = experiment_id(client, self.options.experiment)
        run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
        try:
            home = settings().models / run_id
            manifest = art.save(home, manifest, made.fitted.model, part.found.tau_state)
            loaded = art.load(home)
            evidence = (
                describe(part.data, loaded, self.options, run_id=run_id)
                if evidence is None
                else replace(evidence, artefact=loaded, run_id=run_id)
            )
            found = audit(evidence, quick=True)
            leaks = [f"{f.code}: {f.evidence}" for f in found.findings if f.severity == "leak"]
            pictures = self.folder / run_id / "plots"
            _draw(pictures, loaded, made, part)
            (self.folder / run_id / OPTIONS).write_bytes(msgspec.json.encode(self.options))
            client.set_tag(run_id, "audit.quick", json.dumps({"clean": not leaks, "leaks": leaks})[:5000])
            if leaks and self.override is not None:
                client.set_tag(run_id, "audit.override", self.override)
            client.log_artifact(run_id, str(self.folder / run_id / OPTIONS))
            log_run(
                client,
                run_id,
                params=_params(self.options, made, manifest),
                metrics=manifest.metrics,
                folders={MODEL_DIR: home, "plots": pictures},
            )
            version = register(client, run_id) if not leaks or self.override is not None else None
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        return ModelReport(manifest.kind, run_id, version, manifest.metrics, part.product, leaks), evidence


def _flat(baselines: dict[str, Metrics]) -> Metrics:
    """Figures of the baselines as blocks of their own, and those of the best on validation as ``baseline``."""
    flat = {f"{name}.{block}": figures for name, by in baselines.items() for block, figures in by.items()}
    best = max(baselines, key=lambda n: baselines[n]["validation"]["pr_auc"] or 0.0, default=None)
    return flat if best is None else {**flat, "baseline": baselines[best]["validation"]}


def _draw(folder: Path, model: art.Artefact, made: Made, part: Material) -> None:
    x, y = part.columns(made.fitted, "validation")
    title = f"{made.fitted.kind} {part.product}".strip() + ", validation block"
    folder.mkdir(parents=True, exist_ok=True)
    plots.write(folder, title, model.predict_proba(x), y, model.manifest.threshold, made.fitted.importance)


def _params(options: TrainOptions, made: Made, manifest: art.Manifest) -> dict[str, object]:
    said = {name: value for name, value in asdict(options).items() if name not in ("experiment",)}
    own = {f"model_{name}": value for name, value in made.fitted.params.items()}
    tau = {f"tau_{product}": value for product, value in manifest.label.tau.items()}
    span = [e for table in manifest.data.values() for e in table["ranges"].values()]
    data = {"data_from_ns": min(a for a, _ in span), "data_to_ns": max(b for _, b in span)} if span else {}
    shape = {"features": len(manifest.features), "feature_hash": manifest.feature_hash}
    shape |= {"calibration": manifest.calibration.method, **data, **manifest.code}
    return {"kind": made.fitted.kind, **said, **shape, **tau, **own}
