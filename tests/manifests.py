"""The manifest of a small model, to be changed where a test looks."""

from __future__ import annotations

from typing import Any

from feature_repo import contract
from training import artefact as art

CORE = list(contract.SERVICES["spike_core_v1"])


def manifest(**fields: Any) -> art.Manifest:
    """A logistic regression on the core features; ``fields`` stand beside or instead of its own."""
    own: dict[str, Any] = {
        "name": "volspike",
        "kind": "lr",
        "service": art.Service("spike_core_v1", contract.service_hash("spike_core_v1")),
        "features": CORE,
        "feature_hash": contract.feature_hash(CORE),
        "label": art.Label(art.Rule("percentile", 95.0), {"BTC-USD": 2e-5}),
        "threshold": 0.3,
        "calibration": art.Calibration(),
        "imputation": art.Imputation("median"),
        "training": art.Training({}, ["BTC-USD"], [], 900.0, 960),
        "data": {},
        "metrics": {},
        "seeds": {},
        "versions": {},
    }
    return art.Manifest(**{**own, **fields})
