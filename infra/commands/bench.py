"""``volspike bench``: measured targets, each by a script of its own in ``tests/benchmarks``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Which benchmark, or all; none lists them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small inputs; targets don't count.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each benchmark.")] = False,
) -> int:
    """Measure, and compare with the target; exits 1 where a target doesn't hold.

    Each benchmark runs in a process of its own with one thread (ARROW, POLARS, OMP, NUMBA = 1), unless it says
    otherwise. Close other programs first: other work only ever slows one down.

    Example:
        volspike bench replay
        volspike bench all --json
    """
    from feature_repo.errors import UsageError
    from infra import benches

    names = benches.names()
    if name is None:
        typer.echo(json.dumps(names) if as_json else "\n".join(names))
        return 0
    if name != "all" and name not in names:
        raise UsageError(f"bench: expected one of {', '.join(names)} or all, was {name!r}")
    held = True
    single = [one for one in names if not any(other.startswith(f"{one}-") for other in names)]  # models is its parts
    for one in single if name == "all" else [name]:
        report = benches.measure(one, quick=quick)
        typer.echo(json.dumps(report) if as_json else benches.table(report))
        held &= quick or all(result["holds"] is not False for result in report["results"])
    return 0 if held else 1
