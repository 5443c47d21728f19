"""Thresholds: tau from the training block alone, or from horizons that had ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.artefact import Rule
from training.audit.evidence import Evidence
from training.audit.findings import Finding
from training.audit.truth import NS, labelled

REL: Final = 1e-7
"""Relative difference up to which two percentiles are one number: what separate ways to add up sixty returns leave."""
_ASKED: Final = 400  # rows whose rolling tau is taken again
_MOST: Final = 0.5

Times = NDArray[np.int64]
Values = NDArray[np.float64]


def fixed(e: Evidence) -> Iterator[Finding]:
    """Take tau of each product again from the training block, and see that every row and the artefact have it."""
    if e.artefact is None or e.artefact.manifest.label.rule.kind == "rolling":
        return
    rule = e.artefact.manifest.label.rule
    for product, said in sorted(e.artefact.manifest.label.tau.items()):
        mine = (e.rows["product_id"] == product).to_numpy()
        sigma = e.rows["sigma_fwd"].to_numpy()
        train = sigma[mine & e.mask("train")]
        wanted = rule.value if rule.kind == "absolute" else float(np.percentile(train, rule.value))
        used = e.rows["tau"].to_numpy()[mine]
        off = {float(v) for v in (said, *np.unique(used)[:3]) if abs(v - wanted) > REL * wanted}
        if off:
            yield Finding(
                "TAU_OUTSIDE_TRAIN",
                "leak",
                f"tau of {product} is {' and '.join(f'{v:.8g}' for v in sorted(off))}, {_rule(rule)} gives {wanted:.8g}"
                f"{_whose(e, mine, sigma, rule, max(off))}",
            )


def _rule(rule: Rule) -> str:
    return f"percentile {rule.value:g} of the training block" if rule.kind == "percentile" else "the absolute threshold"


def _whose(e: Evidence, mine: NDArray[np.bool_], sigma: NDArray[np.float64], rule: Rule, used: float) -> str:
    if rule.kind == "absolute":
        return ""
    for blocks in (("train", "validation"), ("train", "validation", "test"), ("validation",), ("test",)):
        rows = mine & np.any([e.mask(b) for b in blocks], axis=0)
        if rows.any() and abs(float(np.percentile(sigma[rows], rule.value)) - used) <= REL * used:
            return f"; it is that of {' and '.join(blocks)}"
    everyone = np.any([e.mask(b) for b in ("train", "validation", "test")], axis=0)
    if abs(float(np.percentile(sigma[everyone], rule.value)) - used) <= REL * used:
        return "; it is that of all products and blocks together"
    return ""


def rolling(e: Evidence) -> Iterator[Finding]:
    """Take the rolling tau of some rows again, from the horizons that had ended by each row and no other."""
    if e.artefact is None or e.artefact.manifest.label.rule.kind != "rolling":
        return
    if e.quotes is None or e.table is None:
        yield Finding("ROLLING_TAU", "unchecked", "the tables are gone, no history to take a rolling tau from")
        return
    rule = e.artefact.manifest.label.rule
    asked = np.unique(np.linspace(0, e.rows.height - 1, _ASKED).astype(np.int64))
    history = _history(e, e.quotes, e.table)
    used = e.rows["tau"].to_numpy()[asked]
    ended = _trailing(e, asked, history, rule, knows_s=0)
    wrong = np.all([np.abs(used - tau) > REL * used for tau in ended], axis=0)
    if not wrong.any():
        return
    row = int(asked[np.flatnonzero(wrong)[0]])
    said = (
        f"tau of {wrong.sum()} of {len(asked)} rows looked at is not percentile {rule.value:g} of the horizons that "
        f"ended in the {rule.hours:g} h before the row: at {e.where(row)} it is {e.rows['tau'][row]:.8g} instead of "
        f"{ended[0][np.flatnonzero(wrong)[0]]:.8g}"
    )
    peeking = _trailing(e, asked, history, rule, knows_s=e.horizon_s)
    peeks = np.any([np.abs(used - tau) <= REL * used for tau in peeking], axis=0)[wrong].mean()
    if peeks > _MOST:
        said += f"; {peeks:.0%} of them are that of the horizons that had only begun: tau has seen its own horizon"
    yield Finding("TAU_PEEKS" if peeks > _MOST else "TAU_NOT_TRAILING", "leak", said)


def _history(e: Evidence, quotes: pl.DataFrame, table: pl.DataFrame) -> dict[str, list[tuple[Times, Values]]]:
    """Labels by product of all grid rows, and of those alone that a run may use: either may be the history."""
    grid = table.filter(pl.col("trigger") == "grid")
    # of overlapping recordings the row that was created last is the one that training knows
    grid = grid.sort("created_timestamp", "session").unique(["product_id", "row_time"], keep="last")
    grid = grid.select("product_id", "session", "event_time_ns", "coverage_s")
    sigma = labelled(grid, quotes, horizon_s=e.horizon_s, returns=e.returns)
    known = grid.with_columns(pl.Series("sigma", sigma)).filter(pl.Series(~np.isnan(sigma))).sort("event_time_ns")
    least = 0.0 if e.artefact is None else e.artefact.manifest.training.min_coverage_s
    return {
        str(product): [
            (chosen["event_time_ns"].to_numpy(), chosen["sigma"].to_numpy())
            for chosen in (part, part.filter(pl.col("coverage_s") >= least))
        ]
        for (product,), part in known.partition_by("product_id", as_dict=True).items()
    }


def _trailing(
    e: Evidence, asked: Times, history: dict[str, list[tuple[Times, Values]]], rule: Rule, *, knows_s: int
) -> list[Values]:
    """Tau of the rows asked for, by each history, when horizons count ``knows_s`` before they have ended."""
    window_ns, horizon_ns = round((rule.hours or 0) * 3600 * NS), e.horizon_s * NS
    out = [np.full(len(asked), np.nan) for _ in range(2)]
    for i, row in enumerate(asked.tolist()):
        now = int(e.t_ns[row]) + knows_s * NS
        for tau, (t, sigma) in zip(out, history.get(e.rows["product_id"][row], []), strict=False):
            first, last = np.searchsorted(t, (now - window_ns - horizon_ns, now - horizon_ns), side="right")
            if last > first:
                tau[i] = np.percentile(sigma[first:last], rule.value)
    return out
