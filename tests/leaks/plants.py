"""Every leak that somebody has made, planted in a clean run: one function a leak, each replaces one step.

A function takes the market and the seed, and returns what an audit would be given of the wrong run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import polars as pl

from tests.leaks.market import Source
from tests.leaks.pipeline import PERCENTILE, Draft, Steps, build
from training import artefact as art
from training.audit import Evidence
from training.audit.truth import of

Plant = Callable[[Source, int], Evidence]
LEAKS: dict[str, tuple[Plant, set[str]]] = {}
"""By name: the plant, and the codes of which one at least must be among the findings."""
KIND = ("lr", "xgb")


def leak(*codes: str) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        LEAKS[plant.__name__] = (plant, set(codes))
        return plant

    return keep


def _trailing(source: Source, shift_s: int) -> pl.DataFrame:
    sigma = of(source.labels, source.quotes, seconds=60, returns="1s", shift_s=shift_s)
    known = source.labels["sigma_fwd"].is_not_null()
    return source.labels.with_columns(pl.when(known).then(pl.Series(sigma).fill_nan(None)).alias("sigma_fwd"))


@leak("LABEL_NOT_FORWARD")
def next_row_trailing_label(source: Source, seed: int) -> Evidence:
    """``rolling(60).std().shift(-1)``: 59 of the 60 seconds have happened."""
    return build(source, Steps(label=lambda s: _trailing(s, -59)), kind=KIND[seed % 2])


@leak("LABEL_NOT_FORWARD")
def current_label(source: Source, seed: int) -> Evidence:
    """``rolling(60).std()``: the label is what the features say."""
    return build(source, Steps(label=lambda s: _trailing(s, -60)), kind=KIND[seed % 2])


@leak("FEATURE_UNKNOWN")
def label_column_as_feature(source: Source, seed: int) -> Evidence:
    """``X = df.drop(columns=["tau"])`` keeps the label."""

    def keep(draft: Draft, _: Source) -> None:
        draft.features.append("spike")
        draft.x = np.column_stack([draft.x, draft.y.astype(float)])

    return build(source, Steps(features=keep), kind=KIND[seed % 2])


@leak("FEATURE_IS_LABEL")
def label_under_a_features_name(source: Source, seed: int) -> Evidence:
    """The future's volatility stands in a table's column under an honest name, so the run agrees with the table."""
    sigma = source.labels.select("product_id", "session", "n", "k", pl.col("sigma_fwd").alias("w30_realized_vol"))
    table = source.table.drop("w30_realized_vol").join(sigma, on=["product_id", "session", "n", "k"], how="left")
    return build(replace(source, table=table.select(source.table.columns)), kind=KIND[seed % 2])


@leak("SPLIT_SHUFFLED")
def random_split(source: Source, seed: int) -> Evidence:
    """``train_test_split(X, y)``."""
    return build(source, Steps(split=lambda frame: _drawn(frame, seed)), kind=KIND[seed % 2])


def _drawn(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    drawn = np.random.default_rng(seed).choice(["train", "validation", "test"], frame.height, p=[0.7, 0.15, 0.15])
    return frame.with_columns(pl.Series("block", drawn))


@leak("SPLIT_SHUFFLED")
def stratified_split(source: Source, seed: int) -> Evidence:
    """``train_test_split(X, y, stratify=y)``."""

    def split(frame: pl.DataFrame) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        block = np.empty(frame.height, object)
        for value in (True, False):
            rows = rng.permutation(np.flatnonzero(frame["spike"].to_numpy() == value))
            cuts = (np.array([0.7, 0.85]) * len(rows)).astype(int)
            for name, part in zip(("train", "validation", "test"), np.split(rows, cuts), strict=True):
                block[part] = name
        return frame.with_columns(pl.Series("block", block.astype(str)))

    return build(source, Steps(split=split), kind=KIND[seed % 2])


@leak("LABEL_SWAPPED")
def swapped_positives(source: Source, seed: int) -> Evidence:
    """The classes are exchanged: a calm minute is called a spike."""
    return build(source, Steps(mark=lambda frame: frame.with_columns(~pl.col("spike"))), kind=KIND[seed % 2])


@leak("SPLIT_SHUFFLED", "PURGE_SHORT", "SPLIT_BACKWARDS")
def positives_swapped_between_blocks(source: Source, seed: int) -> Evidence:
    """Spikes of train change places with calm rows of validation, so that validation has enough of them."""

    def split(frame: pl.DataFrame) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        block, spike = frame["block"].to_numpy().astype(object), frame["spike"].to_numpy()
        spikes = rng.choice(np.flatnonzero((block == "train") & spike), 30, replace=False)
        others = rng.choice(np.flatnonzero((block == "validation") & ~spike), 30, replace=False)
        block[spikes], block[others] = "validation", "train"
        return frame.with_columns(pl.Series("block", block.astype(str)))

    return build(source, Steps(split=split), kind=KIND[seed % 2])


@leak("PURGE_SHORT")
def no_purge(source: Source, seed: int) -> Evidence:
    """``df[:n]`` and ``df[n:]``: the rows at the edge share windows and horizons."""

    def split(frame: pl.DataFrame) -> pl.DataFrame:
        usable = source.labels.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= 900))
        t = frame["event_time_ns"]
        train = t.filter(frame["block"] == "train")
        # between the blocks of the clean split lie the purged rows; here the later block begins right after train
        missing = usable.filter(
            pl.col("event_time_ns").is_between(train.max() + 1, t.filter(frame["block"] != "train").min() - 1)
        )
        tau = pl.col("product_id").replace_strict(dict(frame.select("product_id", "tau").unique().iter_rows()))
        more = missing.with_columns(pl.lit("validation").alias("block"), tau.alias("tau")).with_columns(
            spike=pl.col("sigma_fwd") >= pl.col("tau")
        )
        return pl.concat([frame, more.select(frame.columns)]).sort(
            "event_time_ns", "product_id", "session", "n", -pl.col("k")
        )

    return build(source, Steps(split=split), kind=KIND[seed % 2])


@leak("TAU_OUTSIDE_TRAIN")
def threshold_on_all_data(source: Source, seed: int) -> Evidence:
    """``df["vol"].quantile(0.95)`` before the split."""
    return build(source, Steps(tau_of=("train", "validation", "test")), kind=KIND[seed % 2])


@leak("SCALER_OUTSIDE_TRAIN")
def scaler_on_all_data(source: Source, seed: int) -> Evidence:
    """``StandardScaler().fit_transform(X)`` before the split."""
    return build(source, Steps(scaled_on=("train", "validation", "test")), kind="lr")


@leak("IMPUTER_OUTSIDE_TRAIN")
def imputer_on_all_data(source: Source, seed: int) -> Evidence:
    """``X.fillna(X.median())`` before the split."""
    return build(source, Steps(filled_on=("train", "validation", "test")), kind="lr")


@leak("CALIBRATOR_OUTSIDE_VALIDATION")
def calibrator_on_test(source: Source, seed: int) -> Evidence:
    """The calibrator has seen the block that the figures are of; the audit is not shown that block."""
    return build(source, Steps(calibrated_on="test", cut_on="validation"), kind=KIND[seed % 2])


@leak("THRESHOLD_OUTSIDE_VALIDATION")
def decision_threshold_on_test(source: Source, seed: int) -> Evidence:
    """The cut with the best F1 on test, whose F1 is then reported."""
    return build(source, Steps(cut_on="test"), kind=KIND[seed % 2])


@leak("FEATURE_FROM_FUTURE")
def future_filled_feature(source: Source, seed: int) -> Evidence:
    """``df.bfill()``: a hole, as a quiet minute leaves one, is filled with what comes after it."""
    name = "w30_trade_imbalance"
    quiet = pl.col("event_time_ns") // 10**9 % 120 < 15
    table = source.table.with_columns(pl.when(~quiet).then(pl.col(name)).alias(name))

    def fill(draft: Draft, _: Source) -> None:
        column = draft.features.index(name)
        frame = draft.rows.select("product_id", "session").with_columns(
            pl.Series(name, draft.x[:, column]).fill_nan(None)
        )
        filled = frame.with_columns(pl.col(name).backward_fill().over("product_id", "session"))[name]
        draft.x[:, column] = filled.fill_null(np.nan).to_numpy()

    return build(replace(source, table=table), Steps(features=fill), kind=KIND[seed % 2])


@leak("FEATURE_FROM_FUTURE")
def feature_of_a_later_row(source: Source, seed: int) -> Evidence:
    """``df["vol"].shift(-30)``: a window that is centred, or aligned on its begin."""

    def shift(draft: Draft, _: Source) -> None:
        column = draft.features.index("w60_realized_vol")
        frame = draft.rows.select("product_id", "session").with_columns(v=draft.x[:, column])
        moved = frame.with_columns(pl.col("v").shift(-30).over("product_id", "session"))["v"]
        draft.x[:, column] = moved.fill_null(np.nan).to_numpy()

    return build(source, Steps(features=shift), kind=KIND[seed % 2])


@leak("DUPLICATE_ACROSS_SPLIT")
def duplicates_across_the_split(source: Source, seed: int) -> Evidence:
    """Spikes of validation were copied to have more of them, and the copies went to train."""

    def copy(draft: Draft, _: Source) -> None:
        copied = np.flatnonzero(draft.mask("validation") & draft.y)[:25]
        draft.rows = pl.concat([draft.rows, draft.rows[copied.tolist()].with_columns(pl.lit("train").alias("block"))])
        draft.x = np.vstack([draft.x, draft.x[copied]])

    return build(source, Steps(features=copy), kind=KIND[seed % 2])


@leak("DUPLICATE_ACROSS_SPLIT")
def duplicates_under_other_names(source: Source, seed: int) -> Evidence:
    """The same, and the copies took the numbers and times of rows of train."""

    def copy(draft: Draft, _: Source) -> None:
        copied = np.flatnonzero(draft.mask("validation") & draft.y)[:25]
        into = np.flatnonzero(draft.mask("train") & draft.y)[: len(copied)]
        draft.x[into] = draft.x[copied]

    return build(source, Steps(features=copy), kind=KIND[seed % 2])


@leak("TAU_PEEKS")
def rolling_tau_that_peeks(source: Source, seed: int) -> Evidence:
    """tau at t takes the horizons that began by t: they end up to a minute after it."""
    return rolling(source, knows_s=60)


def rolling(source: Source, *, knows_s: int = 0, hours: float = 0.5) -> Evidence:
    """A run with a rolling tau; an honest one if ``knows_s`` is 0."""
    known = source.labels.filter(pl.col("sigma_fwd").is_not_null())
    history = {p: part.sort("event_time_ns") for (p,), part in known.partition_by("product_id", as_dict=True).items()}

    def mark(frame: pl.DataFrame) -> pl.DataFrame:
        tau = np.empty(frame.height)
        for i, (product, t) in enumerate(frame.select("product_id", "event_time_ns").iter_rows()):
            ended = history[product]["event_time_ns"].to_numpy() + (60 - knows_s) * 10**9
            first, last = np.searchsorted(ended, [t - int(hours * 3.6e12), t], side="right")
            tau[i] = np.percentile(history[product]["sigma_fwd"].to_numpy()[first:last], PERCENTILE)
        return frame.with_columns(tau=tau).with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau"))

    e = build(source, Steps(mark=mark))
    assert e.artefact is not None
    label = msgspec.structs.replace(e.artefact.manifest.label, rule=art.Rule("rolling", PERCENTILE, hours))
    manifest = msgspec.structs.replace(e.artefact.manifest, label=label)
    return replace(e, artefact=art.Artefact(manifest, "", e.artefact.model))


@leak("FEATURE_UNKNOWN")
def session_id_as_feature(source: Source, seed: int) -> Evidence:
    """``LabelEncoder().fit_transform(df["session"])``."""

    def add(draft: Draft, _: Source) -> None:
        draft.features.append("session")
        draft.x = np.column_stack([draft.x, draft.rows["session"].rank("dense").to_numpy().astype(float)])

    return build(source, Steps(features=add), kind=KIND[seed % 2])


@leak("FEATURE_IS_SESSION")
def session_id_under_a_features_name(source: Source, seed: int) -> Evidence:
    """The session's number stands in the table's column of an honest feature."""
    number = (pl.col("session").rank("dense") * 0.125).alias("w900_trade_imbalance")
    return build(replace(source, table=source.table.with_columns(number)), kind=KIND[seed % 2])
