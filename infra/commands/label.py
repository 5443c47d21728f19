"""``volspike label``: label every grid row and say what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra import label_options as o


def command(
    horizon: o.Horizon = "60s",
    threshold_percentile: o.Percentile = None,
    threshold: o.Threshold = "fixed",
    rolling_hours: o.RollingHours = None,
    tau: o.Tau = None,
    returns: o.Returns = "1s",
    session: o.Session = "",
    exclude_products: o.ExcludeProducts = "",
    min_coverage: o.MinCoverage = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw; without --json reports/labels.png in the data folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label all grid rows: how much the mid moved in the horizon after each.

    Prints and draws rows, nulls by reason, tau and share of spikes per hour, by product. A fixed tau is taken from the
    training block alone (where the tape is too short to be split, there is none); a rolling one from the horizons that
    had ended by then.

    Example: volspike label --threshold rolling --rolling-hours 6 --threshold-percentile 90
    """
    from infra.label_tables import show
    from infra.settings import settings
    from infra.tables_view import emit
    from training.label_plot import draw
    from training.label_view import label_view
    from training.summary import options

    view = label_view(
        options(
            session=session,
            exclude_products=exclude_products,
            threshold_percentile=threshold_percentile,
            tau=tau,
            min_coverage=min_coverage,
            horizon=horizon,
            returns=returns,
            threshold=threshold,
            rolling_hours=rolling_hours,
        )
    )
    picture = plot or (None if json else settings().data / "reports" / "labels.png")
    if picture is not None:
        draw(view, picture)
    if json:
        emit({**view.to_dict(), "picture": None if picture is None else str(picture)})
        return
    show(view)
    typer.echo(f"drawn: {picture}")
