"""The audit of a run: it tries to prove the run wrong, and names leak and evidence where it can."""

from training.audit.auditor import audit
from training.audit.evidence import Evidence
from training.audit.findings import Audit, Finding

__all__ = ["Audit", "Evidence", "Finding", "audit"]
