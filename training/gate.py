"""The gate before champion, first form: enough separate evidence, and better than doing nothing clever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MIN_EPISODES: Final = 20
MIN_BLOCKS: Final = 20
"""Blocks of 15 minutes: fewer give no interval that means anything (DESIGN §7)."""


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a model may not become champion: a code for machines, a sentence for people."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


def objections(metrics: Mapping[str, Mapping[str, float | None]]) -> list[Objection]:
    """Judge the figures that a manifest carries.

    Parameters
    ----------
    metrics
        Figures by block, of which ``test`` is the model and ``baseline`` the z-score on the same rows.

    Returns
    -------
    list of Objection
        Empty if the model may pass. Codes: NO_TEST_FIGURES, INSUFFICIENT_EVIDENCE, BELOW_PREVALENCE, BELOW_BASELINE.
    """
    test = metrics.get("test", {})
    pr_auc, prevalence = test.get("pr_auc"), test.get("prevalence")
    if pr_auc is None or prevalence is None:
        return [Objection("NO_TEST_FIGURES", "the test block has no pr_auc; train again on a tape with spikes in it")]
    found = []
    episodes, blocks = test.get("episodes") or 0, test.get("blocks") or 0
    if episodes < MIN_EPISODES or blocks < MIN_BLOCKS:
        found.append(
            Objection(
                "INSUFFICIENT_EVIDENCE",
                f"the test block has {episodes:.0f} spike episodes in {blocks:.0f} blocks of 15 minutes, must have at "
                f"least {MIN_EPISODES} in {MIN_BLOCKS}; train on a longer tape",
            )
        )
    if pr_auc <= prevalence:
        text = f"test pr_auc {pr_auc:.4f} must be above prevalence {prevalence:.4f}"
        found.append(Objection("BELOW_PREVALENCE", text))
    baseline = metrics.get("baseline", {}).get("pr_auc")
    if baseline is None or pr_auc <= baseline:
        shown = "unknown" if baseline is None else f"{baseline:.4f}"
        found.append(Objection("BELOW_BASELINE", f"test pr_auc {pr_auc:.4f} must be above the z-score's {shown}"))
    return found
