"""From a run in MLflow to the evidence that an audit looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.audit.evidence import Evidence

if TYPE_CHECKING:
    from training.runs import Run


def gather(run: str | Run) -> Evidence:
    """Rebuild what a run learned from, out of the tables as they are now.

    Parameters
    ----------
    run
        The run, or what :func:`training.runs.load` takes.
    """
    from training import runs

    loaded = runs.load(run) if isinstance(run, str) else run
    data = runs.rebuild(loaded)
    return Evidence(data.frame, data.x, data.features, loaded.artefact, run_id=loaded.run_id)
