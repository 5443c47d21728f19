"""``volspike exchange``: a simulated exchange on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    feed: Annotated[
        list[str] | None,
        typer.Option(help="synthetic (default), or a tape or folder of tapes; may be given several times."),
    ] = None,
    speed: Annotated[str, typer.Option(help="Recorded seconds a second, or max: as fast as clients take it.")] = "1",
    port: Annotated[
        int | None, typer.Option(help="Port; default VOLSPIKE_EXCHANGE_PORT, 0 takes a free one.", min=0, max=65535)
    ] = None,
    products: Annotated[str | None, typer.Option(help="Products to serve, comma-separated; default all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated market and of the faults.")] = 1,
    seconds: Annotated[int | None, typer.Option(min=1, help="Length of the generated market; default endless.")] = None,
    times: Annotated[
        str,
        typer.Option(help="shift: times move by one constant; squeeze: at a speed, they keep step with the clock."),
    ] = "shift",
    ago: Annotated[
        float, typer.Option(min=0, help="Let times begin so many seconds before now: at a speed, they end at now.")
    ] = 0.0,
    faults: Annotated[str, typer.Option(help="Such as drop=0.001,late=0.01:3s,disconnect=every:30s.")] = "",
    ledger: Annotated[Path | None, typer.Option(help="File that notes every message sent and fault injected.")] = None,
    loop: Annotated[bool, typer.Option("--loop/--once", help="Begin anew when the feed ends, or end with it.")] = False,
    batch_ms: Annotated[float, typer.Option(min=0, help="Least distance of a tape's l2updates; 0: as recorded.")] = 50,
    preload: Annotated[
        bool, typer.Option("--preload", help="Hold the feed in memory first, for measurements.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Serve a market by WebSocket as Coinbase does, in both its dialects, with faults on demand.

    The feed begins with the first subscription. Times are moved so that it begins now, or --ago. Ctrl-C ends it.

    Faults: drop double swap late future truncate garbage (messages), disconnect cut stall half_open (connections),
    no_snapshot refuse reject (requests); each with a chance, or every:SECONDSs, then a length :2s, kinds @match+ticker
    and products /BTC-USD where wanted.

    Example: volspike exchange --feed synthetic --speed 10 --faults drop=0.001,disconnect=every:30s --ledger sent.ndjson
    """
    from infra.exchange_view import run

    run(
        feed or ["synthetic"],
        speed=speed,
        port=port,
        products=products,
        seed=seed,
        seconds=seconds,
        times=times,
        ago=ago,
        faults=faults,
        ledger=ledger,
        loop=loop,
        preload=preload,
        batch_ms=batch_ms,
        as_json=as_json,
    )
