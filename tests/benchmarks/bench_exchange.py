"""How fast and how evenly the simulated exchange sends, each measured by one plain ``websockets`` client on loopback.

Caveats: the client takes messages without decoding them; it shares the machine with the exchange, whose own processor
time per message is given beside the rate, since other load can only lower the rate. The feed is held in memory
(``--preload``): making it costs another 10 to 15 µs a message. Delay is what the ledger says: when a ticker of a tape
of exactly 1,000 a second was handed to the socket, against when it was due; the least delay counts as none.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from infra import services
from ingestion.exchange import read_ledger

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = ["BTC-USD", "ETH-USD", "SOL-USD"]
QUICK = {"seconds": 300, "tickers": 1_000}


def run(seconds: int = 5_400, tickers: int = 10_000) -> list[dict[str, Any]]:
    """Measure, and return one object per figure: metric, value, unit, target, op."""
    found = []
    for dialect, target in (("exchange", 25_000.0), ("advanced", None)):
        rate, cpu_us = throughput(dialect, seconds)
        found.append(figure(f"messages to one client, {dialect}", rate, "1/s", target, ">="))
        found.append(figure(f"processor time a message, {dialect}", cpu_us, "us"))
    delays_ms = paced(tickers)
    for q, target in ((50, None), (99, 2.0)):
        found.append(figure(f"delay at 1,000 messages/s p{q}", float(np.percentile(delays_ms, q)), "ms", target, "<="))
    return found


def figure(metric: str, value: float, unit: str, target: float | None = None, op: str | None = None) -> dict[str, Any]:
    """Return one result."""
    return {"metric": metric, "value": value, "unit": unit, "target": target, "op": op if target else None}


def throughput(dialect: str, seconds: int) -> tuple[float, float]:
    """Messages a second, and µs of the exchange's processor time a message."""
    with exchange("--speed", "max", "--preload", "--seconds", str(seconds)) as (process, address):
        before = cpu_s(process.pid)
        count, took_s = uvloop.run(take(f"ws://{address}/{dialect}", dialect))
        out, _ = process.communicate(timeout=60)
        used_s = float(json.loads(out)["cpu_s"]) - before
    return count / took_s, used_s / count * 1e6


def paced(tickers: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Delays in ms of tickers that are due a millisecond apart."""
    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
        tape, ledger = Path(folder) / "tape.ndjson", Path(folder) / "sent.ndjson"
        with tape.open("w") as file:
            for i in range(tickers):
                when = f"2025-12-01T00:{i // 60_000:02d}:{i % 60_000 / 1e3:06.3f}000Z"
                said = {"type": "ticker", "product_id": "BTC-USD", "price": "1", "trade_id": i + 1, "time": when}
                file.write(json.dumps(said, separators=(",", ":")) + "\n")
        with exchange("--feed", str(tape), "--ledger", str(ledger)) as (process, address):
            uvloop.run(take(f"ws://{address}", "exchange", ["BTC-USD"]))
            process.communicate(timeout=60)
        sent = [(int(e.key), e.time_ns) for e in read_ledger(ledger) if e.kind == "ticker"]
    number, at_ns = np.array(sent, np.int64).T
    delays = (at_ns - number * 1_000_000) / 1e6
    return np.asarray(delays - delays.min(), np.float64)


async def take(url: str, dialect: str, products: list[str] | None = None) -> tuple[int, float]:
    """Receive until the exchange closes; return messages and seconds between first and last."""
    products = products or PRODUCTS
    async with connect(url, max_size=None, compression=None, max_queue=4_096, ping_interval=None) as socket:
        if dialect == "exchange":
            channels = ["ticker", "matches", "level2_batch", "heartbeat"]
            await socket.send(json.dumps({"type": "subscribe", "product_ids": products, "channels": channels}))
        else:
            for channel in ("ticker", "market_trades", "level2", "heartbeats"):
                await socket.send(json.dumps({"type": "subscribe", "product_ids": products, "channel": channel}))
        count, first_s, last_s = 0, 0.0, 0.0
        try:
            while True:
                await socket.recv(decode=False)
                count += 1
                if count == 1:
                    first_s = time.monotonic()
        except ConnectionClosed:
            last_s = time.monotonic()
    return count, last_s - first_s


@contextmanager
def exchange(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command in a process of its own; yield it and where it listens."""
    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "exchange", "--port", "0", "--json", *arguments],
            cwd=ROOT,
            env={**os.environ, "VOLSPIKE_DATA": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process, asyncio.run(listening(Path(folder) / "run"))
        finally:
            process.kill()
            process.communicate()


async def listening(folder: Path) -> str:
    """Wait for the exchange's entry and return its address."""
    end = time.monotonic() + 120
    while not (there := services.running(folder, "exchange")):
        if time.monotonic() > end:
            raise TimeoutError("the exchange didn't begin to listen within 120 s")
        await asyncio.sleep(0.05)
    return there[0].address


def cpu_s(pid: int) -> float:
    """Processor time that a process used so far, s."""
    used = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")
