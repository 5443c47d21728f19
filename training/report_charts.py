"""The drawings of a report: each takes what was measured and gives inline SVG, or says why there is nothing to draw."""

from __future__ import annotations

import html
from datetime import UTC, datetime

import numpy as np

from training.evaluation import Evaluation
from training.svg import Plot, ticks

_KINDS = ("model", "base")
_NS = 1_000_000_000
EMPTY = '<p class="soft">Undefined here: the rows hold no spike, nothing but spikes, or too few blocks of time.</p>'


def timeline(e: Evaluation) -> str:
    """Blocks of the split on the clock, the purged gaps between them, and the spike episodes."""
    edges = [(name, b["start_ns"], b["end_ns"]) for name, b in e.blocks.items() if b["rows"]]
    first, last = min(a for _, a, _ in edges), max(b for _, _, b in edges)
    width, left = 1000, 10

    def x(t: int) -> float:
        return left + (t - first) / max(last - first, 1) * (width - 2 * left)

    parts = []
    for name, start, end in edges:
        size = f'x="{x(start):.1f}" width="{max(x(end) - x(start), 2):.1f}" y="26" height="30" rx="3"'
        title = f"<title>{name}: {_clock(start)} to {_clock(end)} UTC, {e.blocks[name]['rows']:,} rows</title>"
        parts.append(f'<rect class="{name}" {size}>{title}</rect>')
        middle = min(max((x(start) + x(end)) / 2, 60), width - 60)
        word = "sealed block" if name == "test" else name
        parts.append(f'<text x="{middle:.0f}" y="17" text-anchor="middle">{word}</text>')
    for start, end, _ in e.timeline:
        middle = x((start + end) // 2)
        parts.append(f'<line class="episode" x1="{middle:.1f}" x2="{middle:.1f}" y1="60" y2="72"/>')
    for share in ticks(0.0, 1.0, 6):
        t = first + int(share * (last - first))
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        at = f'x="{x(t):.1f}" y="90" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {at}>{_clock(t)}</text>')
    return (
        f'<svg viewBox="0 0 {width} 98" role="img" aria-label="Blocks of the split on the clock">{"".join(parts)}</svg>'
    )


def precision_recall(e: Evaluation) -> str:
    """Precision over recall of model and best baseline, the prevalence as the floor."""
    lines = e.curves.precision_recall
    if not any(lines.values()):
        return EMPTY
    top = max((y for points in lines.values() for x, y in points if x > 0.02), default=1.0)
    plot = Plot("Precision over recall", (0, 1), (0, min(1.0, top * 1.1)), ("recall", "precision"))
    plot.rule("none", y=e.pooled["prevalence"] or 0.0, word="prevalence: no skill")
    for kind, points in zip(reversed(_KINDS), reversed(list(lines.values())), strict=True):
        plot.line([(x, min(y, top * 1.1)) for x, y in points], kind)
    return str(plot)


def roc(e: Evaluation) -> str:
    """Receiver operating characteristic of model and best baseline."""
    lines = e.curves.roc
    if not any(lines.values()):
        return EMPTY
    plot = Plot("ROC", (0, 1), (0, 1), ("share of quiet rows alarmed", "recall"))
    plot.line([(0, 0), (1, 1)], "none")
    for kind, points in zip(reversed(_KINDS), reversed(list(lines.values())), strict=True):
        plot.line(points, kind)
    return str(plot)


def reliability(e: Evaluation) -> str:
    """Share of spikes by forecast, on the diagonal if the probabilities mean what they say."""
    bins = e.curves.reliability
    if not bins or e.pooled["pr_auc"] is None:
        return EMPTY
    top = max(max(b.high, b.forecast) for b in bins) * 1.08
    plot = Plot("Reliability", (0, top), (0, top), ("forecast probability", "share that were spikes"))
    plot.line([(0, 0), (top, top)], "none")
    plot.spans([(b.forecast, b.low, b.high) for b in bins], "model")
    return str(
        plot.line([(b.forecast, b.share) for b in bins], "model").dots([(b.forecast, b.share) for b in bins], "model")
    )


def costs(e: Evaluation) -> str:
    """Cost of acting on the forecasts, against the cheaper of always and never alarming."""
    lines = e.curves.costs
    if not any(lines.values()):
        return EMPTY
    top = max(1.1, *(y for points in lines.values() for _, y in points)) * 1.02
    marks = [(v, f"{v:g}") for v in (1.0, 3.0, 10.0, 30.0, 100.0)]
    labels = ("a missed spike costs so many false alarms", "cost, 1 = best of always and never")
    plot = Plot("Cost of acting on it", (1, 100), (0, min(top, 2.0)), labels, x_ticks=marks, log_x=True)
    plot.rule("none", y=1.0, word="no better than always or never")
    for kind, points in zip(reversed(_KINDS), reversed(list(lines.values())), strict=True):
        plot.line([(x, min(y, 2.0)) for x, y in points], kind).dots([(x, min(y, 2.0)) for x, y in points], kind, 2.2)
    return str(plot)


