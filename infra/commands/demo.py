"""``volspike demo``: the whole job by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    tape: Annotated[list[Path] | None, typer.Option(help="Tape to use instead of a generated one; repeatable.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the service running until Ctrl-C.")] = False,
) -> None:
    """Run the whole job once: tape, features, Feast, three models, champion, forecasts over HTTP, drift report.

    Exits 1 where the tape holds too little, and says what is missing.

    Example: volspike demo --tape data/raw/monday.ndjson.gz
    """
    from infra.demo import run

    outcome = run(tape or [], keep=keep)
    if outcome.refusal:
        raise typer.Exit(1)
