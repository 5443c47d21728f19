"""Features against the tables they came from: each must be what was known at its row, and not give the answer away."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.contract import BY_NAME
from training.audit.evidence import KEYS, Evidence
from training.audit.findings import Finding

DETERMINES: Final = 0.995
"""ROC-AUC of a single column from which on it is the label in other words; an honest one had at most 0.93 on 100
generated markets."""
_LEAST = 10  # rows of each class before an AUC is worth anything
_SAMPLED = 1_000  # rows of each class that a column is tried on first
_SLACK = 0.02  # what the trial may miss by chance
_FEW = 12  # distinct values up to which a column is a code, not a measure
_AHEAD: Final = (1, 2, 5, 10, 30, 60)
_HONESTLY_CONSTANT: Final = ("state", "calendar", "book")
"""Sources whose features may stay the same through a session: the state of the book, the date."""


def names(e: Evidence) -> Iterator[Finding]:
    """See that every column is a feature of the contract, and not the label by its own name."""
    unknown = [name for name in e.features if name not in BY_NAME]
    for name in unknown:
        about = "it is a column of the labels" if name in e.rows.columns else "nobody can say what it knew when"
        yield Finding("FEATURE_UNKNOWN", "leak", f"feature {name!r} is not in the contract: {about}")


def as_of(e: Evidence) -> Iterator[Finding]:
    """Compare every value with the table's row of the same name."""
    if e.table is None:
        yield Finding("FEATURES", "unchecked", "the table spike_features is gone, features can't be compared with it")
        return
    columns = [name for name in e.features if name in BY_NAME and name in e.table.columns]
    table = e.table.select(*KEYS, "event_time_ns", *columns).unique(KEYS, keep="any", maintain_order=True)
    known = e.rows.select(KEYS).join(
        table.select(KEYS).with_row_index("at"), on=list(KEYS), how="left", maintain_order="left"
    )
    lost = known["at"].null_count()
    if lost:
        row = int(known["at"].is_null().to_numpy().argmax())
        yield Finding(
            "ROWS_NOT_IN_TABLE",
            "leak",
            f"{lost:,} rows of the run are not in the table spike_features, the first at {e.where(row)}: they were "
            "made up, or the table was changed after the run",
        )
    rows = np.flatnonzero(known["at"].is_not_null().to_numpy())
    at = known["at"].drop_nulls().to_numpy().astype(np.int64)
    yield from compare(e, rows, table, at, columns, "the table spike_features")


def compare(
    e: Evidence, rows: NDArray[np.int64], table: pl.DataFrame, at: NDArray[np.int64], columns: list[str], source: str
) -> Iterator[Finding]:
    """Report columns whose values in ``rows`` of the run are not those in the rows ``at`` of ``table``."""
    wrong: dict[str, NDArray[np.bool_]] = {}
    there = table.select(columns)[at] if columns else table
    for name in columns:
        used, truth = e.x[rows, e.features.index(name)], _values(there, name)
        differs = used != truth
        if differs.any():
            differs &= ~(np.isnan(used) & np.isnan(truth))
        if differs.any():
            differs &= ~np.isclose(used, truth, rtol=1e-9, atol=0, equal_nan=True)
        if differs.any():
            wrong[name] = differs
    if not wrong:
        return
    ahead = {name: _from_ahead(e, rows, table, name, differs) for name, differs in wrong.items()}
    for name, words in ahead.items():
        if words:
            first = int(np.flatnonzero(wrong[name])[0])
            yield Finding(
                "FEATURE_FROM_FUTURE",
                "leak",
                f"{name} of {wrong[name].sum():,} of {len(rows):,} rows is not that of {source} but {words}; first at "
                f"{e.where(int(rows[first]))}",
            )
    rest = [name for name, words in ahead.items() if not words]
    if rest:
        name = rest[0]
        first = int(np.flatnonzero(wrong[name])[0])
        row = int(rows[first])
        yield Finding(
            "FEATURE_NOT_AS_OF",
            "leak",
            f"{len(rest)} features are not those of {source} ({', '.join(rest[:5])}): {name} of "
            f"{wrong[name].sum():,} of {len(rows):,} rows differs, at {e.where(row)} the run has "
            f"{e.x[row, e.features.index(name)]:.6g}, the table {_values(table, name)[at[first]]:.6g}",
        )


def _from_ahead(
    e: Evidence, rows: NDArray[np.int64], table: pl.DataFrame, name: str, differs: NDArray[np.bool_]
) -> str:
    """Say which later row's value the run has, '' if none explains the difference."""
    keep = np.flatnonzero(differs)[:2000]
    used = e.x[rows[keep], e.features.index(name)]
    mine = e.rows[rows[keep].tolist()].select("product_id", "session", "event_time_ns")
    series = table.select("product_id", "session", "event_time_ns", pl.col(name).cast(pl.Float64).alias("v"))
    series = series.sort("event_time_ns")
    found = mine.with_row_index("row").sort("event_time_ns")
    group = ["product_id", "session"]
    moved: list[tuple[str, pl.DataFrame]] = [
        (f"that of {s} s later", series.with_columns(pl.col("event_time_ns") - s * 1_000_000_000)) for s in _AHEAD
    ]
    # polars says that it can't check the order inside groups; both sides were sorted just above
    for words, other in moved:
        joined = found.join_asof(other, on="event_time_ns", by=group, strategy="backward", check_sortedness=False)
        if _agree(used, joined) > 0.9:
            return words
    known = series.drop_nulls("v").filter(pl.col("v").is_not_nan())
    joined = found.join_asof(known, on="event_time_ns", by=group, strategy="forward", check_sortedness=False)
    return "the next known one: holes were filled from the future" if _agree(used, joined) > 0.9 else ""


