"""``volspike rollback``: give the alias back to the champion before."""

from __future__ import annotations

from typing import Annotated

import typer


def command(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Move the alias champion back to the version that had it before.

    Example: volspike rollback
    """
    from dataclasses import asdict

    from infra.tables_view import emit
    from training import promotion

    entry = promotion.rollback()
    if json:
        emit(asdict(entry))
        return
    typer.echo(f"version {entry.version} (run {entry.run_id}) is champion again; it was {entry.previous}")
