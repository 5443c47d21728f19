"""``volspike audit``: try to prove a run wrong."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run id (or its beginning), NAME@alias, NAME/version, or a folder.")],
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what fits models or reads tapes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Try to prove a run wrong; exit 1, naming leak and evidence, if it is.

    Labels and features are made again from the tables, and from the tapes where they are still there; what was fitted
    is fitted again on the block it may know; blocks are measured on the clock; and skill that no forecast has is
    doubted. docs/leaks.md shows each leak.

    Example: volspike audit volspike@champion
    """
    from infra.tables_view import emit, status
    from training.audit import audit

    with status("audit"):
        found = audit(run, quick=quick)
    if json:
        emit(found.to_dict())
    else:
        for finding in found.findings:
            typer.echo(str(finding))
        words = "clean: no check could prove it wrong" if found.clean else f"{len(found.leaks)} leaks"
        unchecked = [finding for finding in found.findings if finding.severity == "unchecked"]
        missing = f", {len(unchecked)} could not be made" if unchecked else ""
        typer.echo(f"run {found.run_id}: {words} ({len(found.checks)} checks{missing})")
    if not found.clean:
        raise typer.Exit(1)
