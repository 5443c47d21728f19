"""One model from prepared rows: fitted on train, calibrated and cut on validation, measured on folds and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import feature_hash, service_hash
from feature_repo.errors import InsufficientDataError
from infra.settings import settings
from training import artefact as art
from training import baselines, models
from training.calibration import preferred
from training.crossval import OutOfFold, out_of_fold
from training.datasets import Dataset
from training.folds import Rows, usable
from training.metrics import figures
from training.objectives import parse
from training.options import TrainOptions
from training.spikes import Spikes, check, episodes

Metrics = dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class Material:
    """Rows and features that models are made of.

    Attributes
    ----------
    data
        Of train and validation; no row of the sealed block.
    found
        Thresholds and split.
    source
        Data manifest.
    blocks
        Counts by block.
    folds
        Purged folds as row numbers of the training block.
    notes
        What did not work out.
    product
        The one product these rows are of, empty for all.
    volatilities
        The same rows with what baselines read, where the models' features lack some of it.
    """

    data: Dataset
    found: Spikes
    options: TrainOptions
    source: dict[str, Any]
    blocks: dict[str, dict[str, int]]
    folds: list[tuple[Rows, Rows]]
    notes: list[str]
    product: str = ""
    volatilities: Dataset | None = None

    def parts(self) -> Iterator[Material]:
        """Give these rows whole, or with ``per_product`` each product's."""
        if not self.options.per_product:
            yield self
            return
        for product in sorted(self.found.tau):
            mine = (self.data.frame["product_id"] == product).to_numpy()
            frame = self.data.frame.filter(pl.Series(mine))
            try:
                check(frame, ("train", "validation"))
            except InsufficientDataError as error:
                self.found.refused[product] = f"{product}: {error}"
                continue
            train = frame.filter(pl.col("block") == "train")
            try:
                folds, left_out = usable(
                    train["event_time_ns"].to_numpy(),
                    train["spike"].to_numpy(),
                    n_splits=max(len(self.folds), 1),
                    purge_s=self.options.purge_s,
                )
            except InsufficientDataError as error:
                folds, left_out = [], [f"no purged folds: {error}"]
            self.notes.extend(f"{product}: {said}" for said in left_out)
            label = msgspec.structs.replace(self.found.label, tau={product: self.found.tau[product]})
            found = replace(self.found, frame=frame, tau=label.tau, label=label)
            data = Dataset(self.data.x[mine], self.data.features, frame)
            more = self.volatilities
            volatilities = more and Dataset(more.x[mine], more.features, frame)
            counted = {name: {**b, **_counted(frame, name, self.options)} for name, b in self.blocks.items()}
            yield replace(
                self, data=data, volatilities=volatilities, found=found, blocks=counted, folds=folds, product=product
            )

    @property
    def for_baselines(self) -> Dataset:
        """What baselines read."""
        return self.volatilities or self.data

    def rows(self, block: str) -> pl.DataFrame:
        """Labelled rows of a block."""
        return self.data.frame.filter(pl.col("block") == block)

    def excess(self) -> NDArray[np.float64]:
        """Logarithm of sigma_fwd over tau of the training rows, float64[n]; −∞ where nothing moved."""
        rows = self.rows("train")
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(rows["sigma_fwd"].to_numpy() / rows["tau"].to_numpy()))

    def columns(self, model: models.Fitted, block: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Features that a model reads, and spikes, of a block."""
        x, y = self.data.block(block)
        if model.features == self.data.features:
            return x, y
        return x[:, [self.data.column(name) for name in model.features]], y


def _counted(frame: pl.DataFrame, block: str, options: TrainOptions) -> dict[str, int]:
    part = frame.filter(pl.col("block") == block)
    if part.is_empty():  # the sealed block: what it holds of one product is not looked at
        return {}
    return {
        "rows": part.height,
        "spikes": int(part["spike"].sum()),
        "episodes": episodes(part, options.horizon_s),
        "start_ns": int(part["event_time_ns"].to_numpy().min()),
        "end_ns": int(part["event_time_ns"].to_numpy().max()),
    }


@dataclass(frozen=True, slots=True)
class Made:
    """A model, calibrated, cut and measured, not yet written down."""

    fitted: models.Fitted
    manifest: art.Manifest


def make(kind: str, part: Material) -> Made:
    """Fit, calibrate, cut and measure one kind of model."""
    options = part.options
    x, y = part.data.block("train")
    names = part.data.features
    held: OutOfFold | None = None
    if kind != "zscore" and part.folds:
        rows = part.rows("train")
        held = out_of_fold(
            kind,
            x,
            y,
            rows["event_time_ns"].to_numpy(),
            rows["product_id"].to_numpy().astype(np.str_),
            part.folds,
            hyper=options.hyper.get(kind, {}),
            objective=parse(options.objective),
            purge_s=options.purge_s,
            seed=options.seed,
            excess=part.excess(),
            jobs=options.jobs,
            device=options.device,
        )
    if kind == "zscore":
        fitted = models.zscore(x, names)
    elif kind == "lr":
        fitted = models.logistic(x, y, names, hyper=options.hyper.get(kind), excess=part.excess())
    else:
        fitted = models.boosted(
            x,
            y,
            names,
            seed=options.seed,
            jobs=options.jobs,
            hyper=options.hyper.get(kind),
            rounds=held.rounds if held else 0,
            validation=part.data.block("validation"),
            excess=part.excess(),
            device=options.device,
        )
    return Made(fitted, _calibrated(fitted, part, held))


def _calibrated(model: models.Fitted, part: Material, held: OutOfFold | None) -> art.Manifest:
    """Calibrate and cut on validation, measure on every block."""
    options = part.options
    raw = art.Manifest(
        name=settings().model_name,
        kind=model.kind,
        service=art.Service(options.service, service_hash(options.service)),
        features=list(model.features),
        feature_hash=feature_hash(model.features),
        label=part.found.label,
        threshold=0.5,
        calibration=art.Calibration(),
        imputation=model.imputation,
        training=art.Training(
            blocks=part.blocks,
            products=sorted(part.found.tau),
            sessions=list(part.found.sessions),
            min_coverage_s=options.min_coverage_s,
            purge_s=options.purge_s,
        ),
        data=part.source,
        metrics={},
        seeds={"model": options.seed},
        versions={},
    )
    x, y = part.columns(model, "validation")
    rows = part.rows("validation")
    t, products = rows["event_time_ns"].to_numpy(), rows["product_id"].to_numpy().astype(np.str_)
    calibration = preferred(art.Artefact(raw, "", model.model).margin(x), y, t)
    calibrated = msgspec.structs.replace(raw, calibration=calibration)
    scorer = art.Artefact(calibrated, "", model.model)
    threshold = parse(options.objective).threshold(scorer.predict_proba(x), y, t, products)
    metrics: Metrics = {}
    for block in ("train", "validation"):
        x, _ = part.columns(model, block)
        metrics[block] = _figures(scorer.predict_proba(x), part.rows(block), threshold, options)
    if held is not None:
        metrics["folds"] = _figures(held.p, part.rows("train")[held.rows], threshold, options)
    return msgspec.structs.replace(calibrated, threshold=threshold, metrics=metrics)


def _figures(
    p: NDArray[np.float64], rows: pl.DataFrame, threshold: float, options: TrainOptions
) -> dict[str, float | None]:
    t = rows["event_time_ns"].to_numpy()
    y = rows["spike"].to_numpy()
    return figures(p, y, threshold, t_ns=t, episodes=episodes(rows, options.horizon_s))


def measured_baselines(part: Material, progress: Callable[[str], None] = lambda _: None) -> dict[str, Metrics]:
    """Fit every baseline on train, and measure it on folds and validation, whatever features the models read.

    One that can't be fitted (its volatility is constant or missing) is left out.
    """
    data = part.for_baselines
    x, _ = data.block("train")
    train, held = part.rows("train"), part.rows("validation")
    x_held, _ = data.block("validation")
    out: dict[str, Metrics] = {}
    for name in baselines.available(data.features):
        progress(f"baseline {name}")
        try:
            fitted = _baseline(name, x, part, train)
        except InsufficientDataError:
            continue
        p = fitted.predict_proba(x, train["tau"].to_numpy())
        threshold = parse(part.options.objective).threshold(
            p,
            train["spike"].to_numpy(),
            train["event_time_ns"].to_numpy(),
            train["product_id"].to_numpy().astype(np.str_),
        )
        p_held = fitted.predict_proba(x_held, held["tau"].to_numpy())
        out[name] = {"validation": _figures(p_held, held, threshold, part.options)}
        folds = _fold_forecasts(name, x, part, train)
        if folds is not None:
            out[name]["folds"] = _figures(*folds, threshold, part.options)
    return out


def _baseline(name: str, x: NDArray[np.float64], part: Material, rows: pl.DataFrame) -> baselines.Baseline:
    return baselines.fit(
        name,
        x,
        part.for_baselines.features,
        rows["spike"].to_numpy(),
        sigma_fwd=rows["sigma_fwd"].to_numpy(),
        tau=rows["tau"].to_numpy(),
    )


def _fold_forecasts(
    name: str, x: NDArray[np.float64], part: Material, rows: pl.DataFrame
) -> tuple[NDArray[np.float64], pl.DataFrame] | None:
    found = []
    for fit, test in part.folds:
        try:
            fitted = _baseline(name, x[fit], part, rows[fit])
        except InsufficientDataError:
            return None
        found.append(fitted.predict_proba(x[test], rows[test]["tau"].to_numpy()))
    if not found:
        return None
    return np.concatenate(found), rows[np.concatenate([test for _, test in part.folds])]
