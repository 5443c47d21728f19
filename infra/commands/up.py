"""``volspike up``: the live system on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    feed: Annotated[str, typer.Option(help="live (Coinbase), tape, or synthetic.")] = "synthetic",
    tape: Annotated[list[Path] | None, typer.Option(help="Tape or folder for --feed tape; may be repeated.")] = None,
    pair: Annotated[str | None, typer.Option(help="Products, comma-separated; default what the feed has.")] = None,
    speed: Annotated[float, typer.Option(help="Speed of tape and synthetic feeds.", min=0.01)] = 1.0,
    seconds: Annotated[float | None, typer.Option(help="Stop after so long; default at Ctrl-C.", min=1)] = None,
    save_raw: Annotated[bool, typer.Option("--save-raw", help="Also record tapes under <data>/raw.")] = False,
    service: Annotated[bool, typer.Option("--service/--no-service", help="Serve the champion too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run the live system in one console: services, feed, ingest, featurize, service, and a table of what they see.

    Real Kafka and Redis are used where they are set, embedded ones else. Ctrl-C stops all, in order.

    Example:
        volspike up --feed synthetic
        volspike up --feed live --pair BTC-USD,ETH-USD
        volspike up --feed tape --tape recording.ndjson.gz --speed 10
    """
    from typing import cast

    from feature_repo.errors import UsageError
    from infra.up import Order, up

    if feed not in ("live", "tape", "synthetic"):
        raise UsageError(f"feed must be live, tape or synthetic, was {feed!r}: choose one of them")
    if (feed == "tape") != bool(tape):
        raise UsageError("--tape goes with --feed tape, and that needs it: name a tape, or choose another feed")
    products = None if pair is None else tuple(p.strip() for p in pair.split(",") if p.strip())
    up(
        Order(
            feed=cast(Literal["live", "tape", "synthetic"], feed),
            tapes=tuple(tape or ()),
            products=products,
            speed=speed,
            seconds=seconds,
            save_raw=save_raw,
            service=service,
        ),
        as_json=json,
    )
