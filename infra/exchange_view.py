"""What ``volspike exchange`` does around the exchange: its arguments, its entry in services.json, what it prints."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import uvloop

from feature_repo.errors import UsageError
from infra import services
from infra.services import Service
from infra.settings import settings
from ingestion.exchange import Exchange, Faults, Feed, Summary, Synthetic, Taped, preloaded
from ingestion.exchange.pace import Times
from ingestion.market import PRODUCTS
from ingestion.tuning import tuned


def run(
    feeds: Sequence[str],
    *,
    speed: str,
    port: int | None,
    products: str | None,
    seed: int,
    seconds: int | None,
    times: str,
    ago: float,
    faults: str,
    ledger: Path | None,
    loop: bool,
    preload: bool,
    batch_ms: float,
    as_json: bool,
) -> None:
    """Serve until the feed ends or a signal comes; arguments as the command has them.

    Raises
    ------
    UsageError
        If an argument isn't understood.
    InputError
        If a tape can't be read.
    StoreError
        If the port is busy or the ledger can't be written.
    """
    if times not in ("shift", "squeeze"):
        raise UsageError(f"times must be shift or squeeze, was {times!r}: choose one of them")
    feed = _feed(feeds, products, seed, seconds, batch_ms)
    if preload and list(feeds) == ["synthetic"] and seconds is None:
        raise UsageError("preload needs a feed that ends: give --seconds")
    exchange = Exchange(
        preloaded(feed) if preload else feed,
        port=settings().exchange_port if port is None else port,
        speed=_speed(speed),
        times=cast(Times, times),
        ago_s=ago,
        faults=Faults.parse(faults, seed),
        ledger=ledger,
        loop=loop,
    )
    with tuned(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(exchange, as_json))


def _feed(feeds: Sequence[str], products: str | None, seed: int, seconds: int | None, batch_ms: float) -> Feed:
    wanted = None if products is None else [p.strip() for p in products.split(",") if p.strip()]
    if list(feeds) == ["synthetic"]:
        return Synthetic(seed, PRODUCTS if wanted is None else wanted, seconds)
    if "synthetic" in feeds or seconds is not None:
        raise UsageError("feed must be synthetic alone, or tapes; --seconds is of the generated market only")
    return Taped([Path(feed) for feed in feeds], wanted, batch_ms)


def _speed(text: str) -> float:
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise UsageError(f"speed must be a number > 0 or max, was {text!r}: 1 is the recording's own")
    return speed


async def _serve(exchange: Exchange, as_json: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with exchange:
        entry = Service("exchange", os.getpid(), exchange.host, exchange.port, datetime.now(UTC).isoformat())
        services.announce(settings().run, entry)
        try:
            print(
                f"exchange: {exchange.url} (Advanced Trade: {exchange.url_advanced}), {exchange.serves}",
                file=sys.stderr,
                flush=True,
            )
            await _watch(exchange, stop)
            summary = exchange.summary
        finally:
            services.withdraw(settings().run, os.getpid())
    _print(summary, as_json)


async def _watch(exchange: Exchange, stop: asyncio.Event) -> None:
    """Wait for the end; on a terminal, tell messages a second."""
    terminal, before = sys.stderr.isatty(), 0
    ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(exchange.ended.wait())]
    while not any(end.done() for end in ends):
        await asyncio.wait(ends, timeout=1.0 if terminal else None, return_when=asyncio.FIRST_COMPLETED)
        if terminal:
            sent, clients = exchange.summary.sent, exchange.clients
            print(f"\r{sent - before:>9,} messages/s to {clients} clients, {sent:,} in all", end="", file=sys.stderr)
            before = sent
    for end in ends:
        end.cancel()
    if terminal:
        print(file=sys.stderr)


def _print(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**summary.as_dict(), "cpu_s": time.process_time()}))
        return
    print(f"{summary.sent:,} messages sent to {summary.connections} connections in {summary.seconds:,.1f} s")
    for title, counts in (("feed", summary.messages), ("faults", summary.faults), ("closed", summary.closed)):
        if counts:
            print(f"{title + ':':8}" + ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())))
