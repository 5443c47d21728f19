"""``volspike infer``: score a parquet file with the artefact that the service loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Option(help="NAME@alias, NAME/version, run id (or its beginning), or a folder.")],
    data: Annotated[Path, typer.Option(exists=True, help="Parquet file or folder with the model's features.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("predictions.parquet"),
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0, help="Exit 1 if one forecast takes longer at the 99th percentile.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Score rows in bulk and print how long a forecast takes.

    Example: volspike infer --model volspike@champion --data features.parquet --out predictions.parquet
    """
    from infra.tables_view import emit, table
    from training.infer import infer

    found = infer(model, data, out)
    late = max_latency_ms is not None and found.latency_ms["p99"] > max_latency_ms
    if json:
        emit(found.to_dict() | {"max_latency_ms": max_latency_ms, "within_limit": not late})
        return 1 if late else 0
    header = ("ms", *found.latency_ms)
    rows = [("one forecast", *found.latency_ms.values()), ("a batch", *found.batch_ms.values())]
    table("latency", header, rows)
    typer.echo(f"{found.rows:,} rows at {found.rows_per_s:,.0f} rows/s, {found.spikes:,} spikes forecast: {found.out}")
    if found.blank:
        typer.echo(f"{found.blank:,} rows hold none of the model's features: their forecasts rest on nothing")
    if late:
        typer.echo(
            f"p99 of one forecast is {found.latency_ms['p99']:.3f} ms, must be <= {max_latency_ms:g} ms", err=True
        )
    return 1 if late else 0
