"""The report of an evaluation: one HTML file that needs nothing beside it, written for somebody who doubts it.

The words stand in ``report.html``, the looks in ``report.css``; here their places are filled.
"""

from __future__ import annotations

import contextlib
import html
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Final

from feature_repo.errors import StoreError
from training import report_charts as charts
from training.artefact import Manifest
from training.breakdown import GROUPS
from training.evaluation import Evaluation
from training.sealed import BLOCK

TEMPLATE: Final = Path(__file__).with_name("report.html")
STYLE: Final = Path(__file__).with_name("report.css")
LONG: Final = 12
"""Rows from which a table is folded away at first."""
_LESS_IS_BETTER: Final = ("log_loss", "ece_equal_mass")


def write(path: Path, e: Evaluation, manifest: Manifest) -> None:
    """Write a report whole or not at all.

    Raises
    ------
    StoreError
        If the file can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page(e, manifest), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"can't write {path}: {error.strerror}; free space, or give another --out") from error


def page(e: Evaluation, manifest: Manifest) -> str:
    """Lay an evaluation out as HTML."""
    words = {
        "kind": e.kind,
        "block": "sealed block" if e.block == BLOCK else e.block,
        "run": e.run_id,
        "short": e.run_id[:12],
        "rows": f"{e.pooled['rows'] or 0:,.0f}",
        "spikes": f"{e.pooled['spikes'] or 0:,.0f}",
        "episodes": f"{e.pooled['episodes'] or 0:,.0f}",
        "quarters": f"{e.pooled['blocks'] or 0:,.0f}",
        "at": e.at.replace("T", " ")[:16],
        "verdict": verdict(e),
        "seal": _seal(e),
        "purge": str(e.purge_s),
        "folds": _folds(e),
        "best": e.best_baseline,
        "hours": f"{e.events.hours:,.1f}",
        "delay": f"{e.delay_ms:g}",
        "late": _number(e.delayed["pr_auc"], 4),
        "own": _number(e.pooled["pr_auc"], 4),
        "lost": _signed(e.delay_costs.value),
        "lost_interval": _range(e.delay_costs.interval),
        "explained": f"{e.importance.rows:,}",
        "worst": f"{e.importance.worst_sum:.1e}",
    }
    drawn = {
        "style": STYLE.read_text(encoding="utf-8"),
        "warnings": "".join(f'<p class="warning">{html.escape(text)}</p>' for text in e.warnings),
        "tiles": _tiles(e),
        "timeline": charts.timeline(e),
        "luck": charts.luck(e),
        "shifted": charts.shifted(e),
        "ladder": charts.ladder(e),
        "differences": _differences(e),
        "precision_recall": charts.precision_recall(e),
        "roc": charts.roc(e),
        "reliability": charts.reliability(e),
        "costs": charts.costs(e),
        "events": _events(e),
        "leads": charts.leads(e),
        "groups": _groups(e),
        "importance": charts.importance(e),
        "importances": _importances(e),
        "made_of": _made_of(e, manifest),
    }
    escaped = {name: html.escape(word) for name, word in words.items()}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(escaped | drawn)


def verdict(e: Evaluation) -> str:
    """Say in a sentence or two what was found."""
    own, prevalence = e.pooled["pr_auc"], e.pooled["prevalence"]
    if own is None or not prevalence:
        return "Nothing can be said about skill here: the rows hold no spike, or nothing but spikes."
    lift = own / prevalence
    interval = e.intervals.get("pr_auc")
    said = f"PR-AUC {own:.3f}{f' (95 % interval {_range(interval)})' if interval else ''}"
    said += f" where {prevalence:.1%} of the rows are spikes: {lift:.1f} times what no skill gets."
    d = e.differences[0]
    if d.value is None:
        return said
    side = "above" if d.value >= 0 else "below"
    better = f"{abs(d.value):.3f} {side} {e.best_baseline}, the best baseline on validation"
    if d.interval is None:
        return f"{said} That is {better}; there are too few blocks of time to say how surely."
    low, high = d.interval
    sure = "surely more than luck" if low > 0 else "surely worse" if high < 0 else "which may be luck"
    return f"{said} That is {better} (95 % interval {_range(d.interval)}): {sure}."


def _seal(e: Evaluation) -> str:
    if e.opening is None:
        return "The sealed block is not opened by this report; its rows are in none of these figures."
    said = (
        "These rows were sealed: neither training, tuning, calibration nor the threshold saw them. They were opened "
        f"once, at {e.opening.at.replace('T', ' ')[:16]} UTC for this run ({e.opening.reason}), which is on record "
        "with the registry; a second opening is refused."
    )
    if e.opening.overlaps:
        said += f" Rows that {len(e.opening.overlaps)} other sealed blocks showed before are left out."
    return said


def _folds(e: Evaluation) -> str:
    if e.folds.get("pr_auc") is None:
        return ""
    return (
        f"Purged expanding folds, each trained only on what came before, gave PR-AUC {_number(e.folds['pr_auc'])} at "
        f"prevalence {_number(e.folds.get('prevalence'))}, Brier skill {_number(e.folds.get('brier_skill'))}."
    )


def _tiles(e: Evaluation) -> str:
    f1 = _number(e.pooled["f1"])
    tiles = (
        ("pr_auc", "PR-AUC", f"prevalence {_number(e.pooled['prevalence'])}"),
        ("roc_auc", "ROC-AUC", "0.5 is no skill"),
        ("brier_skill", "Brier skill", "0 is the prevalence, 1 is perfect"),
        ("calibration_slope", "calibration slope", "1 is right"),
        ("ece_equal_mass", "calibration error", "mean gap of forecast and share"),
        ("precision_at_recall50", "precision at 50 % recall", "of alarms that catch half"),
        ("precision", "precision", f"at the threshold {e.threshold:.3f}"),
        ("recall", "recall", f"F1 {f1}"),
    )
    out = []
    for stat, name, note in tiles:
        interval = e.intervals.get(stat)
        beneath = html.escape(f"{_range(interval)} · {note}" if interval else note)
        value = _number(e.pooled[stat])
        out.append(f'<div class="card tile"><span>{name}</span><b>{value}</b><span>{beneath}</span></div>')
    return "".join(out)


def _differences(e: Evaluation) -> str:
    header = (f"this run minus {e.best_baseline}", "difference", "95 % interval", "")
    rows = []
    for d in e.differences:
        word = "unknown"
        if d.interval is not None:
            low, high = (-d.interval[1], -d.interval[0]) if d.stat in _LESS_IS_BETTER else d.interval
            word = "better" if low > 0 else "worse" if high < 0 else "may be luck"
        name = {"pr_auc": "PR-AUC", "brier_skill": "Brier skill", "log_loss": "log loss, less is better"}[d.stat]
        rows.append((name, _signed(d.value), _range(d.interval), word))
    return _table(header, rows)


def _events(e: Evaluation) -> str:
    header = ("", "episodes", "caught", "median lead", "alerts", "false alerts", "false alerts an hour")
    rows = []
    for name, v in (("this run", e.events), (f"{e.best_baseline}, as many alarm rows", e.baseline_events)):
        caught = f"{v.caught:,} ({v.caught / v.episodes:.0%})" if v.episodes else "–"
        lead = "–" if v.median_lead_s is None else f"{v.median_lead_s:.0f} s"
        false = _number(v.false_alerts_per_hour, 2)
        rows.append((name, f"{v.episodes:,}", caught, lead, f"{v.alerts:,}", f"{v.false_alerts:,}", false))
    return _table(header, rows)


def _groups(e: Evaluation) -> str:
    figures = ("pr_auc", "roc_auc", "brier_skill", "precision", "recall")
    header = (
        *("", "rows", "episodes", "prevalence", "PR-AUC", "95 % interval", "− baseline", "95 % interval"),
        *("ROC-AUC", "Brier skill", "precision", "recall"),
    )
    parts = []
    for by in GROUPS:
        rows = []
        for g in (g for g in e.groups if g.by == by):
            first, *others = (_number(g.figures[name]) for name in figures)
            counts = (f"{g.figures['rows'] or 0:,.0f}", f"{g.figures['episodes'] or 0:.0f}")
            against = (_signed(g.difference), _range(g.difference_interval))
            prevalence = _number(g.figures["prevalence"])
            rows.append((g.key[:16], *counts, prevalence, first, _range(g.interval), *against, *others))
        name = {"product": "By product", "session": "By session", "hour": "By hour (UTC)"}[by]
        table = f'<div class="card scroll">{_table(header, rows)}</div>'
        folded = f"<details><summary>{name}: {len(rows)}</summary>{table}</details>"
        parts.append(folded if len(rows) > LONG else f"<h3>{name}</h3>{table}")
    return "".join(parts)


def _importances(e: Evaluation) -> str:
    header = ("feature", "mean |contribution|", "gain" if e.kind == "xgb" else "|weight|", "direction")
    rows = [(name, _number(c, 4), _number(g), _signed(d)) for name, c, g, d in e.importance.ranked(50)]
    return _table(header, rows)


def _made_of(e: Evaluation, m: Manifest) -> str:
    rule = m.label.rule
    hours = f", the last {rule.hours:g} h" if rule.hours else ""
    taus = ", ".join(f"{product} {tau:.3g}" for product, tau in sorted(m.label.tau.items()))
    parts = [f"{name}: {len(d.get('parts', []))} files" for name, d in m.data.items() if isinstance(d, dict)]
    blocks = (
        f"{name} {b['rows']:,} rows" + (f", {b['spikes']:,} spikes" if "spikes" in b else "")
        for name, b in m.training.blocks.items()
    )
    said = {
        "spike": f"standard deviation of {m.label.returns} log returns over {m.label.horizon_s} s ≥ tau",
        "tau": f"{rule.kind} {rule.value:g}{hours}; {taus}",
        "features": f"{len(m.features)} of {m.service.name}, hash {m.service.hash}",
        "calibration": m.calibration.method,
        "sessions": ", ".join(m.training.sessions),
        "blocks": "; ".join(blocks),
        "data": f"{', '.join(parts)}; each with its sha256 in the manifest" if parts else "not recorded",
        "code": ", ".join(f"{k} {v}" for k, v in m.code.items()) or "not recorded",
        "seeds": ", ".join(f"{k} {v}" for k, v in m.seeds.items()),
        "libraries": ", ".join(f"{k} {v}" for k, v in m.versions.items()),
        "check it": f"volspike audit {e.run_id[:12]} · volspike reproduce {e.run_id[:12]}",
    }
    return "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in said.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = {"better": ' class="good"', "worse": ' class="bad"'}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    cells = ("".join(f"<td{marks.get(cell, '')}>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


def _range(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}".replace("-", "−")
