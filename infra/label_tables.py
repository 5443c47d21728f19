"""The tables that ``volspike label`` prints."""

from __future__ import annotations

from typing import Any, Final

import typer

from infra.tables_view import table
from training.label_view import LabelView

MAX_HOURS: Final = 96
"""Hours printed, the newest; all are in the picture and the JSON."""
_WIDTH: Final = 30


def show(view: LabelView) -> None:
    """Print counts and nulls, then the share of spikes per hour, then why there is no tau."""
    header = ("product", "rows", "labelled", "no quote", "gap", "too recent", "usable", "tau", "spikes in train")
    keys = ("product", "rows", "labelled", "no_quote", "gap", "watermark", "usable")
    table("labels", header, [(*(p[k] for k in keys), _tau(p), p["share"]) for p in view.products])
    hours = [(p["product"], h) for p in view.products for h in p["hours"]]
    hours.sort(key=lambda found: (found[1]["hour"], found[0]))
    if hours:
        most = max(h["share"] for _, h in hours[-MAX_HOURS:]) or 1.0
        table(
            "spikes per hour",
            ("hour (UTC)", "product", "rows", "spikes", "share", ""),
            [
                (h["hour"], product, h["rows"], h["spikes"], h["share"], "█" * round(_WIDTH * h["share"] / most))
                for product, h in hours[-MAX_HOURS:]
            ],
        )
    if len(hours) > MAX_HOURS:
        typer.echo(f"{len(hours) - MAX_HOURS:,} earlier hours are in the picture and in --json")
    for p in view.products:
        for reason, count in p["without_tau"].items():
            typer.echo(f"{p['product']}: {count:,} usable rows have no rolling tau ({reason})")
    for reason in view.reasons:
        typer.echo(f"no tau: {reason}")


def _tau(product: dict[str, Any]) -> object:
    """One number where tau is fixed, its range where it rolls."""
    low, high = product["tau_low"], product["tau_high"]
    return product["tau"] if low == high else f"{low:.3g} … {high:.3g}"
