"""``volspike train``: three models on the tables, each a run, an artefact and a registered version."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    use_top_features: Annotated[bool, typer.Option("--use-top-features", help="The thirty of spike_top30_v1.")] = False,
    service: Annotated[str, typer.Option(help="Feature service; empty for the default.")] = "",
    exclude_products: Annotated[str, typer.Option(help="Products to leave out, comma-separated.")] = "",
    session: Annotated[str, typer.Option(help="Sessions to use, comma-separated; empty for all.")] = "",
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment; empty for the settings'.")] = "",
    threshold_percentile: Annotated[
        float | None, typer.Option(help="Percentile of the training block that makes tau; default from the settings.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Absolute tau instead of a percentile.")] = None,
    train_ratio: Annotated[float, typer.Option(help="Share of training rows.")] = 0.7,
    val_ratio: Annotated[float, typer.Option(help="Share of validation rows.")] = 0.15,
    test_ratio: Annotated[float, typer.Option(help="Share of test rows.")] = 0.15,
    min_coverage: Annotated[
        float | None, typer.Option(help="Seconds without a gap a row needs; default from the settings.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train z-score, logistic regression and XGBoost, and log each to MLflow.

    Example: volspike train --use-top-features --experiment-name first
    """
    from infra.tables_view import emit, status, table
    from training.summary import model_rows, options
    from training.train import train

    chosen = options(
        service=service,
        top=use_top_features,
        session=session,
        exclude_products=exclude_products,
        experiment=experiment_name,
        threshold_percentile=threshold_percentile,
        tau=tau,
        ratios=(train_ratio, val_ratio, test_ratio),
        min_coverage=min_coverage,
        seed=seed,
    )
    with status("training") as progress:
        report = train(chosen, progress=progress)
    if json:
        emit(report.to_dict())
        return
    header, rows = model_rows(report)
    table("models on the test block", header, rows)
    for reason in report.refused.values():
        typer.echo(f"left out: {reason}")
    typer.echo(f"best on validation: {report.best.kind}. Next: volspike promote {report.best.run_id}")
