"""Blocks on the clock: no row may share its window or its horizon with a row of another block.

::

    train row     |-- window 900 s --|-- horizon 60 s --|
    test row                                     |-- window 900 s --|-- horizon 60 s --|
                                                 ^^^^^^ seen by both: they must be 960 s apart, in either order
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from training.audit.evidence import Evidence, utc
from training.audit.findings import Finding
from training.audit.truth import NS
from training.splits import BLOCKS

_MANY_SWITCHES = 20
"""Changes from block to block along the clock beyond which nobody cut in time: ten sessions cut in three have fewer
than this per session."""


def overlap(e: Evidence) -> Iterator[Finding]:
    """Measure the distance on the clock between every two blocks."""
    there = [b for b in BLOCKS if e.mask(b).any()]
    for one, other in combinations(there, 2):
        a, b = np.unique(e.t_ns[e.mask(one)]), e.t_ns[e.mask(other)]
        apart = nearest(b, a)
        close = apart < e.purge_s * NS
        if not close.any():
            continue
        row = int(np.flatnonzero(e.mask(other))[int(np.argmin(apart))])
        said = (
            f"{close.sum():,} of {len(b):,} {other} rows lie within {e.purge_s} s of a {one} row, e.g. {e.where(row)} "
            f"only {apart.min() / NS:g} s away; rows of two blocks must be at least {e.purge_s} s apart on the clock"
        )
        switches = _switches(e, one, other)
        if switches > _MANY_SWITCHES:
            rates = {x: float(e.spike[e.mask(x)].mean()) for x in (one, other)}
            equal = abs(rates[one] - rates[other]) < 1.5 / min(len(b), int(e.mask(one).sum()))
            how = "drawn at random within each class (stratified)" if equal else "drawn, not cut in time"
            said += (
                f"; along the clock the block changes {switches:,} times: rows were {how} "
                f"(share of spikes {rates[one]:.4f} and {rates[other]:.4f})"
            )
        yield Finding("SPLIT_SHUFFLED" if switches > _MANY_SWITCHES else "PURGE_SHORT", "leak", said)


def order(e: Evidence) -> Iterator[Finding]:
    """See that what a model is judged on comes after what it learned from."""
    there = [b for b in BLOCKS if e.mask(b).any()]
    for one, other in combinations(there, 2):
        last, first = int(e.t_ns[e.mask(one)].max()), int(e.t_ns[e.mask(other)].min())
        if first >= last or _switches(e, one, other) > _MANY_SWITCHES:
            continue  # in order, or shuffled, which the overlap says better
        row = int(np.flatnonzero(e.mask(other))[int(np.argmin(e.t_ns[e.mask(other)]))])
        yield Finding(
            "SPLIT_BACKWARDS",
            "warning" if e.by_session else "leak",
            f"{one} goes on {(last - first) / NS:,.0f} s after {other} began ({e.where(row)}): a model that knows what "
            "came later is judged on what came before"
            + ("; the run cut each session on purpose, so its figures are not those of a forecast" * e.by_session),
        )


def sealed(e: Evidence) -> Iterator[Finding]:
    """See that the sealed block, of which only the times are looked at, begins a purge after all that was used."""
    if e.artefact is None or e.by_session or "test" not in e.artefact.manifest.training.blocks:
        return
    begins, last = e.artefact.manifest.training.blocks["test"]["start_ns"], int(e.t_ns.max())
    if e.mask("test").any() or begins - last >= e.purge_s * NS:
        return
    yield Finding(
        "PURGE_SHORT",
        "leak",
        f"the sealed block begins at {utc(begins)}, {(begins - last) / NS:g} s after the last row that the run used; "
        f"must be at least {e.purge_s} s",
    )


def nearest(t: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distance of each t to the nearest of ``others`` (ascending, at least one), int64[n], ns."""
    at = np.searchsorted(others, t)
    after = others[np.minimum(at, len(others) - 1)]
    before = others[np.maximum(at - 1, 0)]
    return np.asarray(np.minimum(np.abs(after - t), np.abs(t - before)))


def _switches(e: Evidence, one: str, other: str) -> int:
    """Most changes between two blocks along the clock of one product in one session."""
    both = e.mask(one) | e.mask(other)
    series = e.rows.select("product_id", "session").to_struct().rank("dense").to_numpy()[both].astype(np.int64)
    is_other, t = e.mask(other)[both], e.t_ns[both]
    along = np.lexsort((is_other, t, series))
    series, is_other = series[along], is_other[along]
    changed = (is_other[1:] != is_other[:-1]) & (series[1:] == series[:-1])
    return int(np.bincount(series[1:][changed], minlength=1).max(initial=0))
