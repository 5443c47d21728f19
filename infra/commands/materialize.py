"""``volspike materialize``: the newest row of each product, from the offline table into Redis."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the products' rows in Redis first, then write them anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Load the newest row of each product from the offline table into Redis, where the service reads it.

    A row in Redis that is as new or newer stays. Repeating it changes nothing. Where no Redis is set and none runs, an
    embedded one takes the rows and keeps them on disk for the next command.

    Example: volspike materialize --rebuild
    """
    from infra.embedded import ensure_redis
    from ingestion.online import materialize

    with ensure_redis() as connection:
        times = materialize(rebuild=rebuild)
    # The options of a connection may hold a password.
    address = ",".join(part for part in connection.split(",") if "=" not in part)
    if as_json:
        rows = [{"product_id": product, "row_time": time.isoformat()} for product, time in times.items()]
        typer.echo(json.dumps({"redis": address, "rebuilt": rebuild, "products": rows}))
        return
    for product, time in times.items():
        typer.echo(f"{product:<12} {time.isoformat(timespec='microseconds')}")
    typer.echo(f"{len(times)} products in Redis at {address}")
