"""Labels recomputed from the quotes: they must speak of the future, and of it alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.audit.evidence import Evidence
from training.audit.findings import Finding
from training.audit.truth import at_rows, over_gap

REL = 1e-6
"""Relative difference up to which two computations of one volatility are the same number."""
_ABS = 1e-13  # per return; what log(a) − log(b) of nearly equal prices loses


def labels(e: Evidence) -> Iterator[Finding]:
    """Recompute ``sigma_fwd`` and ``spike`` of every row."""
    if e.quotes is None:
        yield Finding("LABEL", "unchecked", "the table quotes is gone, labels can't be recomputed from it")
        return
    yield from against(e, e.quotes, "the table's quotes")


def against(e: Evidence, quotes: pl.DataFrame, source: str) -> Iterator[Finding]:
    """Compare the run's labels with those that ``quotes`` give."""
    truth = at_rows(e, quotes)
    used = e.rows["sigma_fwd"].to_numpy()
    wrong = ~same(used, truth)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        yield Finding(
            "LABEL_NOT_FORWARD",
            "leak",
            f"sigma_fwd of {wrong.sum():,} of {len(wrong):,} rows is not the volatility of the {e.horizon_s} s after "
            f"the row by {source}: at {e.where(row)} the run has {used[row]:.6g}, the quotes give {truth[row]:.6g}; "
            f"{_looks_like(e, quotes, used, wrong)}",
        )
    tau = e.rows["tau"].to_numpy()
    near = np.abs(truth - tau) <= REL * tau
    flipped = (e.spike != (truth >= tau)) & ~near
    if flipped.any():
        share = flipped.mean()
        how = "the classes are exchanged" if share > 0.9 else "labels were changed after they were made"
        code = "LABEL_NOT_FORWARD" if wrong.mean() > share / 2 else "LABEL_SWAPPED"
        if code == "LABEL_SWAPPED":
            row = int(np.flatnonzero(flipped)[0])
            yield Finding(
                code,
                "leak",
                f"spike of {flipped.sum():,} of {len(flipped):,} rows is not (sigma_fwd >= tau) by {source}: at "
                f"{e.where(row)} it is {bool(e.spike[row])}, sigma_fwd is {truth[row]:.6g}, tau {tau[row]:.6g}; {how}",
            )
    yield from _over_gaps(e, quotes, source)


def same(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell where two volatilities are one number, bool[n]; NaN equals NaN."""
    return np.asarray((np.abs(a - b) <= REL * np.abs(b) + _ABS) | (np.isnan(a) & np.isnan(b)))


def _looks_like(e: Evidence, quotes: pl.DataFrame, used: NDArray[np.float64], wrong: NDArray[np.bool_]) -> str:
    """Say which other stretch of time the labels describe, if one does."""
    named = {
        -e.horizon_s: "before the row: the label is what had just happened",
        1 - e.horizon_s: "before the next row: all but one second of the label had happened",
    }
    for shift, words in named.items():
        agree = float(same(used, at_rows(e, quotes, shift_s=shift))[wrong].mean())
        if agree > 0.5:
            return f"{agree:.0%} of them are the volatility of the {e.horizon_s} s {words}"
    truth = at_rows(e, quotes)
    known = wrong & ~np.isnan(truth) & ~np.isnan(used)
    if known.sum() > 2 and np.ptp(used[known]) > 0 and np.ptp(truth[known]) > 0:
        return f"their correlation with the truth is {np.corrcoef(used[known], truth[known])[0, 1]:.2f}"
    return "they belong to no stretch of time near the row"


def _over_gaps(e: Evidence, quotes: pl.DataFrame, source: str) -> Iterator[Finding]:
    met = over_gap(e.rows, quotes, e.horizon_s)
    if met.any():
        row = int(np.flatnonzero(met)[0])
        yield Finding(
            "LABEL_OVER_GAP",
            "leak",
            f"{met.sum():,} rows have a label although a gap of {source} meets their horizon, the first at "
            f"{e.where(row)}; their label must be null",
        )
