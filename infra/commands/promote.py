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
    """Move the alias champion to a registered version, if the gate agrees; the service follows within seconds.

    The gate wants a clean audit, and rows that neither the version nor the champion was trained or chosen on, on which
    the version is surely better. A refusal begins with its code, such as INSUFFICIENT_EVIDENCE or NOT_BETTER.

    Example: volspike promote 3 --force "first model, thin evidence"
    """
    from dataclasses import asdict

    from feature_repo.errors import UsageError
    from infra.tables_view import emit, table
    from training import promotion

    if bool(run) == log:
        raise UsageError(f"promote takes either a RUN or --log, RUN was {run!r}: see volspike promote --help")
    if log:
        entries = promotion.history()
        if json:
            emit([asdict(e) for e in entries])
            return
        rows = []
        for e in entries:
            compared = e.evidence.get("comparison") or {}
            codes = ", ".join(text.split(":")[0] for text in e.overridden)
            against = (e.evidence.get("opponent"), compared.get("difference"), compared.get("lower_bound"))
            rows.append((e.at, e.action, e.version, e.run_id, e.previous, *against, e.force, codes))
        header = ("at", "action", "version", "run", "before", "against", "PR-AUC +", "at least", "forced by", "over")
        table("deployments", header, rows)
        return
    entry = promotion.promote(run, force=force)
    if json:
        emit(asdict(entry))
        return
    typer.echo(f"version {entry.version} (run {entry.run_id}) is champion; before it: {entry.previous or 'none'}")
    for objection in entry.overridden:
        typer.echo(f"forced over {objection}")
