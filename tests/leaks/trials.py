"""One trial of the audit: a market, a clean run on it, or every leak planted in it, one by one."""

from __future__ import annotations

from typing import NamedTuple

from tests.leaks.market import Source, source
from tests.leaks.pipeline import build
from tests.leaks.plants import LEAKS
from training.audit import audit

KINDS = ("xgb", "lr", "xgb", "zscore")


def _market(seed: int) -> Source:
    products = (("BTC-USD",), ("SOL-USD",), ("ETH-USD",), ("BTC-USD", "SOL-USD"))[seed % 7 % 4]
    return source(seed, products=products)


def clean(seed: int) -> tuple[int, str] | None:
    """Audit a clean run; the seed and what it was accused of, or None where nothing could be trained."""
    try:
        evidence = build(_market(seed), kind=KINDS[seed % len(KINDS)])
    except ValueError:
        return None
    found = audit(evidence)
    return seed, "; ".join(f"seed {seed}: {f}" for f in found.leaks)


class Planted(NamedTuple):
    """Leaks planted in one market: how many, those that were missed, those for which it has too few spikes."""

    seed: int
    count: int
    missed: list[str]
    impossible: list[str]


def planted(seed: int) -> Planted | None:
    """Plant every leak, one by one; None where nothing could be trained."""
    market = _market(seed)
    try:
        build(market, kind="zscore")
    except ValueError:
        return None
    missed, impossible = [], []
    for name, (plant, codes) in LEAKS.items():
        try:
            evidence = plant(market, seed)
        except ValueError as error:
            impossible.append(f"{name}, seed {seed}: {error}")
            continue
        found = {f.code for f in audit(evidence, quick=True).leaks}
        if not found & codes:
            missed.append(f"{name}, seed {seed}: found {sorted(found) or 'nothing'}")
    return Planted(seed, len(LEAKS) - len(impossible), missed, impossible)
