"""``volspike doctor``: whether everything is there that the other commands need."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Look at versions, folders, stores, ports and what is running; exits 1 if something stands in the way.

    Example: volspike doctor
    """
    from infra.health import checks

    found = checks()
    if as_json:
        typer.echo(json.dumps({"ok": all(c.ok for c in found), "checks": [c.as_dict() for c in found]}))
    else:
        width = max(len(c.name) for c in found)
        for check in found:
            typer.echo(f"{'ok ' if check.ok else 'NO '} {check.name.ljust(width)}  {check.found}")
    return 0 if all(check.ok for check in found) else 1
