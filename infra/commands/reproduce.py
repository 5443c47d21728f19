"""``volspike reproduce``: make a run again from its record and say where the two differ."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Run id, NAME@alias, NAME/version or a model's folder.")],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make a new environment from the lock, even where it is the present one's.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a run again in a fresh process and folder, from its data manifest, commit, lock and options, and compare.

    A new environment is made with uv where the run's lock is not the present one. Exit code 1 if anything differs by
    more than 1e-9.

    Example: volspike reproduce volspike@champion
    """
    from infra.tables_view import emit, status, table
    from training.reproduce import TOLERANCE, reproduce

    with status("reproducing") as progress:
        found = reproduce(run, fresh=fresh, progress=progress)
    if json:
        emit(found.to_dict())
    else:
        rows = [(what, f"{d:.3g}", "yes" if d <= TOLERANCE else "no") for what, d in found.differences.items()]
        table(f"{found.kind} {found.run_id} made again", ("compared", "greatest difference", "same"), rows)
        same = "identical" if found.identical else "not identical byte for byte"
        typer.echo(
            f"{found.rows:,} forecasts compared; the model files are {same}; made in {found.environment['python']}"
        )
        for note in found.notes:
            typer.echo(note)
    if not found.same:
        raise typer.Exit(1)
