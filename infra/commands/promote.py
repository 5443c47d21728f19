"""``volspike promote``: make a version the champion, if the gate agrees."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run id (or its beginning), or version number.")] = "",
    force: Annotated[str | None, typer.Option(help="Reason for overriding the gate; it is recorded.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Print the deployment log instead.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Move the alias champion to a registered version; the service follows within seconds.

    Example: volspike promote 3 --force "first model, thin evidence"
    """
    from dataclasses import asdict

    from feature_repo.errors import UsageError
    from infra.tables_view import emit, table
    from training import registry

    if bool(run) == log:
        raise UsageError(f"promote takes either a RUN or --log, RUN was {run!r}: see volspike promote --help")
    if log:
        entries = registry.history()
        if json:
            emit([asdict(e) for e in entries])
            return
        table(
            "deployments",
            ("at", "action", "version", "run", "before", "forced by", "overridden"),
            [(e.at, e.action, e.version, e.run_id, e.previous, e.force, ", ".join(e.overridden)) for e in entries],
        )
        return
    entry = registry.promote(run, force=force)
    if json:
        emit(asdict(entry))
        return
    typer.echo(f"version {entry.version} (run {entry.run_id}) is champion; before it: {entry.previous or 'none'}")
    if entry.overridden:
        typer.echo(f"forced over {', '.join(entry.overridden)}: {entry.force}")
