"""How long one product's book is gone after a lost trade, and whether the others stop meanwhile.

Every few seconds the simulated exchange leaves out one trade of SOL-USD; ingestion sees the hole in the trade ids, says
so in the log, and asks for that product's book again. From the log's record of the loss to the new snapshot behind it
is one resync. Caveat: exchange, ingestion and broker are on one machine, so the network's way is not in it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ingestion.topics import RAW, Envelope
from tests.benchmarks.live_parts import Place, Process, address_of, figure, place, volspike
from tests.live_kit import read_topic

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
LOSER = "SOL-USD"
EVERY_S = 3.0
SPEED = 10.0
"""Of the generated market: some 340 messages a second."""
QUICK = {"seconds": 12.0}


def run(seconds: float = 60.0) -> list[dict[str, Any]]:
    """Measure, and return one object per figure; ``seconds`` of the stretch."""
    with place("embedded") as there:
        log = _lossy(there, seconds)
    resyncs = _resyncs(log)
    if len(resyncs) < seconds / EVERY_S / 2:
        raise RuntimeError(f"only {len(resyncs)} losses were found in {seconds:g} s, one in {EVERY_S:g} s was made")
    lengths = [(end - start) / 1e9 for start, end in resyncs]
    return [
        figure("losses found and mended", len(resyncs), "resyncs"),
        figure("resync of one product, longest", max(lengths), "s", 2.0, "<="),
        figure("resync of one product, median", float(np.median(lengths)), "s"),
        figure("longest silence of another product meanwhile", _silence(log, resyncs), "s", 2.0, "<="),
    ]


def _lossy(there: Place, seconds: float) -> list[Envelope]:
    """Ingest a feed that loses trades of one product; return the log of the connection."""
    shape = ["--port", "0", "--speed", str(SPEED), "--times", "squeeze"]
    faults = ["--faults", f"drop=every:{EVERY_S:g}s@match/{LOSER}"]
    exchange = Process(volspike("exchange", *shape, *faults), there.environment("exchange"))
    try:
        url = f"ws://{address_of(there.data / 'exchange', 'exchange')}"
        arguments = ["--feed", url, "--pair", ",".join(PRODUCTS), "--minutes", f"{seconds / 60:.4f}", "--json"]
        ingest = Process(volspike("ingest", *arguments), there.environment())
        try:
            ingest.result()
        finally:
            ingest.kill()
    finally:
        exchange.kill()
    sessions = read_topic(there.servers, RAW).sessions
    (records,) = sessions.values()
    return [records[n] for n in sorted(records)]


def _resyncs(log: list[Envelope]) -> list[tuple[int, int]]:
    """When each loss was told, and when the snapshot behind it came: ns."""
    found, told = [], 0
    for e in log:
        if e.product_id != LOSER:
            continue
        if e.kind == "state" and json.loads(e.raw)["type"] == "gap":
            told = told or e.recv_ns
        elif told and e.kind == "feed" and e.raw.startswith(b'{"type":"snapshot"'):
            found.append((told, e.recv_ns))
            told = 0
    return found


def _silence(log: list[Envelope], resyncs: list[tuple[int, int]]) -> float:
    """Longest time between two messages of a product that lost nothing, around the resyncs: s."""
    longest: int = 0
    for product in PRODUCTS:
        if product != LOSER:
            times = np.array([e.recv_ns for e in log if e.product_id == product and e.kind == "feed"])
            for start, end in resyncs:
                first, last = np.searchsorted(times, start, "right") - 1, np.searchsorted(times, end, "left")
                longest = max(longest, int(np.diff(times[max(first, 0) : last + 1]).max(initial=0)))
    return longest / 1e9

