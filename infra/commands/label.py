"""``volspike label``: label every grid row and say what came of it."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    session: Annotated[str, typer.Option(help="Sessions to use, comma-separated; empty for all.")] = "",
    exclude_products: Annotated[str, typer.Option(help="Products to leave out, comma-separated.")] = "",
    threshold_percentile: Annotated[
        float | None, typer.Option(help="Percentile of the training block that makes tau; default from the settings.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Absolute tau instead of a percentile.")] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Seconds without a gap a row needs; default from the settings.")
    ] = None,
    returns: Annotated[str, typer.Option(help="Returns the label is made of: 1s or tick.")] = "1s",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label all grid rows: how much the mid moved in the 60 s after each.

    Prints rows, nulls by reason, tau and share of spikes per product. tau is taken from the training block alone; where
    the tape is too short to be split, there is none.

    Example: volspike label --exclude-products ETH-USD --threshold-percentile 90
    """
    from infra.tables_view import emit, table
    from training.summary import label_summary, options

    chosen = options(
        session=session,
        exclude_products=exclude_products,
        threshold_percentile=threshold_percentile,
        tau=tau,
        min_coverage=min_coverage,
    )
    summary = label_summary(chosen, returns=returns)
    if json:
        emit(summary)
        return
    table(
        "labels",
        ("product", "rows", "labelled", "usable", "no quote", "gap", "too recent", "tau", "spikes in train"),
        [
            (
                p["product"],
                p["rows"],
                p["labelled"],
                p["usable"],
                p["no_quote"],
                p["gap"],
                p["watermark"],
                p["tau"],
                p["share"],
            )
            for p in summary["products"]
        ],
    )
    for reason in summary["reasons"]:
        typer.echo(f"no tau: {reason}")
