"""One trial of the audit: a market, a clean run on it, or every leak planted in it, one by one."""

from __future__ import annotations

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


def planted(seed: int) -> tuple[int, list[str], int] | None:
    """Plant every leak; the seed, those that were missed, and how many were planted."""
    market = _market(seed)
    try:
        build(market, kind="zscore")
    except ValueError:
        return None
    missed = []
    for name, (plant, codes) in LEAKS.items():
        try:
            found = {f.code for f in audit(plant(market, seed), quick=True).leaks}
        except ValueError as error:
            missed.append(f"{name}, seed {seed}: could not be planted: {error}")
            continue
        if not found & codes:
            missed.append(f"{name}, seed {seed}: found {sorted(found) or 'nothing'}")
    return seed, missed, len(LEAKS)
