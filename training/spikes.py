"""From labels to spikes: usable rows, blocks on the clock, a tau for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import HORIZON_S
from feature_repo.errors import InsufficientDataError
from training import thresholds
from training.artefact import Label, Rule
from training.options import TrainOptions
from training.sessions import choose, in_time
from training.splits import BLOCKS, Split, by_session, chronological, whole_sessions


@dataclass(frozen=True, slots=True)
class Spikes:
    """Rows that models learn from and are tested on.

    Attributes
    ----------
    frame
        The usable rows of :func:`training.labels.labels` that lie in a block, with block, tau (as sigma_fwd) and
        spike (bool), in the order of time.
    split
        Blocks on the clock.
    tau
        Threshold per product; of a rolling one the last before the sealed block.
    refused
        Reason per product that was left out.
    label
        What the artefact says of horizon, rule and tau.
    tau_state
        Content of the artefact's ``tau.json`` where tau rolls, else None.
    missing
        Rows without a rolling tau, by product and reason.
    sessions
        Sessions that the labels came from; all of them bear on a rolling tau.
    """

    frame: pl.DataFrame
    split: Split
    tau: dict[str, float]
    refused: dict[str, str]
    label: Label
    tau_state: bytes | None = None
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    sessions: tuple[str, ...] = ()

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows, spikes and episodes per block."""
        out = {}
        for name in BLOCKS:
            part = self.frame.filter(pl.col("block") == name)
            out[name] = {
                "rows": part.height,
                "spikes": int(part["spike"].sum()),
                "episodes": episodes(part, self.label.horizon_s),
                "start_ns": self.split[name].start_ns,
                "end_ns": self.split[name].end_ns,
            }
        return out


def usable_rows(labels: pl.DataFrame, options: TrainOptions) -> pl.DataFrame:
    """Keep labelled rows with enough coverage.

    Raises
    ------
    InsufficientDataError
        If there is none.
    """
    usable = labels.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= options.min_coverage_s))
    if usable.is_empty():
        labelled = labels["sigma_fwd"].is_not_null().sum()
        if not labelled:
            why = ", ".join(f"{count:,} {reason}" for reason, count in labels["null_reason"].value_counts().iter_rows())
            raise InsufficientDataError(
                f"no usable row: none of {labels.height:,} grid rows has a label ({why}); where there is no quote, see "
                "that table quotes is there, or replay the tapes"
            )
        longest = labels.select(pl.col("coverage_s").max()).item()
        raise InsufficientDataError(
            f"no usable row: {labelled} of {labels.height} grid rows have a label, none of them coverage_s >= "
            f"{options.min_coverage_s:g} (the longest is {longest}); replay a longer tape or lower --min-coverage"
        )
    return usable


def spikes(labels: pl.DataFrame, options: TrainOptions) -> Spikes:
    """Choose the usable rows, split them in time and mark the spikes.

    Parameters
    ----------
    labels
        As :func:`training.labels.labels_of` gives them for these options.
    options
        Threshold, split and least coverage.

    Raises
    ------
    InsufficientDataError
        If no row is usable, a block would be empty, or no product has a threshold.
    UsageError
        If the options name sessions that are not there.
    """
    usable = usable_rows(labels, options)
    refused = {
        product: f"{product}: no row has a label and coverage_s >= {options.min_coverage_s:g}; replay more of it"
        for product in sorted(set(labels["product_id"].unique()) - set(usable["product_id"].unique()))
    }
    known = in_time(labels.lazy()) if options.train_sessions else []
    found = _rolled(usable, options, known) if options.rolling else _fixed(usable, options, known)
    sessions = tuple(sorted(labels["session"].unique()))
    return replace(found, refused={**refused, **found.refused}, sessions=sessions)


