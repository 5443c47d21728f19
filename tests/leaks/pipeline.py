"""A training pipeline in small whose every step can be replaced by a wrong one: what the plants are planted in.

The clean steps are those of ``training``; :func:`build` returns what an audit is given of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import CALENDAR, PURGE_S, SERVICES, feature_hash, service_hash
from tests.leaks.market import Source
from training import artefact as art
from training import models
from training.audit import Evidence
from training.calibration import preferred
from training.design import Design
from training.objectives import parse
from training.options import TrainOptions
from training.spikes import spikes

SERVICE = "spike_model_v1"
FEATURES = tuple(name for name in SERVICES[SERVICE] if name not in CALENDAR)
PERCENTILE = 85.0
RATIOS = (0.55, 0.3, 0.15)
"""More than usual to validation: on so short a tape it would often hold no spike."""

Matrix = NDArray[np.float64]


@dataclass
class Draft:
    """A run in the making: rows with block, tau and spike, their features, the model."""

    rows: pl.DataFrame
    x: Matrix
    features: list[str]
    tau: dict[str, float]
    model: models.Fitted | None = None

    def mask(self, *blocks: str) -> NDArray[np.bool_]:
        return self.rows["block"].is_in(list(blocks)).to_numpy()

    @property
    def y(self) -> NDArray[np.bool_]:
        return self.rows["spike"].to_numpy()


@dataclass(frozen=True)
class Steps:
    """The steps of a run; each plant replaces one."""

    label: Callable[[Source], pl.DataFrame] = lambda source: source.labels
    split: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame
    tau_of: tuple[str, ...] = ("train",)
    mark: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame
    features: Callable[[Draft, Source], None] = lambda draft, source: None
    scaled_on: tuple[str, ...] = ("train",)
    filled_on: tuple[str, ...] = ("train",)
    calibrated_on: str = "validation"
    cut_on: str = "validation"
    sealed: bool = True


def build(source: Source, steps: Steps | None = None, *, kind: str = "lr", seed: int = 7) -> Evidence:
    """Train one model; raises InsufficientDataError or ValueError where a block lacks spikes, as ``train`` would."""
    steps = steps or Steps()
    draft = _rows(source, steps)
    steps.features(draft, source)
    for block in ("train", "validation"):
        found = draft.y[draft.mask(block)]
        if not 0 < found.sum() < len(found):
            raise ValueError(f"{block} has {found.sum()} spikes in {len(found)} rows")
    draft.model = _fit(draft, steps, kind, seed)
    names = list(draft.model.features)
    x = draft.x[:, [draft.features.index(name) for name in names]]
    raw = _manifest(draft, names)
    margin = art.Artefact(raw, "", draft.model.model).margin(x)
    of, cut = draft.mask(steps.calibrated_on), draft.mask(steps.cut_on)
    t, products = draft.rows["event_time_ns"].to_numpy(), draft.rows["product_id"].to_numpy().astype(str)
    calibration = preferred(margin[of], draft.y[of], t[of])
    calibrated = replace_manifest(raw, calibration=calibration)
    p = art.Artefact(calibrated, "", draft.model.model).predict_proba(x)
    final = replace_manifest(calibrated, threshold=parse("f1").threshold(p[cut], draft.y[cut], t[cut], products[cut]))
    shown = draft.mask("train", "validation", *(() if steps.sealed else ("test",)))
    return Evidence(
        rows=draft.rows.filter(pl.Series(shown)),
        x=draft.x[shown],
        features=tuple(draft.features),
        artefact=art.Artefact(final, "", draft.model.model),
        quotes=source.quotes,
        table=source.table,
    )


def replace_manifest(manifest: art.Manifest, **changes: Any) -> art.Manifest:
    return msgspec.structs.replace(manifest, **changes)


def _rows(source: Source, steps: Steps) -> Draft:
    options = TrainOptions(service=SERVICE, percentile=PERCENTILE, tau=None, ratios=RATIOS, min_coverage_s=900.0)
    found = spikes(steps.label(source), options)
    frame = steps.split(found.frame)
    tau = {
        product: float(np.percentile(frame.filter(
            (pl.col("product_id") == product) & pl.col("block").is_in(list(steps.tau_of)))["sigma_fwd"], PERCENTILE))
        for product in sorted(found.tau)
    }  # fmt: skip
    frame = frame.with_columns(tau=pl.col("product_id").replace_strict(tau, return_dtype=pl.Float64))
    frame = steps.mark(frame.with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau")))
    keys = ["product_id", "session", "n", "k"]
    x = frame.select(keys).join(source.table, on=keys, how="left", maintain_order="left")
    values = x.select(pl.col(list(FEATURES)).cast(pl.Float64).fill_null(float("nan"))).to_numpy(order="c")
    return Draft(frame, np.ascontiguousarray(values), list(FEATURES), tau)


def _fit(draft: Draft, steps: Steps, kind: str, seed: int) -> models.Fitted:
    train, later = draft.mask("train"), draft.mask("validation")
    x, y = draft.x[train], draft.y[train]
    if kind == "zscore":
        return models.zscore(x, draft.features)
    if kind == "xgb":
        held = (draft.x[later], draft.y[later])
        return models.boosted(x, y, draft.features, seed=seed, jobs=1, validation=held)
    if (steps.scaled_on, steps.filled_on) == (("train",), ("train",)):
        return models.logistic(x, y, draft.features)
    return _logistic_of_others(draft, steps, seed)


def _logistic_of_others(draft: Draft, steps: Steps, seed: int) -> models.Fitted:
    """Fit as people do who scale and fill first and split later."""
    train = draft.mask("train")
    fill = Design.fit(draft.x[draft.mask(*steps.filled_on)], log=True).fill
    filled = np.where(np.isnan(draft.x), fill, draft.x)
    design = replace(Design.fit(filled[draft.mask(*steps.scaled_on)], log=True), fill=fill)
    solver = models.solver(models.LR)
    solver.fit(design.apply(draft.x[train]), draft.y[train])
    linear = design.linear(solver.coef_, solver.intercept_)
    values = {n: float(f) for n, f, k in zip(draft.features, design.fill, design.known, strict=True) if k}
    return models.Fitted("lr", tuple(draft.features), msgspec.json.encode(linear), art.Imputation("median", values), {})


def _manifest(draft: Draft, names: list[str]) -> art.Manifest:
    assert draft.model is not None
    known = [n for n in names if n in FEATURES]
    return art.Manifest(
        name="volspike",
        kind=draft.model.kind,
        service=art.Service(SERVICE, service_hash(SERVICE)),
        features=names,
        feature_hash=feature_hash(known),
        label=art.Label(art.Rule("percentile", PERCENTILE), draft.tau),
        threshold=0.5,
        calibration=art.Calibration(),
        imputation=draft.model.imputation,
        training=art.Training({}, sorted(draft.tau), sorted(draft.rows["session"].unique()), 900.0, PURGE_S),
        data={},
        metrics={},
        seeds={"model": 7},
        versions={},
    )


__all__ = ["FEATURES", "PERCENTILE", "Draft", "Steps", "build", "replace", "replace_manifest"]
