"""The whole way on recorded tapes, as a user goes it: replay, train, evaluate, promote, reproduce.

Recorded tapes are short. What they can't show is said by the commands themselves, so what is measured is that they say
it: a tape of minutes is refused by training, and where a model comes of it, the gate finds the evidence too thin. The
PR-AUC of a few quarters of an hour, beside its prevalence, is given as it is; no target could be set for it. With the
default threshold no tape makes a model, so the longest is tried at lower percentiles too, and all that comes of it is
printed. A model that comes of it is made again in a process of its own, and compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RECORDED = ROOT.parent / "shared" / "data"
LONGEST = "tickers_BTC-USD_20251130_342min"
TRIALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (LONGEST, ()),
    (LONGEST, ("--threshold-percentile", "80")),
    (LONGEST, ("--threshold-percentile", "60")),
    ("exchange_BTC-USD_20180424_l2_60min", ()),
    ("tickers_BTC-ETH_20260403_15min", ()),
    ("exchange_BTC-USD_20251112_tickers_7min", ()),
)
"""Tape, and what training is told."""
QUICK = {"trials": TRIALS[-1:]}


def run(trials: tuple[tuple[str, tuple[str, ...]], ...] = TRIALS) -> list[dict[str, Any]]:
    """Take each tape through; figures of those that a model came of, refusals of the others."""
    results: list[dict[str, Any]] = []
    held = [(name, more) for name, more in trials if (RECORDED / f"{name}.ndjson.gz").exists()]
    refused = 0
    for name, more in held:
        with tempfile.TemporaryDirectory(prefix="volspike-bench-") as folder:
            figures, verdict = one(RECORDED / f"{name}.ndjson.gz", more, Path(folder))
        said = " ".join([name, *more])
        results += [{**figure, "metric": f"{said}: {figure['metric']}"} for figure in figures]
        print(f"{said}: {verdict}", file=sys.stderr)
        refused += "refuses" in verdict
    if held:
        results.append(
            {"metric": f"{len(held)} trials on recorded tapes: refused, by training or by the gate",
             "value": refused / len(held), "unit": "share", "target": 1.0, "op": ">="}
        )  # fmt: skip
    return results


def one(tape: Path, more: tuple[str, ...], folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Take one tape through; returns figures, and what stopped it."""
    volspike = Volspike(folder)
    volspike("replay", "--raw", str(tape))
    subprocess.run(
        [BIN / "feast", "apply"], cwd=ROOT / "feature_repo", env=volspike.environment, capture_output=True, check=True
    )
    trained = volspike("train", "--json", *more)
    if trained.returncode:
        return [], refusal("training", trained)
    report = json.loads(trained.stdout)
    best = report["best"]
    model = next(m for m in report["models"] if m["run_id"] == best)
    figures = []
    for block in ("folds", "validation"):
        for key in ("pr_auc", "prevalence", "blocks"):
            value = model["metrics"].get(block, {}).get(key)
            if value is not None:
                unit = {"pr_auc": "PR-AUC", "prevalence": "share", "blocks": "quarters of an hour"}[key]
                figures.append({"metric": f"{model['kind']}, {block}: {key}", "value": value, "unit": unit})
    again = volspike("reproduce", best, "--json")
    found = json.loads(again.stdout) if again.stdout.strip() else {"differences": {"failed": float("nan")}}
    figures.append(
        {"metric": f"{model['kind']} made again: greatest difference", "value": max(found["differences"].values()),
         "unit": "1", "target": 1e-9, "op": "<="}
    )  # fmt: skip
    gate = volspike("promote", best)
    return figures, refusal("the gate", gate) if gate.returncode else "promoted"


def refusal(who: str, ended: subprocess.CompletedProcess[str]) -> str:
    """What a command said; one that broke did not refuse."""
    verb = "breaks" if "Traceback" in ended.stderr else "refuses"
    return f"{who} {verb}: {ended.stderr.strip()[-500:]}"


class Volspike:
    """The command in an environment that keeps everything in one folder."""

    def __init__(self, folder: Path) -> None:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("VOLSPIKE_", "BENTOML_"))}
        tracking = f"sqlite:///{folder / 'mlflow.db'}"
        self.environment = {**mine, "VOLSPIKE_DATA": str(folder), "VOLSPIKE_MLFLOW_TRACKING_URI": tracking}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "volspike", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )


if __name__ == "__main__":
    print(json.dumps(run(**(QUICK if "--quick" in sys.argv else {})), indent=2))