def luck(e: Evaluation) -> str:
    """What the same forecasts score with their quarters of an hour dealt out anew, and what they scored."""
    drawn, own = e.curves.by_luck, e.pooled["pr_auc"]
    if not drawn or own is None:
        return EMPTY
    low, high = min([*drawn, own]), max([*drawn, own])
    pad = (high - low) * 0.06 or 0.01
    edges = np.linspace(low - pad, high + pad, 41)
    counts, _ = np.histogram(drawn, edges)
    labels = ("PR-AUC", f"of {len(drawn)} deals")
    plot = Plot("PR-AUC by luck", (edges[0], edges[-1]), (0, float(counts.max()) * 1.1), labels, height=240)
    bars = [(float(a), float(b), float(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True) if c]
    return str(plot.bars(bars, "none").rule("model", x=own, word="this run"))


def shifted(e: Evaluation) -> str:
    """Skill of forecasts that are made too early or too late."""
    points = e.curves.shifted
    if not points:
        return EMPTY
    # a scale that shows seconds and hours: signed square root of the minutes
    place = [(_signed_root(s), v) for s, v in points]
    marks = [
        (_signed_root(s), w)
        for s, w in (
            (-3600, "−60"),
            (-600, "−10"),
            (-60, "−1"),
            (0, "0"),
            (60, "1"),
            (600, "10"),
            (3600, "60"),
        )
    ]
    ends = _signed_root(3600)
    top = max(v for _, v in place) * 1.15
    plot = Plot(
        "Skill of old forecasts",
        (-ends, ends),
        (0, top),
        ("age of the forecast, minutes", "PR-AUC"),
        x_ticks=marks,
        height=240,
    )
    plot.rule("none", y=e.pooled["prevalence"] or 0.0, word="prevalence")
    return str(plot.line(place, "model").dots(place, "model", 2.6))


def leads(e: Evaluation) -> str:
    """Seconds of warning of the caught episodes."""
    if not e.events.lead_s:
        return '<p class="soft">No episode was caught, so there is no lead to draw.</p>'
    low = min(-60.0, np.floor(min(e.events.lead_s) / 60) * 60)
    low = max(low, -300.0)
    counts, edges = np.histogram(np.clip(e.events.lead_s, low, 60), np.arange(low, 66, 6))
    labels = ("seconds from first alarm to the second that made it a spike", "episodes")
    plot = Plot(
        "Seconds of warning", (float(edges[0]), float(edges[-1])), (0, float(counts.max()) * 1.1), labels, height=240
    )
    bars = [(float(a), float(b), float(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True) if c]
    return str(plot.bars(bars, "model").rule("none", x=0.0, word="too late │ in time"))


def importance(e: Evaluation, top: int = 20) -> str:
    """Bars of mean contribution, with the direction in which a greater value pushes."""
    ranked = [r for r in e.importance.ranked(top) if r[1] > 0]
    if not ranked:
        return EMPTY
    greatest, row, left, width = ranked[0][1], 20, 230, 1000
    parts = []
    for i, (name, value, _, direction) in enumerate(ranked):
        y = i * row + 4
        long = value / greatest * (width - left - 190)
        word = (
            ""
            if direction is None
            else "more → likelier"
            if direction > 0.3
            else "more → less likely"
            if direction < -0.3
            else "mixed"
        )
        parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect class="bar model" x="{left}" y="{y}" width="{max(long, 1):.1f}" height="13" rx="2"/>')
        parts.append(f'<text class="tick" x="{left + long + 7:.1f}" y="{y + 11}">{value:.3f}  {word}</text>')
    height = len(ranked) * row + 8
    return _framed("Contribution of each feature", width, height, parts)


def ladder(e: Evaluation) -> str:
    """PR-AUC of every baseline and of the model with its interval, the prevalence as the floor."""
    own = e.pooled["pr_auc"]
    rows = [(name, f["pr_auc"]) for name, f in e.baselines.items() if f["pr_auc"] is not None]
    if own is None or not rows:
        return EMPTY
    rows.sort(key=lambda r: r[1] or 0.0)
    interval = e.intervals.get("pr_auc")
    greatest = max([own, *(interval or ()), *(v or 0.0 for _, v in rows)]) * 1.08
    left, width, row = 170, 1000, 30
    scale = (width - left - 90) / greatest
    floor = left + (e.pooled["prevalence"] or 0.0) * scale
    height = (len(rows) + 1) * row + 24
    parts = [f'<line class="rule none" x1="{floor:.1f}" x2="{floor:.1f}" y1="4" y2="{height - 22}"/>']
    parts.append(f'<text class="word none" x="{floor:.1f}" y="{height - 8}" text-anchor="middle">prevalence</text>')
    for i, (name, value) in enumerate([*rows, (f"this run ({e.kind})", own)]):
        y, model = i * row + 18, i == len(rows)
        kind = "model" if model else "base" if name == e.best_baseline else "none"
        mark = " ◂ best on validation" if name == e.best_baseline else ""
        at = left + (value or 0.0) * scale
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>')
        if model and interval is not None:
            low, high = (left + v * scale for v in interval)
            parts.append(f'<line class="span wide model" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
            at_text = high + 8
        else:
            at_text = at + 10
        parts.append(f'<circle class="dot {kind}" cx="{at:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="tick" x="{at_text:.1f}" y="{y + 4}">{value:.4f}{mark}</text>')
    return _framed("PR-AUC of model and baselines", width, height, parts)


def _framed(title: str, width: int, height: int, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def _signed_root(seconds: float) -> float:
    return float(np.sign(seconds) * np.sqrt(abs(seconds) / 60))


def _clock(t_ns: int) -> str:
    return datetime.fromtimestamp(t_ns // _NS, UTC).strftime("%m-%d %H:%M")
