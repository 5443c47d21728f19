"""``volspike train``: models on the tables, each a run, an artefact and a registered version."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import label_options as o


def command(
    use_top_features: Annotated[bool, typer.Option("--use-top-features", help="The thirty of spike_top30_v1.")] = False,
    service: Annotated[str, typer.Option(help="Feature service; empty for the default.")] = "",
    exclude_products: o.ExcludeProducts = "",
    session: o.Session = "",
    sessions: o.Sessions = "",
    train_sessions: o.TrainSessions = "",
    val_sessions: o.ValSessions = "",
    test_sessions: o.TestSessions = "",
    train_ratio: o.TrainRatio = 0.7,
    val_ratio: o.ValRatio = 0.15,
    test_ratio: o.TestRatio = 0.15,
    horizon: o.Horizon = "60s",
    threshold_percentile: o.Percentile = None,
    threshold: o.Threshold = "fixed",
    rolling_hours: o.RollingHours = None,
    tau: o.Tau = None,
    returns: o.Returns = "1s",
    min_coverage: o.MinCoverage = None,
    n_splits: Annotated[int, typer.Option(help="Purged folds inside the training block.")] = 5,
    objective: Annotated[
        str,
        typer.Option(help="What the alarm threshold is for: f1, cost:FP,FN, precision@recall:R or alerts-per-hour:N."),
    ] = "f1",
    per_product: Annotated[
        bool, typer.Option("--per-product", help="A model for each product, of its rows alone.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where XGBoost computes: cpu, cuda or cuda:N.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="Threads of XGBoost; 0 for as many as pay off.")] = 0,
    override: Annotated[
        str | None, typer.Option(help="Reason for registering a model that the audit refuses; logged.")
    ] = None,
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment; empty for the settings'.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train z-score, logistic regression and XGBoost beside the baselines, and log each to MLflow.

    The last block stays sealed: figures are those of purged folds inside the training block, and of validation. Exit
    code 1 if the audit refuses to register a model.

    Example: volspike train --use-top-features --objective cost:1,20 --experiment-name first
    """
    from dataclasses import replace

    from infra.tables_view import emit, status, table
    from training.summary import baseline_rows, best_lines, model_rows, options
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
        horizon=horizon,
        returns=returns,
        threshold=threshold,
        rolling_hours=rolling_hours,
        sessions=sessions,
        train_sessions=train_sessions,
        val_sessions=val_sessions,
        test_sessions=test_sessions,
    )
    chosen = replace(chosen, n_splits=n_splits, objective=objective, device=device, jobs=jobs, per_product=per_product)
    with status("training") as progress:
        report = train(chosen, override=override, progress=progress)
    if json:
        emit(report.to_dict())
    else:
        table("models, on validation and on purged folds", *model_rows(report))
        table("baselines, on validation", *baseline_rows(report))
        for warning in [*report.warnings, *(f"left out: {reason}" for reason in report.refused.values())]:
            typer.echo(warning)
        for model in report.models:
            for finding in model.findings:
                typer.echo(f"audit of {model.kind} {model.product}: {finding}")
        for line in best_lines(report):
            typer.echo(line)
    if not report.clean:
        raise typer.Exit(1)
