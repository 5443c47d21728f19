"""``volspike evaluate``: measure a run, and open its sealed block once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run id (or its beginning), NAME@alias, NAME/version or a folder.")],
    final: Annotated[bool, typer.Option("--final", help="Open the sealed block; this can be done once.")] = False,
    delay_ms: Annotated[
        float | None, typer.Option(min=0, help="Milliseconds that features come late; default from the settings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write, figures beside it as JSON; default in reports.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run against the best baseline and write a report: pooled, by product, session and hour, as events.

    Without --final the rows are validation, which flatters, and the sealed block stays sealed.

    Example: volspike evaluate volspike@champion --final
    """
    from infra.tables_view import emit, status, table
    from training.evaluate import evaluate
    from training.report import verdict

    with status("evaluating") as progress:
        found = evaluate(run, final=final, delay_ms=delay_ms, out=out, progress=progress)
    if json:
        emit(found.to_dict())
        return
    shown = ("pr_auc", "prevalence", "roc_auc", "brier_skill", "calibration_slope", "ece_equal_mass", "f1")
    header = ("", "PR-AUC", "prevalence", "ROC-AUC", "Brier skill", "slope", "ECE", "F1")
    rows = [(found.kind, *(found.pooled[name] for name in shown))]
    rows += [(name, *(figures[n] for n in shown[:-1]), None) for name, figures in found.baselines.items()]
    table("sealed block" if final else found.block, header, rows)
    rows = [
        (
            f"{g.by} {g.key[:16]}",
            int(g.figures["rows"] or 0),
            int(g.figures["episodes"] or 0),
            g.figures["pr_auc"],
            g.figures["prevalence"],
            g.difference,
        )
        for g in found.groups
    ]
    table("by product, session and hour", ("", "rows", "episodes", "PR-AUC", "prevalence", "− baseline"), rows)
    typer.echo(verdict(found))
    events = found.events
    lead = "–" if events.median_lead_s is None else f"{events.median_lead_s:.0f} s"
    false = "–" if events.false_alerts_per_hour is None else f"{events.false_alerts_per_hour:.2f}"
    typer.echo(
        f"{events.caught} of {events.episodes} episodes caught, median lead {lead}, {false} false alerts an hour"
    )
    for warning in found.warnings:
        typer.echo(f"note: {warning}")
    typer.echo(f"report: {found.report}")
