"""What label, split and train have to say, as plain values for a table or JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from feature_repo.contract import DEFAULT_SERVICE, TOP_SERVICE
from feature_repo.errors import InsufficientDataError, UsageError
from training.gate import MIN_EPISODES
from training.labels import REASONS, labels
from training.options import TrainOptions
from training.spikes import spikes

if TYPE_CHECKING:
    from training.train import TrainReport


def options(
    *,
    service: str = "",
    top: bool = False,
    session: str = "",
    exclude_products: str = "",
    experiment: str = "",
    threshold_percentile: float | None = None,
    tau: float | None = None,
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15),
    min_coverage: float | None = None,
    seed: int = 7,
) -> TrainOptions:
    """Turn what was typed into options; empty text and None mean the default."""
    if top and service not in ("", TOP_SERVICE):
        raise UsageError(f"--use-top-features is {TOP_SERVICE}, --service is {service!r}; give one of them")
    if tau is not None and threshold_percentile is not None:
        raise UsageError(f"--tau {tau:g} and --threshold-percentile {threshold_percentile:g} exclude each other")
    given: dict[str, Any] = {
        "experiment": experiment or None,
        "percentile": threshold_percentile,
        "tau": tau,
        "min_coverage_s": min_coverage,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if threshold_percentile is not None:
        given["tau"] = None  # said now, it goes before an absolute tau in the settings
    return TrainOptions(
        service=TOP_SERVICE if top else service or DEFAULT_SERVICE,
        exclude_products=_names(exclude_products),
        sessions=_names(session),
        ratios=ratios,
        seed=seed,
        **given,
    )


def label_summary(chosen: TrainOptions, *, returns: str = "1s") -> dict[str, Any]:
    """Label everything and count per product: rows, nulls by reason, tau, share of spikes in the training block.

    Raises
    ------
    InsufficientDataError
        If no row has a label.
    UsageError
        If ``returns`` is unknown.
    """
    if returns not in ("1s", "tick"):
        raise UsageError(f"--returns is {returns!r}, must be 1s or tick")
    frame = labels(
        sessions=chosen.sessions,
        exclude_products=chosen.exclude_products,
        returns="tick" if returns == "tick" else "1s",
    )
    if frame["sigma_fwd"].null_count() == frame.height:
        counts = {r: int((frame["null_reason"] == r).sum()) for r in REASONS}
        raise InsufficientDataError(
            f"none of {frame.height} grid rows has a label (nulls by reason: {counts}), at least 1 was needed; a label "
            "takes 60 s of quotes after the row: replay a longer tape"
        )
    tau: dict[str, float] = {}
    share: dict[str, float] = {}
    reasons: list[str] = []
    try:
        found = spikes(frame, chosen)
        train = found.frame.filter(pl.col("block") == "train")
        tau, reasons = found.tau, list(found.refused.values())
        share = dict(train.group_by("product_id").agg(pl.col("spike").mean()).iter_rows())
    except InsufficientDataError as error:
        reasons = [str(error)]
    usable = frame.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= chosen.min_coverage_s))
    products = []
    for product in sorted(frame["product_id"].unique()):
        mine = frame.filter(pl.col("product_id") == product)
        products.append(
            {
                "product": product,
                "rows": mine.height,
                "labelled": mine.height - mine["sigma_fwd"].null_count(),
                "usable": usable.filter(pl.col("product_id") == product).height,
                **{reason: int((mine["null_reason"] == reason).sum()) for reason in REASONS},
                "tau": tau.get(product),
                "share": share.get(product),
            }
        )
    return {"rows": frame.height, "products": products, "reasons": reasons}


def split_summary(chosen: TrainOptions) -> dict[str, Any]:
    """Count rows, spikes and episodes per block, and the rows lost between them."""
    found = spikes(labels(sessions=chosen.sessions, exclude_products=chosen.exclude_products), chosen)
    blocks: list[dict[str, Any]] = [
        {
            "block": name,
            **{key: count[key] for key in ("rows", "spikes", "episodes")},
            "from": _utc(count["start_ns"]),
            "to": _utc(count["end_ns"]),
        }
        for name, count in found.counts().items()
    ]
    warnings = [
        f"{b['block']} has {b['episodes']} separate spike episodes, under {MIN_EPISODES}: its figures say little"
        for b in blocks
        if b["episodes"] < MIN_EPISODES
    ]
    return {
        "blocks": blocks,
        "lost": found.split.lost,
        "purge_s": found.split.purge_s,
        "tau": found.tau,
        "refused": found.refused,
        "warnings": [*warnings, *(f"left out: {reason}" for reason in found.refused.values())],
    }


def model_rows(report: TrainReport) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows of the table of models: figures on the test block, the prevalence beside each PR-AUC."""
    names = ("pr_auc", "prevalence", "lift", "roc_auc", "f1", "precision", "recall")
    header = ("model", "PR-AUC", "prevalence", "lift", "ROC-AUC", "F1", "precision", "recall", "version", "run")
    rows: list[tuple[object, ...]] = [
        (m.kind, *(m.metrics["test"][n] for n in names), m.version, m.run_id) for m in report.models
    ]
    return header, rows


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _utc(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
