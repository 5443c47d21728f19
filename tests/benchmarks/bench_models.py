"""Everything that is claimed of the models, part by part: ``volspike bench models``.

Each part is a script of its own beside this one, with its caveats, and can be run alone, such as ``volspike bench
models-market``. They run one after the other, each in a fresh process; the first run takes twenty minutes on two cores.
"""

from __future__ import annotations

from typing import Any

PARTS = ("market", "leaks", "gate", "recorded", "tune", "infer")
QUICK = {"quick": True}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Run every part, and return its figures with the part's name before the metric's."""
    from infra.benches import measure

    results = []
    for part in PARTS:
        for one in measure(f"models-{part}", quick=quick)["results"]:
            results.append({**one, "metric": f"{part}: {one['metric']}"})
    return results
