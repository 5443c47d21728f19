"""``volspike clean``: start afresh."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    tapes: Annotated[bool, typer.Option("--tapes", help="The recorded tapes (raw) too.")] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="mlflow.db and mlartifacts at the root too.")
    ] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Only merge small parts of the tables.")] = False,
    old: Annotated[
        bool, typer.Option("--old", help="Only delete tapes older than VOLSPIKE_KEEP_DAYS and leavings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Remove tables, models, reports and state from the data folder; tapes stay unless --tapes says otherwise.

    With --compact or --old it removes none of these, asks nothing and may run beside everything else.

    Example: volspike clean --yes
    """
    from feature_repo.errors import UsageError
    from infra.cleaning import found, remove

    if compact or old:
        if tapes or mlflow:
            raise UsageError(
                "clean: --compact and --old keep everything in use; --tapes and --mlflow don't go with them"
            )
        return _upkeep(compact, old, as_json)
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
        json.dumps({"removed": [str(p) for p in targets]})
        if as_json
        else f"removed {len(targets)} files and folders"
    )
    return 0


def _upkeep(compact: bool, old: bool, as_json: bool) -> int:
    from infra import upkeep
    from infra.settings import settings

    done: dict[str, object] = {}
    if compact:
        done["parts"] = merged = upkeep.compact_tables()
        if not as_json:
            for name, (before, after) in merged.items():
                typer.echo(f"{name}: {before} parts, now {after}")
    if old:
        deleted = upkeep.delete_old(settings().keep_days)
        done["deleted"] = deleted.as_dict()
        if not as_json:
            files = ", ".join(f"{count} files of {name}" for name, count in deleted.table_files.items())
            typer.echo(f"deleted {len(deleted.tapes)} tapes, {len(deleted.reports)} reports, {files}")
    if as_json:
        typer.echo(json.dumps(done))
    return 0