def _fixed(usable: pl.DataFrame, options: TrainOptions, known: list[str]) -> Spikes:
    frame, split = _blocks(usable, options, known)
    tau, refused = thresholds.fixed(frame, options)
    if not tau:
        raise InsufficientDataError(f"no product is left to train on: {'; '.join(refused.values())}")
    frame = frame.filter(pl.col("product_id").is_in(list(tau))).with_columns(
        tau=pl.col("product_id").replace_strict(tau, return_dtype=pl.Float64)
    )
    rule = Rule("percentile", options.percentile) if options.tau is None else Rule("absolute", options.tau)
    label = Label(rule, tau, horizon_s=options.horizon_s, returns=options.returns)
    return Spikes(_marked(frame), split, tau, refused, label)


def _rolled(usable: pl.DataFrame, options: TrainOptions, known: list[str]) -> Spikes:
    rule = options.rolling
    assert rule is not None  # noqa: S101  # asked for by the caller
    rolled = thresholds.rolling(usable, rule)
    if rolled.frame.is_empty():
        raise InsufficientDataError(f"no product is left to train on: {'; '.join(rolled.refused.values())}")
    frame, split = _blocks(rolled.frame, options, known)
    before = frame.filter(pl.col("block") != "test")
    tau = dict(before.group_by("product_id").agg(pl.col("tau").sort_by("event_time_ns").last()).iter_rows())
    frame = frame.filter(pl.col("product_id").is_in(list(tau)))
    label = Label(
        Rule("rolling", rule.percentile, rule.hours), tau, horizon_s=options.horizon_s, returns=options.returns
    )
    state = thresholds.state(usable, frame, rule)
    return Spikes(_marked(frame), split, tau, rolled.refused, label, state, rolled.missing)


def _blocks(usable: pl.DataFrame, options: TrainOptions, known: list[str]) -> tuple[pl.DataFrame, Split]:
    t, session = usable["event_time_ns"].to_numpy(), usable["session"].to_numpy().astype(str)
    if options.train_sessions:
        named = (options.train_sessions, options.val_sessions, options.test_sessions)
        said = ("--train-sessions", "--val-sessions", "--test-sessions")
        chosen = {b: choose(names, known, option=option) for b, names, option in zip(BLOCKS, named, said, strict=True)}
        split = whole_sessions(t, session, chosen, purge_s=options.purge_s)
    elif options.each_session:
        split = by_session(t, session, options.ratios, purge_s=options.purge_s)
    else:
        split = chronological(t, options.ratios, purge_s=options.purge_s)
    return usable.with_columns(block=pl.Series(split.names())).filter(pl.col("block") != "lost"), split


def _marked(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau"))


def check(frame: pl.DataFrame, blocks: Sequence[str] = BLOCKS) -> None:
    """Refuse rows that nothing can be learned from or measured on.

    Parameters
    ----------
    frame
        As :class:`Spikes` has it.
    blocks
        Blocks to look at.

    Raises
    ------
    InsufficientDataError
        If a block is empty, has no spike, or has nothing but spikes.
    """
    for name in blocks:
        part = frame.filter(pl.col("block") == name)
        found = int(part["spike"].sum())
        if found == 0 or found == part.height:
            way = "raise" if found else "lower"
            raise InsufficientDataError(
                f"{name} block has {found} spikes in {part.height} rows, must have at least 1 spike and 1 other row; "
                f"replay a longer tape, move the ratios, or {way} --threshold-percentile or --tau"
            )


def episodes(frame: pl.DataFrame, horizon_s: int = HORIZON_S) -> int:
    """Count separate spike episodes: spike rows of one product no more than a horizon apart are one.

    Examples
    --------
    >>> rows = {"product_id": ["A"] * 3, "event_time_ns": [0, 60 * 10**9, 200 * 10**9], "spike": [True] * 3}
    >>> episodes(pl.DataFrame(rows))
    2
    """
    total = 0
    for part in frame.filter(pl.col("spike")).partition_by("product_id"):
        t: NDArray[np.int64] = np.sort(part["event_time_ns"].to_numpy())
        total += 1 + int((np.diff(t) > horizon_s * 1_000_000_000).sum())
    return total
