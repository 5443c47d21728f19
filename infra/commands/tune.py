"""``volspike tune``: a grid of hyperparameters on purged folds, the best of each model refitted."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import label_options as o


def command(
    model: Annotated[str, typer.Option(help="lr or xgb; empty for both.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Four candidates a model instead of 24.")] = False,
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
    device: Annotated[str, typer.Option(help="Where XGBoost computes: cpu, cuda or cuda:N.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    override: Annotated[
        str | None, typer.Option(help="Reason for registering a model that the audit refuses; logged.")
    ] = None,
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment; empty for the settings'.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Search hyperparameters on expanding purged folds and train the best candidate of each model.

    Every candidate is a child run in MLflow. An interrupted search goes on where it stopped when it is run again. The
    last block stays sealed. Exit code 1 if the audit refuses to register a model.

    Example: volspike tune --model xgb --n-splits 5 --quick
    """
    from dataclasses import replace

    from infra.tables_view import emit, status, table
    from training.summary import baseline_rows, best_lines, candidate_rows, model_rows, options
    from training.tune import TUNABLE, tune

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
    chosen = replace(chosen, n_splits=n_splits, objective=objective, device=device, jobs=jobs)
    kinds = (model,) if model else TUNABLE
    with status("tuning") as progress:
        report = tune(chosen, kinds=kinds, quick=quick, override=override, progress=progress)
    if json:
        emit(report.to_dict())
    else:
        table(f"candidates, mean over {report.folds} purged folds", *candidate_rows(report))
        table("refitted, on validation and on purged folds", *model_rows(report.trained))
        table("baselines, on validation", *baseline_rows(report.trained))
        if report.resumed:
            typer.echo(f"{report.resumed} candidates were taken over from an interrupted tune")
        for warning in [*report.notes, *(f"left out: {reason}" for reason in report.trained.refused.values())]:
            typer.echo(warning)
        for line in best_lines(report.trained):
            typer.echo(line)
    if not report.trained.clean:
        raise typer.Exit(1)
