"""Pictures of a run and the numbers behind them: curves, confusion matrix, importances, as PNG and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write(
    folder: Path,
    title: str,
    p: NDArray[np.float64],
    y: NDArray[np.bool_],
    threshold: float,
    importance: Mapping[str, float],
) -> None:
    """Draw a model on one block into a folder.

    Parameters
    ----------
    folder
        Created if needed; gets pr_curve, roc_curve, confusion_matrix and importances, each as .png and .csv.
    title
        Name of model and block.
    p, y
        float64[n] probabilities and bool[n] spikes, both kinds present.
    threshold
        Decision ``p >= threshold``.
    importance
        Importance by feature; the thirty greatest are drawn, all are written.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    folder.mkdir(parents=True, exist_ok=True)
    precision, recall, cuts = precision_recall_curve(y, p)
    fpr, tpr, roc_cuts = roc_curve(y, p)
    _csv(folder / "pr_curve.csv", ("threshold", "recall", "precision"), zip(cuts, recall, precision, strict=False))
    _csv(folder / "roc_curve.csv", ("threshold", "fpr", "tpr"), zip(roc_cuts, fpr, tpr, strict=True))
    figure, axes = _figure(f"{title}: precision and recall", "recall", "precision")
    axes.step(recall, precision, where="post", label="model")
    axes.axhline(y.mean(), linestyle="--", color="grey", label=f"prevalence {y.mean():.3f}")
    axes.legend()
    figure.savefig(folder / "pr_curve.png")
    figure, axes = _figure(f"{title}: ROC", "false-positive rate", "true-positive rate")
    axes.plot(fpr, tpr)
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
    figure.savefig(folder / "roc_curve.png")
    _confusion(folder, title, p >= threshold, y)
    _importances(folder, title, importance)


def _confusion(folder: Path, title: str, alarm: NDArray[np.bool_], y: NDArray[np.bool_]) -> None:
    table = [[int(((y == truth) & (alarm == said)).sum()) for said in (False, True)] for truth in (False, True)]
    rows = [("quiet", *table[0]), ("spike", *table[1])]
    _csv(folder / "confusion_matrix.csv", ("truth", "said_quiet", "said_spike"), rows)
    figure, axes = _figure(f"{title}: decisions", "forecast", "truth")
    axes.imshow(np.log1p(table), cmap="Blues")
    for row in (0, 1):
        for column in (0, 1):
            axes.text(column, row, f"{table[row][column]:,}", ha="center", va="center")
    axes.set_xticks([0, 1], ["quiet", "spike"])
    axes.set_yticks([0, 1], ["quiet", "spike"])
    figure.savefig(folder / "confusion_matrix.png")


def _importances(folder: Path, title: str, importance: Mapping[str, float]) -> None:
    ranked = sorted(importance.items(), key=lambda item: (-item[1], item[0]))
    _csv(folder / "importances.csv", ("feature", "importance"), ranked)
    top = ranked[:30][::-1]
    figure, axes = _figure(f"{title}: importance", "importance", "")
    figure.set_size_inches(7, 1 + 0.22 * len(top))
    axes.barh([name for name, _ in top], [value for _, value in top])
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(folder / "importances.png")


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    # The object interface keeps no global state and needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
