"""How well the audit tells wrong runs from clean ones: leaks planted one by one, and clean runs of the same markets.

Caveat: runs are small (an hour and a half of usable rows of one or two products, about 120 features, trees and logistic
regression) and the market is generated; what makes a clean run look wrong by chance (few spikes, few regimes) is worse
here than on a day.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

FIRST_SEED = 1000
PLANTED_IN = 3
"""Clean runs that each leak is planted in."""
QUICK = {"clean": 4, "planted_in": 1}


def run(clean: int = 100, planted_in: int = PLANTED_IN) -> list[dict[str, Any]]:
    """Count what is found among the planted leaks, and false alarms on clean runs."""
    found = leaks(clean=clean, planted_in=planted_in)
    for what in ("missed", "impossible", "accused"):
        for line in found[what]:
            print(f"{what}: {line}", file=sys.stderr)
    return [
        {
            "metric": f"{found['planted']} leaks planted one by one in {planted_in} runs: found",
            "value": found["found"] / found["planted"],
            "unit": "share",
            "target": 1.0,
            "op": ">=",
        },
        {"metric": f"{clean} clean runs: alarms", "value": found["alarms"], "unit": "runs", "target": 1, "op": "<="},
        {"metric": "quick audit of 50,000 rows", "value": quick_seconds(), "unit": "s", "target": 2.0, "op": "<="},
    ]


def leaks(clean: int = 100, planted_in: int = PLANTED_IN) -> dict[str, Any]:
    """Audit clean runs and runs with one leak each.

    Parameters
    ----------
    clean
        Clean runs, each of a market of its own.
    planted_in
        Markets that every leak is planted in; planted leaks must be found by the quick audit.

    Returns
    -------
    dict
        planted, found, alarms (clean runs accused), clean, tried (markets looked at: some have no spike where one is
        needed and nothing can be trained), missed, impossible (to plant there) and accused: what and why.
    """
    from tests.leaks import trials

    runs = list(_parallel(trials.clean, clean))
    planted = list(_parallel(trials.planted, planted_in))
    missed = [line for market in planted for line in market.missed]
    accused = [line for _, line in runs if line]
    total = sum(market.count for market in planted)
    return {
        "planted": total,
        "found": total - len(missed),
        "missed": missed,
        "impossible": [line for market in planted for line in market.impossible],
        "clean": len(runs),
        "alarms": len(accused),
        "accused": accused,
        "tried": max(seed for seed, _ in runs) - FIRST_SEED + 1,
    }


def _parallel(task: Any, wanted: int) -> Iterator[Any]:
    """Results of the first seeds on which something could be trained, in order."""
    # a forked child would inherit the locks of polars' threads
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        given, seed = 0, FIRST_SEED
        while given < wanted:
            batch = range(seed, seed + 2 * (os.cpu_count() or 1))
            seed = batch.stop
            for result in pool.map(task, batch):
                if result is not None and given < wanted:
                    given += 1
                    yield result


def quick_seconds() -> float:
    """Best time of three of the quick audit on 50,000 rows."""
    from tests.leaks.market import source
    from tests.leaks.pipeline import build
    from training.audit import audit

    evidence = build(source(FIRST_SEED + 1, sessions=(20_000, 12_000, 20_000), products=("BTC-USD",)), kind="lr")
    times = []
    for _ in range(3):
        began = time.perf_counter()
        audit(evidence, quick=True)
        times.append(time.perf_counter() - began)
    return min(times)
