"""``volspike validate``: whether the stream is healthy."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    topic: Annotated[str, typer.Option(help="Topic of the raw log.")] = "ticks.raw",
    least: Annotated[int, typer.Option("--min", help="Messages at least.")] = 100,
    duration: Annotated[
        float | None, typer.Option(help="Seconds to read what comes; default what is there, some more for --min of it.")
    ] = None,
    check_staleness: Annotated[
        bool, typer.Option("--check-staleness", help="Each product must be fresh at the end.")
    ] = False,
    max_messages: Annotated[int | None, typer.Option(help="Stop after this many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Measure a stretch of the raw log: counts, rates, heartbeats, schema errors, gaps, staleness.

    Exits 1 where the stream falls short.

    Example: volspike validate --topic ticks.raw --duration 60 --check-staleness
    """
    from infra.logs import configure_logging
    from infra.settings import settings
    from infra.validation_view import running_kafka, show, watching
    from ingestion.validation import Limits, validate

    configure_logging(settings().log_level)
    limits = Limits(least, duration, max_messages, check_staleness)
    with watching(topic, quiet=as_json) as progress:
        findings = validate(running_kafka(), topic, limits, progress=progress)
    show(findings, as_json=as_json)
    if not findings.healthy:
        raise typer.Exit(1)
