"""Drift: how far the features of one time have moved from those of another, as Evidently's PSI.

The population stability index compares histograms; above 0.1 a column counts as drifted. Rows a second apart share most
of their windows, so this describes two stretches of time and is no test of anything.

Evidently draws each column with plotly, which is nearly all of its time; so every column is scored with its PSI, and
the most drifted are drawn.
"""

from __future__ import annotations

import html
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from feature_repo.contract import DEFAULT_SERVICE, SERVICES
from feature_repo.errors import InputError, InsufficientDataError, StoreError

SAMPLE_ROWS: Final = 5_000
"""Rows drawn, with a fixed seed, from each side: PSI of ten bins needs no more, and all of them would take minutes."""
MIN_ROWS: Final = 100
"""Rows each side must have: with fewer, most bins of a histogram hold nothing or one row."""
PSI_THRESHOLD: Final = 0.1
DRAWN: Final = 12
"""Columns that the HTML draws, the most drifted first."""

Kind = Literal["scored", "constant", "empty", "appeared", "vanished"]


@dataclass(frozen=True, slots=True)
class Column:
    """Drift of one column.

    Attributes
    ----------
    psi
        Population stability index; None where a side holds no values.
    kind
        ``scored``; or ``constant`` (one and the same value on both sides), ``empty`` (all null on both sides),
        ``appeared`` or ``vanished`` (all null in the reference only, in the current rows only; these count as drifted).
    null_share
        Share of nulls: (reference, current).
    """

    name: str
    kind: Kind
    psi: float | None
    drifted: bool
    null_share: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Drift of one group of rows: all of them, or one value of ``by``."""

    key: str
    rows: tuple[int, int]
    columns: list[Column]
    html: str

    @property
    def compared(self) -> list[Column]:
        """Columns that hold values on a side at least and aren't the same constant on both."""
        return [c for c in self.columns if c.kind not in ("empty", "constant")]

    @property
    def drifted(self) -> list[Column]:
        """Drifted columns, the most drifted first; one that appeared or vanished stands before all."""
        return sorted((c for c in self.columns if c.drifted), key=_rank)

    @property
    def share(self) -> float:
        """Share of the compared columns that drifted; 0 if none could be compared."""
        return len(self.drifted) / len(self.compared) if self.compared else 0.0


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What :func:`report` found and where it lies; ``skipped`` names groups with too little data, and why."""

    name: str
    groups: list[Group]
    json: str
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        groups = [
            {"drifted": len(g.drifted), "compared": len(g.compared), "share": g.share, **asdict(g)} for g in self.groups
        ]
        return {"name": self.name, "psi_threshold": PSI_THRESHOLD, "groups": groups, "skipped": self.skipped}


def report(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    *,
    out: Path,
    name: str,
    by: str | None = None,
    features: Sequence[str] | None = None,
) -> DriftReport:
    """Compare two sets of feature rows and write ``<out>/<name>.json`` and ``<out>/<name>[-<group>].html``.

    Parameters
    ----------
    reference, current
        Rows with feature columns; order and other columns don't matter.
    out
        Folder, made if it is not there.
    name
        Stem of the files.
    by
        Column to group by, such as ``product_id``; None compares all rows at once.
    features
        Columns to compare; by default those of the default service that both sides have.

    Raises
    ------
    InputError
        If a side lacks the columns.
    InsufficientDataError
        If no group has :data:`MIN_ROWS` rows on both sides.
    StoreError
        If the files can't be written.
    """
    wanted = list(features or [f for f in SERVICES[DEFAULT_SERVICE] if f in reference.columns and f in current.columns])
    needed = [*wanted, *([by] if by else [])]
    lacking = sorted({c for side in (reference, current) for c in needed if c not in side.columns})
    if lacking or not wanted:
        raise InputError(f"rows lack columns of {DEFAULT_SERVICE}: {lacking[:5] or 'all'}; give feature rows")
    keys = sorted({*reference[by].to_list(), *current[by].to_list()}) if by else ["all"]
    groups, skipped = [], {}
    for key in keys:
        sides = [side if by is None else side.filter(pl.col(by) == key) for side in (reference, current)]
        if min(map(len, sides)) < MIN_ROWS:
            skipped[str(key)] = (
                f"{len(sides[0])} reference and {len(sides[1])} current rows, must be at least {MIN_ROWS} each"
            )
            continue
        path = out / (f"{name}-{_safe(str(key))}.html" if by else f"{name}.html")
        groups.append(_group(str(key), sides[0], sides[1], wanted, path))
    if not groups:
        said = "; ".join(f"{k}: {why}" for k, why in skipped.items())
        raise InsufficientDataError(f"too little to compare: {said}; take longer stretches of time")
    found = DriftReport(name, groups, str(out / f"{name}.json"), skipped)
    _write(out / f"{name}.json", json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
    return found


def _group(key: str, reference: pl.DataFrame, current: pl.DataFrame, names: list[str], path: Path) -> Group:
    rows = (len(reference), len(current))
    ref, cur = (_sample(side.select(names)) for side in (reference, current))
    group = Group(key, rows, [_column(name, ref[name], cur[name]) for name in names], str(path))
    _write(path, _html(group, ref, cur))
    return group


def _sample(side: pl.DataFrame) -> pl.DataFrame:
    numbers = side.select(pl.all().cast(pl.Float64).fill_nan(None))
    return numbers if len(numbers) <= SAMPLE_ROWS else numbers.sample(SAMPLE_ROWS, seed=0)


def _column(name: str, reference: pl.Series, current: pl.Series) -> Column:
    nulls = (reference.null_count() / len(reference), current.null_count() / len(current))
    ref, cur = reference.drop_nulls(), current.drop_nulls()
    if ref.is_infinite().any() or cur.is_infinite().any():
        raise InputError(f"{name} holds an infinity; features are finite or null: replay the tape again")
    if ref.is_empty() or cur.is_empty():
        kind: Kind = "vanished" if len(ref) else "appeared" if len(cur) else "empty"
        return Column(name, kind, None, kind != "empty", nulls)
    if ref.min() == ref.max() == cur.min() == cur.max():
        return Column(name, "constant", 0.0, False, nulls)
    psi = _psi(ref, cur)
    return Column(name, "scored", psi, psi >= PSI_THRESHOLD, nulls)


def _psi(reference: pl.Series, current: pl.Series) -> float:
    with _quiet():
        from evidently.legacy.calculations.stattests import psi_stat_test
        from evidently.legacy.core import ColumnType

        result = psi_stat_test(reference.to_pandas(), current.to_pandas(), ColumnType.Numerical, PSI_THRESHOLD)
    score = float(result.drift_score)
    if not math.isfinite(score):
        raise InputError(f"PSI of {reference.name} is {score}; its values can't be compared")
    return score


def _html(group: Group, reference: pl.DataFrame, current: pl.DataFrame) -> str:
    drawn = [c.name for c in sorted(group.compared, key=_rank) if c.psi is not None][:DRAWN]
    if not drawn:
        return f"<!doctype html><body>{_summary(group)}</body>"
    with _quiet():
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        definition = DataDefinition(numerical_columns=drawn)
        metrics = [ValueDrift(column=name, method="psi", threshold=PSI_THRESHOLD) for name in drawn]
        frames = [side.select(drawn).to_pandas() for side in (current, reference)]
        sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
        page: str = Report(metrics).run(*sides).get_html_str(as_iframe=False)
    return page.replace("<body>", f"<body>{_summary(group)}", 1)


def _summary(group: Group) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(c.name)}</td><td>{'' if c.psi is None else f'{c.psi:.4f}'}</td>"
        f"<td>{'drifted' if c.drifted else ''} {c.kind if c.kind != 'scored' else ''}</td></tr>"
        for c in sorted(group.columns, key=_rank)
    )
    return (
        f'<div style="font-family:sans-serif;margin:1.5em"><h2>Drift of {html.escape(group.key)}: '
        f"{len(group.drifted)} of {len(group.compared)} columns</h2><p>{group.rows[0]} reference rows, {group.rows[1]} "
        f"current rows; PSI ≥ {PSI_THRESHOLD} counts as drifted; the {DRAWN} most drifted are drawn below.</p>"
        f"<details><summary>All columns</summary><table>{cells}</table></details></div>"
    )


def _rank(column: Column) -> tuple[float, str]:
    if column.psi is None:
        return (-math.inf if column.drifted else math.inf, column.name)
    return (-column.psi, column.name)


def _quiet() -> warnings.catch_warnings[None]:
    # Evidently's imports and statistics warn of deprecations and divisions by zero that its caller can't help.
    return warnings.catch_warnings(action="ignore")


def _safe(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}; free space or choose another --out") from error


