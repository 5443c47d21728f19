"""How much ingestion takes from the simulated exchange into the embedded broker, and how soon it hands it on.

Caveats: exchange, ingestion and broker share the machine's cores, so the rate is what the slowest of them leaves; the
processor time of ingestion alone stands beside it. The exchange's feed is held in memory and its times are squeezed,
so that the kernel's detector does all of its work. Delay is from the stamp of receipt to the call of the producer.
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

from infra import services
from infra.broker import EmbeddedKafka

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = "BTC-USD,ETH-USD,SOL-USD"
PER_S = 31.0
"""Messages that the generated market of three products makes in a second of its time."""
QUICK = {"seconds": 3.0}


def run(seconds: float = 12.0) -> list[dict[str, Any]]:
    """Measure, and return one object per figure: metric, value, unit, target, op."""
    found = []
    report, cpu_us = ingest(22_000, seconds)
    found.append(figure("messages ingested", report["messages_per_s"], "1/s", 20_000.0, ">="))
    found.append(figure("deepest queue", report["queue_deepest"], "messages", 20_000.0, "<="))
    found.append(figure("processor time a message", cpu_us, "us"))
    found.append(figure("messages dropped", report["dropped"], "messages"))
    report, cpu_us = ingest(1_000, seconds)
    found.append(figure("delay to the producer at 1,000/s p50", report["delay_p50_ms"], "ms", 4.0, "<="))
    found.append(figure("delay to the producer at 1,000/s p99", report["delay_p99_ms"], "ms"))
    found.append(figure("processor time a message at 1,000/s", cpu_us, "us"))
    return found


def figure(metric: str, value: float, unit: str, target: float | None = None, op: str | None = None) -> dict[str, Any]:
    """Return one result."""
    return {"metric": metric, "value": value, "unit": unit, "target": target, "op": op if target else None}


def ingest(rate: float, seconds: float) -> tuple[dict[str, Any], float]:
    """Serve a market at a rate and ingest it; return the report, and µs of processor time a message."""
    speed = rate / PER_S
    length = max(1, round(speed * seconds))
    with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
        data = Path(folder)
        shape = ["--speed", str(speed), "--times", "squeeze", "--preload", "--seconds", str(length)]
        with EmbeddedKafka(data=data), exchange(data, *shape) as address:
            done = subprocess.run(
                command(
                    "ingest",
                    "--feed",
                    f"ws://{address}",
                    "--pair",
                    PRODUCTS,
                    "--json",
                    "--minutes",
                    f"{(seconds + 2) / 60}",
                ),
                cwd=ROOT,
                env=environment(data),
                stdout=subprocess.PIPE,
                check=True,
            )
    report = json.loads(done.stdout)
    return report, report["cpu_s"] / max(1, report["messages"]) * 1e6


def command(*arguments: str) -> list[str]:
    """Return the command line of volspike."""
    return [sys.executable, "-m", "infra.cli", *arguments]


def environment(data: Path) -> dict[str, str]:
    """Return the environment of a command with a data folder of its own."""
    return {**os.environ, "VOLSPIKE_DATA": str(data), "VOLSPIKE_LOG_LEVEL": "error"}


@contextmanager
def exchange(data: Path, *arguments: str) -> Iterator[str]:
    """Run the simulated exchange; yield where it listens."""
    process = subprocess.Popen(
        command("exchange", "--port", "0", "--json", *arguments),
        cwd=ROOT,
        env=environment(data),
        stdout=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + 300
        while not (there := services.running(data / "run", "exchange")):
            if time.monotonic() > end:
                raise TimeoutError("the exchange didn't begin to listen within 300 s")
            asyncio.run(asyncio.sleep(0.05))
        yield there[0].address
    finally:
        process.kill()
        process.communicate()
