"""``volspike split``: cut the labelled rows into train, validation and test."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    train_ratio: Annotated[float, typer.Option(help="Share of training rows.")] = 0.7,
    val_ratio: Annotated[float, typer.Option(help="Share of validation rows.")] = 0.15,
    test_ratio: Annotated[float, typer.Option(help="Share of test rows.")] = 0.15,
    session: Annotated[str, typer.Option(help="Sessions to use, comma-separated; empty for all.")] = "",
    exclude_products: Annotated[str, typer.Option(help="Products to leave out, comma-separated.")] = "",
    threshold_percentile: Annotated[
        float | None, typer.Option(help="Percentile of the training block that makes tau; default from the settings.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Absolute tau instead of a percentile.")] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Seconds without a gap a row needs; default from the settings.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cut the clock into train, validation and test, 960 s apart, and count what lies in each.

    Example: volspike split --train-ratio 0.6 --val-ratio 0.2 --test-ratio 0.2
    """
    from infra.tables_view import emit, table
    from training.summary import options, split_summary

    summary = split_summary(
        options(
            session=session,
            exclude_products=exclude_products,
            threshold_percentile=threshold_percentile,
            tau=tau,
            min_coverage=min_coverage,
            ratios=(train_ratio, val_ratio, test_ratio),
        )
    )
    if json:
        emit(summary)
        return
    table(
        "split",
        ("block", "rows", "spikes", "episodes", "from (UTC)", "to (UTC)"),
        [(b["block"], b["rows"], b["spikes"], b["episodes"], b["from"], b["to"]) for b in summary["blocks"]],
    )
    typer.echo(f"{summary['lost']:,} rows lie in the {summary['purge_s']} s between the blocks and are lost")
    for warning in summary["warnings"]:
        typer.echo(warning)
