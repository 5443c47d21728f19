"""What every model of a run shares: rows, features, folds; the sealed block is not among them."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from feature_repo.contract import DEFAULT_SERVICE
from feature_repo.errors import InsufficientDataError
from training.datasets import dataset, feature_names
from training.fitting import Material
from training.folds import Rows, usable
from training.labels import labels_of
from training.options import TrainOptions
from training.provenance import data_manifest
from training.scoring import VOLATILITIES
from training.spikes import check, spikes

BLOCKS = ("train", "validation")
"""Blocks that training may look at."""


def prepare(
    options: TrainOptions, progress: Callable[[str], None] = lambda _: None, *, least_folds: int = 0
) -> Material:
    """Label, split, mark and join.

    Parameters
    ----------
    options
        What to train on.
    progress
        Told what is being done.
    least_folds
        Fewer usable folds than this are an error; with 0 a block too short for folds goes without, and says so.

    Raises
    ------
    InsufficientDataError
        If there is too little data, or no spike in a block.
    """
    progress("labels")
    source = data_manifest()
    found = spikes(labels_of(options), options)
    blocks = {
        name: counts if name in BLOCKS else {k: counts[k] for k in ("rows", "start_ns", "end_ns")}
        for name, counts in found.counts().items()
    }
    frame = found.frame.filter(pl.col("block").is_in(BLOCKS))
    check(frame, BLOCKS)
    names = feature_names(options.service, frame)
    progress(f"training set: {frame.height:,} rows × {len(names)} features")
    data = dataset(frame, options.service, names)
    volatilities = None if set(VOLATILITIES) <= set(names) else dataset(frame, DEFAULT_SERVICE, VOLATILITIES)
    train = frame.filter(pl.col("block") == "train")
    folds, notes = _folds(train, options, least_folds)
    if options.per_product:
        notes = []  # each product has folds of its own
    return Material(data, found, options, source, blocks, folds, notes, volatilities=volatilities)


def _folds(train: pl.DataFrame, options: TrainOptions, least: int) -> tuple[list[tuple[Rows, Rows]], list[str]]:
    t, y = train["event_time_ns"].to_numpy(), train["spike"].to_numpy()
    notes: list[str] = []
    for n in range(options.n_splits, 0, -1):
        try:
            folds, left_out = usable(t, y, n_splits=n, purge_s=options.purge_s)
        except InsufficientDataError as error:
            if least:
                raise
            notes = [f"no purged folds: {error}"]
            continue
        fewer = [f"{n} purged folds instead of {options.n_splits}: the training block is short"]
        return folds, left_out + (fewer if n < options.n_splits else [])
    return [], notes
