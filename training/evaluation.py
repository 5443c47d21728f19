"""Figures of a model on one block: always with the prevalence beside them, null where they mean nothing."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_S: Final = 900
"""Length of the blocks of time that count as separate evidence, seconds."""


def figures(
    p: NDArray[np.float64], y: NDArray[np.bool_], threshold: float, *, t_ns: NDArray[np.int64], episodes: int
) -> dict[str, float | None]:
    """Measure probabilities against the truth.

    Parameters
    ----------
    p
        float64[n], probabilities.
    y
        bool[n], spikes.
    threshold
        Decision ``p >= threshold``.
    t_ns
        int64[n], times of the rows, ns UTC.
    episodes
        Separate spike episodes among the rows.

    Returns
    -------
    dict
        pr_auc (average precision), prevalence, lift (their ratio), roc_auc, f1, precision, recall, brier,
        brier_skill (against the prevalence), log_loss, rows, spikes, episodes, blocks (of 15 minutes that hold a row).
        None where a figure is undefined: no spike, nothing but spikes, no alarm.
    """
    n, spikes = len(y), int(y.sum())
    alarm = p >= threshold
    hits, alarms = int((alarm & y).sum()), int(alarm.sum())
    prevalence = spikes / n if n else None
    both = 0 < spikes < n
    out: dict[str, float | None] = {
        "pr_auc": None,
        "prevalence": prevalence,
        "lift": None,
        "roc_auc": None,
        "f1": 2 * hits / (alarms + spikes) if alarms + spikes else None,
        "precision": hits / alarms if alarms else None,
        "recall": hits / spikes if spikes else None,
        "brier": float(np.mean((p - y) ** 2)) if n else None,
        "brier_skill": None,
        "log_loss": None,
        "rows": float(n),
        "spikes": float(spikes),
        "episodes": float(episodes),
        "blocks": float(len(np.unique(t_ns // (BLOCK_S * 1_000_000_000)))),
        "threshold": threshold,
    }
    if both and prevalence is not None and out["brier"] is not None:
        from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

        pr_auc = float(average_precision_score(y, p))
        out["pr_auc"] = pr_auc
        out["lift"] = pr_auc / prevalence
        out["roc_auc"] = float(roc_auc_score(y, p))
        out["brier_skill"] = 1 - out["brier"] / (prevalence * (1 - prevalence))
        out["log_loss"] = float(log_loss(y, np.clip(p, 1e-15, 1 - 1e-15)))
    return out
