"""``volspike split``: cut the labelled rows into train, validation and test."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import label_options as o


def command(
    train_ratio: o.TrainRatio = 0.7,
    val_ratio: o.ValRatio = 0.15,
    test_ratio: o.TestRatio = 0.15,
    sessions: o.Sessions = "",
    train_sessions: o.TrainSessions = "",
    val_sessions: o.ValSessions = "",
    test_sessions: o.TestSessions = "",
    exclude_products: o.ExcludeProducts = "",
    session: o.Session = "",
    horizon: o.Horizon = "60s",
    threshold_percentile: o.Percentile = None,
    threshold: o.Threshold = "fixed",
    rolling_hours: o.RollingHours = None,
    tau: o.Tau = None,
    returns: o.Returns = "1s",
    min_coverage: o.MinCoverage = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cut the rows into train, validation and test, a purge apart on the clock, and count what lies in each.

    The clock is cut as a whole; with --sessions each of these sessions by itself; with --train-sessions, --val-sessions
    and --test-sessions whole sessions go to a block. The purge is the horizon and the longest window, 960 s.

    Example: volspike split --train-ratio 0.6 --val-ratio 0.2 --test-ratio 0.2
    """
    from infra.tables_view import emit, table
    from training.splits import BLOCKS
    from training.summary import options, split_summary

    summary = split_summary(
        options(
            session=session,
            exclude_products=exclude_products,
            threshold_percentile=threshold_percentile,
            tau=tau,
            min_coverage=min_coverage,
            ratios=(train_ratio, val_ratio, test_ratio),
            horizon=horizon,
            returns=returns,
            threshold=threshold,
            rolling_hours=rolling_hours,
            sessions=sessions,
            train_sessions=train_sessions,
            val_sessions=val_sessions,
            test_sessions=test_sessions,
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
    table(
        "rows by session",
        ("number", "session", *BLOCKS),
        [(s["number"], s["session"], *(s[b] for b in BLOCKS)) for s in summary["sessions"]],
    )
    reason = f"within {summary['purge_s']} s of another block, or of a session too short to split"
    typer.echo(f"{summary['lost']:,} rows are lost: {reason}")
    for warning in summary["warnings"]:
        typer.echo(warning)
