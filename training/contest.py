"""Challenger against champion on the rows that neither of them, nor anybody who chose between runs, has seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from feature_repo.errors import InsufficientDataError
from training import gate
from training.artefact import Artefact
from training.bootstrap import MIN_BLOCKS
from training.labels import labels_of
from training.metrics import BLOCK_S, figures
from training.rolling import RollingRule, rolling_tau
from training.runs import Run, spikes_of
from training.scoring import VOLATILITIES, probabilities, read, rivals
from training.sealed import BLOCK, Opening, openings
from training.spikes import episodes

_NS: Final = 1_000_000_000
_CALLS = 300


def hold(
    challenger: Run,
    champion: Run | None,
    *,
    name: str,
    alpha: float,
    number: Callable[[str, int, int, int], int],
    open_sealed: Callable[[], object],
    audited: Callable[[bool], tuple[str, ...]],
) -> gate.Contest:
    """Gather the evidence and compare.

    Parameters
    ----------
    challenger, champion
        Runs; without a champion the best baseline on validation is the opponent.
    name
        What the champion is called in the evidence.
    alpha
        What all comparisons of the registry together may spend.
    number
        From opponent, start_ns, end_ns and rows to the number of this comparison in the registry.
    open_sealed
        Opens the challenger's sealed block and says so on record; called only where there are blocks enough.
    audited
        Leaks that the audit finds, of its quick part or of all of it; the whole is asked for only where there are
        blocks enough.

    Returns
    -------
    Contest
        With ``comparison`` None and the sealed block unopened where there are too few blocks of time.
    """
    frame, left_out = evidence(challenger, champion, openings())
    times = frame["event_time_ns"].to_numpy()
    blocks = len(np.unique(times // (BLOCK_S * _NS)))
    p99_ms, size_mb = latency_ms(challenger.artefact), megabytes(challenger.path)
    opponent = name if champion is not None else "the best baseline"
    span = (int(times.min()), int(times.max())) if len(times) else (0, 0)
    if blocks < MIN_BLOCKS:
        return gate.Contest(
            opponent, p99_ms, size_mb, *span, rows=frame.height, blocks=blocks, left_out=left_out, audit=audited(True)
        )
    leaks = audited(False)
    sealed = challenger.manifest.training.blocks.get(BLOCK)
    if sealed is not None and span[0] <= sealed["end_ns"]:
        open_sealed()
    frame = frame.with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau"))
    names = tuple(dict.fromkeys([*challenger.manifest.features, *VOLATILITIES]))
    if champion is not None:
        names = tuple(dict.fromkeys([*names, *champion.manifest.features]))
    x = read(frame, names)
    y, tau = frame["spike"].to_numpy(), frame["tau"].to_numpy()
    own = probabilities(challenger.artefact, x, names)
    mine = pl.col("product_id").is_in(list(challenger.manifest.label.tau))
    known = spikes_of(challenger).frame.filter(mine & pl.col("block").is_in(["train", "validation"]))
    others = rivals(known, read(known, VOLATILITIES))
    base = others.forecast(others.best, x[:, [names.index(v) for v in VOLATILITIES]], tau)
    against = base if champion is None else probabilities(champion.artefact, x, names)
    cut = challenger.manifest.threshold
    cut_against = 0.5 if champion is None else champion.manifest.threshold
    count = episodes(frame, challenger.options.horizon_s)
    opponent = opponent if champion is not None else f"baseline {others.best}"
    attempt = number(opponent, *span, frame.height)
    return gate.Contest(
        opponent=opponent,
        attempt=attempt,
        start_ns=span[0],
        end_ns=span[1],
        rows=frame.height,
        spikes=int(y.sum()),
        episodes=count,
        blocks=blocks,
        left_out=left_out,
        challenger=figures(own, y, cut, t_ns=times, episodes=count),
        against=figures(against, y, cut_against, t_ns=times, episodes=count),
        baseline=figures(base, y, t_ns=times, episodes=count),
        baseline_name=others.best,
        comparison=gate.compare(own, against, y, times, gate.spend(alpha, attempt)),
        p99_ms=p99_ms,
        size_mb=size_mb,
        audit=leaks,
    )


def evidence(challenger: Run, champion: Run | None, opened: list[Opening]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Find the rows that may decide, with the challenger's tau, and how many could not, by reason.

    They are labelled, covered and of products that both models know; at least a purge (960 s) after the last row that
    either was trained, tuned or calibrated on; and in no sealed block that was opened for another run. They may be of
    sessions that the challenger's options left out: whatever came later may judge it.
    """
    runs = [challenger] if champion is None else [challenger, champion]
    after = max(_chosen_until(run) + run.options.purge_s * _NS for run in runs)
    products = set.intersection(*(set(run.manifest.label.tau) for run in runs))
    frame = labels_of(challenger.options.of_all_sessions())
    covered = pl.col("coverage_s") >= challenger.manifest.training.min_coverage_s
    frame = with_tau(frame.filter(pl.col("sigma_fwd").is_not_null() & covered), challenger.artefact)
    frame = frame.filter(pl.col("event_time_ns") >= after)
    both = pl.col("product_id").is_in(sorted(products))
    left_out = {"of products that not both models know": frame.filter(~both).height}
    frame = frame.filter(both)
    shown = pl.lit(False)
    for o in opened:
        if o.run_id != challenger.run_id:
            shown = shown | pl.col("event_time_ns").is_between(o.start_ns, o.end_ns)
    left_out["in sealed blocks that were opened for other runs"] = frame.filter(shown).height
    return frame.filter(~shown), left_out


def with_tau(frame: pl.DataFrame, artefact: Artefact) -> pl.DataFrame:
    """Give each labelled row the tau of an artefact's rule; rows that have none are left out."""
    label = artefact.manifest.label
    if label.rule.kind != "rolling":
        tau = pl.DataFrame({"product_id": list(label.tau), "tau": list(label.tau.values())})
        return frame.join(tau, on="product_id", how="inner", maintain_order="left")
    rule = RollingRule(label.rule.value, label.rule.hours or 0.0, label.horizon_s)
    parts = []
    for part in frame.filter(pl.col("product_id").is_in(list(label.tau))).partition_by("product_id"):
        t = part["event_time_ns"].to_numpy()
        found, _ = rolling_tau(t, t, part["sigma_fwd"].to_numpy(), rule)
        parts.append(part.with_columns(pl.Series("tau", found)).filter(pl.col("tau").is_not_nan()))
    if not parts:
        raise InsufficientDataError(f"no labelled row of products {sorted(label.tau)}; replay their tapes")
    return pl.concat(parts).sort("event_time_ns", "product_id", maintain_order=True)


def latency_ms(artefact: Artefact) -> float:
    """Time of one forecast by itself at the 99th percentile, ms: what the service waits for."""
    x = np.full((1, len(artefact.manifest.features)), np.nan)
    artefact.predict_proba(x)
    took = np.empty(_CALLS)
    for i in range(_CALLS):
        began = time.perf_counter()
        artefact.predict_proba(x)
        took[i] = time.perf_counter() - began
    return float(np.quantile(took, 0.99) * 1000)


def megabytes(folder: Path) -> float:
    """Size of an artefact's files."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6


def _chosen_until(run: Run) -> int:
    blocks = run.manifest.training.blocks
    return max(blocks[name]["end_ns"] for name in blocks if name != BLOCK)
