"""``volspike clean``: start afresh."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    tapes: Annotated[bool, typer.Option("--tapes", help="The recorded tapes (raw) too.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="mlflow.db and mlartifacts at the root too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was removed as JSON.")] = False,
) -> int:
    """Remove tables, models, reports and state from the data folder; tapes stay unless --tapes says otherwise.

    Example: volspike clean --yes
    """
    from feature_repo.errors import UsageError
    from infra.cleaning import found, remove

    targets = found(tapes=tapes, mlflow=mlflow)
    if not targets:
        typer.echo(json.dumps({"removed": []}) if as_json else "nothing to remove")
        return 0
    if not yes:
        import sys

        if not sys.stdin.isatty():
            raise UsageError("clean: nobody is there to be asked; give --yes to remove without asking")
        for path in targets:
            typer.echo(f"  {path}", err=True)
        if not typer.confirm("Remove these?", err=True):
            return 1
    for path in targets:
        remove(path)
    typer.echo(
        json.dumps({"removed": [str(p) for p in targets]}) if as_json else f"removed {len(targets)} files and folders"
    )
    return 0
