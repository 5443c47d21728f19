"""The audit: every check on one run, each trying to prove it wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from training.audit import data, duplicates, features, fitted, future, labels, skill, split, tau
from training.audit.evidence import Evidence
from training.audit.findings import Audit, Finding

if TYPE_CHECKING:
    from training.runs import Run

Check = Callable[[Evidence], Iterable[Finding]]

QUICK: Final[dict[str, Check]] = {
    "data": data.unchanged,
    "label": labels.labels,
    "overlap": split.overlap,
    "order": split.order,
    "sealed": split.sealed,
    "duplicates": duplicates.duplicates,
    "names": features.names,
    "as_of": features.as_of,
    "determines": features.determines,
    "session": features.session,
    "tau": tau.fixed,
    "rolling_tau": tau.rolling,
    "scaler": fitted.scaler,
    "calibrator": fitted.calibrator,
    "threshold": fitted.threshold,
    "perfect": skill.perfect,
}
"""Checks that together take under two seconds on 50,000 rows, by name."""
FULL: Final[dict[str, Check]] = {
    "tape": future.tape,
    "time_shift": skill.time_shift,
    "shuffled": skill.shuffled,
}
"""Checks that fit models or read tapes, by name."""


def audit(run: str | Run | Evidence, quick: bool = False) -> Audit:
    """Try to prove a run wrong.

    Parameters
    ----------
    run
        A run or what :meth:`training.runs.Run.load` takes, whose evidence is gathered from the tables; or evidence.
    quick
        Leave out the checks that fit models or read tapes.

    Returns
    -------
    Audit
        ``clean`` if no check found a leak.

    Raises
    ------
    VolspikeError
        If the run or its tables can't be read.
    """
    if not isinstance(run, Evidence):
        from training.audit.gather import gather

        run = gather(run)
    checks = QUICK if quick else {**QUICK, **FULL}
    findings: list[Finding] = []
    seconds: dict[str, float] = {}
    for name, check in checks.items():
        began = time.perf_counter()
        findings.extend(check(run))
        seconds[name] = time.perf_counter() - began
    return Audit(tuple(findings), tuple(checks), quick, run.run_id, seconds)
