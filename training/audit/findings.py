"""What an audit says: findings with a code for machines and evidence for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["leak", "warning", "unchecked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an audit has to say about a run.

    Attributes
    ----------
    code
        Name of the leak.
    severity
        ``leak``: the run is wrong. ``warning``: worth a look, and not wrong by itself. ``unchecked``: what the check
        needs is not there any more, such as the tape.
    evidence
        What was expected, what was found, where.
    """

    code: str
    severity: Severity
    evidence: str

    def __str__(self) -> str:
        return f"{self.code} ({self.severity}): {self.evidence}"


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that was found, and which checks were made.

    Attributes
    ----------
    findings
        In the order of the checks.
    checks
        Names of the checks that ran.
    quick
        Whether the long checks were left out.
    run_id
        The run, empty for evidence that belongs to none.
    """

    findings: tuple[Finding, ...]
    checks: tuple[str, ...] = ()
    quick: bool = False
    run_id: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether no leak was found."""
        return not self.leaks

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings that prove the run wrong."""
        return tuple(f for f in self.findings if f.severity == "leak")

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain data."""
        return {
            "run_id": self.run_id,
            "clean": self.clean,
            "quick": self.quick,
            "findings": [{"code": f.code, "severity": f.severity, "evidence": f.evidence} for f in self.findings],
            "checks": list(self.checks),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
