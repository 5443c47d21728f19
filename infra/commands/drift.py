"""``volspike drift``: compare the features of two stretches of time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from monitoring.drift import DriftReport

_SHOWN = 10


def command(
    reference: Annotated[
        list[str] | None, typer.Option(help="Parquet file, folder, or FROM..TO of the offline table; repeatable.")
    ] = None,
    current: Annotated[list[str] | None, typer.Option(help="The same, for the rows to compare with them.")] = None,
    early_late: Annotated[bool, typer.Option("--early-late", help="First half of the time against the last.")] = False,
    train_test: Annotated[
        str | None, typer.Option(metavar="RUN", help="Training block of 'champion' or a run against later.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="One report per value: 'product'.")] = None,
    trigger: Annotated[str, typer.Option(help="Rows to compare: grid, ticker or all.")] = "grid",
    min_coverage: Annotated[
        float | None, typer.Option(help="Least seconds without a gap behind a row; default: VOLSPIKE_MIN_COVERAGE_S.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the reports; default: <data>/reports.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare the features of two stretches of time; write an HTML page and JSON.

    Without --reference or --current, the whole offline table is split by --early-late or --train-test.

    Example:
        volspike drift --early-late --by product
        volspike drift --reference monday.parquet --current tuesday.parquet
    """
    from feature_repo.errors import UsageError
    from infra.settings import settings
    from monitoring import drift, drift_inputs

    if by not in (None, "product", "product_id"):
        raise UsageError(f"--by must be product, was {by!r}")
    ways = [early_late, train_test is not None, bool(reference or current)]
    if sum(ways) != 1 or (ways[2] and not (reference and current)):
        raise UsageError("give either --reference and --current, or --early-late, or --train-test RUN")
    if reference and current:
        name = "drift"
        before, after = (
            drift_inputs.rows(side, trigger=trigger, min_coverage_s=min_coverage) for side in (reference, current)
        )
    else:
        rows = drift_inputs.rows([], trigger=trigger, min_coverage_s=min_coverage)
        name = "drift-early-late" if train_test is None else "drift-train-test"
        before, after = drift_inputs.halves(rows) if train_test is None else drift_inputs.train_test(rows, train_test)
    found = drift.report(
        before, after, by=None if by is None else "product_id", out=out or settings().reports, name=name
    )
    typer.echo(json.dumps(found.as_dict()) if as_json else _text(found))


def _text(found: DriftReport) -> str:
    lines = []
    for group in found.groups:
        lines.append(
            f"{group.key}: {len(group.drifted)} of {len(group.compared)} columns drifted ({group.share:.0%}), "
            f"{group.rows[0]} against {group.rows[1]} rows"
        )
        for column in group.drifted[:_SHOWN]:
            lines.append(f"  {column.name:<28} {column.kind if column.psi is None else f'PSI {column.psi:.3f}'}")
        for kind in ("empty", "constant"):
            names = [c.name for c in group.columns if c.kind == kind]
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {kind}, not compared: {', '.join(names[:5])}{more}")
        lines.append(f"  {group.html}")
    lines += [f"{key}: skipped, {why}" for key, why in found.skipped.items()]
    return "\n".join([*lines, found.json])
