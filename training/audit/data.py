"""The data of a run: what the tables give today must be what the run says it learned from."""

from __future__ import annotations

from collections.abc import Iterator

from training.audit.evidence import Evidence
from training.audit.findings import Finding


def unchanged(e: Evidence) -> Iterator[Finding]:
    """Count rows and spikes of each block again."""
    if e.artefact is None:
        return
    for name in ("train", "validation"):
        said = e.artefact.manifest.training.blocks.get(name, {})
        found = {"rows": int(e.mask(name).sum()), "spikes": int(e.spike[e.mask(name)].sum())}
        wrong = [key for key, value in found.items() if key in said and said[key] != value]
        if wrong:
            yield Finding(
                "DATA_CHANGED",
                "leak",
                f"{name} has {', '.join(f'{found[key]:,} {key}' for key in wrong)} in the tables, the run says "
                f"{', '.join(f'{said[key]:,}' for key in wrong)}: parts were deleted, rewritten or replayed since, or "
                "the run was trained on something else; the findings that follow may come from that",
            )
