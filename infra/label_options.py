"""Options that label, split, train and tune share, said once: what a spike is and which rows are in which block."""

from __future__ import annotations

from typing import Annotated

import typer

Session = Annotated[
    str, typer.Option(help="Sessions to use, comma-separated: number in time, id or its beginning; empty for all.")
]
ExcludeProducts = Annotated[str, typer.Option(help="Products to leave out, comma-separated.")]
Horizon = Annotated[str, typer.Option(help="How far the label looks ahead, such as 60s or 2m.")]
Returns = Annotated[str, typer.Option(help="Returns the label is made of: 1s or tick.")]
Threshold = Annotated[
    str,
    typer.Option(help="fixed: tau from the training block; rolling: from the horizons that ended in the last hours."),
]
Percentile = Annotated[
    float | None, typer.Option(help="Percentile of sigma_fwd that makes tau; default from the settings.")
]
RollingHours = Annotated[float | None, typer.Option(help="Hours that a rolling tau looks back; 6 if not given.")]
Tau = Annotated[float | None, typer.Option(help="Absolute tau instead of a percentile.")]
MinCoverage = Annotated[
    float | None, typer.Option(help="Seconds without a gap a row needs; default from the settings.")
]
TrainRatio = Annotated[float, typer.Option(help="Share of training rows.")]
ValRatio = Annotated[float, typer.Option(help="Share of validation rows.")]
TestRatio = Annotated[float, typer.Option(help="Share of test rows.")]
Sessions = Annotated[
    str, typer.Option(help="Split each of these sessions in time, comma-separated, named as for --session.")
]
TrainSessions = Annotated[str, typer.Option(help="Whole sessions to train on, comma-separated.")]
ValSessions = Annotated[str, typer.Option(help="Whole sessions to validate on.")]
TestSessions = Annotated[str, typer.Option(help="Whole sessions to test on.")]