def _agree(used: NDArray[np.float64], joined: pl.DataFrame) -> float:
    found = joined.sort("row")["v"].fill_null(float("nan")).to_numpy()
    return float(np.mean(np.isclose(used, found, rtol=1e-9, atol=0)))


def _values(table: pl.DataFrame, name: str) -> NDArray[np.float64]:
    return table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def determines(e: Evidence) -> Iterator[Finding]:
    """Look for a column that alone tells spikes from the rest, by its size, its missingness or its code."""
    y = e.spike
    masks = [e.mask(b) for b in ("train", "validation", "test")]
    of = e.rows["product_id"].to_numpy()
    pooled = [m for m in masks if _judged(y, m)]
    # A column that orders spikes by size tells them within a product only: each product has its own tau.
    products = np.unique(of)
    apart = [s for m in masks for p in products if _judged(y, s := m & (of == p))] if len(products) > 1 else []
    named: set[str] = set()
    for blocks, where in ((pooled, "block"), (apart, "product and block")):
        if len(blocks) < len(pooled):  # few slices agree by chance
            continue
        for name, best in _determining(e, y, blocks):
            if name not in named:
                named.add(name)
                yield Finding(
                    "FEATURE_IS_LABEL",
                    "leak",
                    f"{name} alone separates spikes from the rest with a ROC-AUC of {best:.4f} in every {where}; no "
                    f"honest feature reaches {DETERMINES}",
                )


def _determining(e: Evidence, y: NDArray[np.bool_], blocks: list[NDArray[np.bool_]]) -> Iterator[tuple[str, float]]:
    """Yield the columns that reach ``DETERMINES`` in every block, with the least they reach."""
    if not blocks:
        return
    samples = [np.flatnonzero(m)[_sample(y[m])] for m in blocks]
    for column, name in enumerate(e.features):
        if min(_separation(e.x[rows, column], y[rows]) for rows in samples) < DETERMINES - _SLACK:
            continue
        best = min(_separation(e.x[m, column], y[m]) for m in blocks)
        if best >= DETERMINES:
            yield name, best


def _judged(y: NDArray[np.bool_], mask: NDArray[np.bool_]) -> bool:
    spikes = int(y[mask].sum())
    return spikes >= _LEAST and int(mask.sum()) - spikes >= _LEAST


def _sample(y: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of some rows of each class, spread evenly."""
    return np.concatenate([(k := np.flatnonzero(y == c))[:: max(1, len(k) // _SAMPLED)] for c in (True, False)])


def _separation(v: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Greater of the ROC-AUC of a column and of its opposite; of its codes, where it has few values."""
    missing = np.isnan(v)
    if missing.any():
        low = float(np.nanmin(v)) - 1 if not missing.all() else 0.0
        v = np.where(missing, low, v)
    if v[0] == v[-1] and np.ptp(v) == 0:
        return 0.5
    best = _auc(v, y)
    best = max(best, 1 - best)
    sample = v[:: max(1, len(v) // 200)]
    if best < DETERMINES and len(np.unique(sample)) <= _FEW:
        codes, at = np.unique(v, return_inverse=True)
        if len(codes) <= _FEW:
            rate = np.bincount(at, y) / np.bincount(at)
            best = max(best, _auc(rate[at], y))
    return best


def _auc(v: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Share of (spike, other) pairs in order; a tie counts half."""
    others = np.sort(v[~y])
    spikes = v[y]
    below = np.searchsorted(others, spikes, side="left").sum()
    upto = np.searchsorted(others, spikes, side="right").sum()
    return float((below + upto) / 2 / (len(others) * len(spikes)))


def session(e: Evidence) -> Iterator[Finding]:
    """Look for a column that names the session a row is of."""
    codes = e.rows["session"].rank("dense").to_numpy().astype(np.int64)
    groups = [np.flatnonzero(codes == c) for c in np.unique(codes)]
    if len(groups) < 2:
        return
    apart = []
    for column, name in enumerate(e.features):
        v = e.x[:, column]
        ends = [(float(np.min(v[g])), float(np.max(v[g]))) for g in groups]
        if any(np.isnan(low) for low, _ in ends):
            continue
        ends.sort()
        disjoint = all(a[1] < b[0] for a, b in pairwise(ends))
        constant = all(low == high for low, high in ends)
        feature = BY_NAME.get(name)
        honest = feature is not None and feature.source in _HONESTLY_CONSTANT
        if disjoint and constant and not honest:
            yield Finding(
                "FEATURE_IS_SESSION",
                "leak",
                f"{name} is constant in each of {len(groups)} sessions and different in all of them: it names the "
                "session, whose share of spikes a model then knows by heart",
            )
        elif disjoint:
            apart.append(name)
    if apart:
        yield Finding(
            "FEATURE_TELLS_SESSION",
            "warning",
            f"{len(apart)} features take different ranges in the {len(groups)} sessions ({', '.join(apart[:5])}): from "
            "them a model can tell the session",
        )
