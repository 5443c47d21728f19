"""Where the rows of a drift report come from: parquet files, stretches of the table, halves, training blocks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import polars as pl

from feature_repo.contract import DEFAULT_SERVICE, SERVICES, VIEW
from feature_repo.errors import InputError, InsufficientDataError, UsageError
from infra.settings import settings
from ingestion import tables
from training.artefact import load

RANGE: Final = ".."
"""Between two times, it makes a stretch of the offline table: ``2026-01-01T00:00Z..2026-01-02T00:00Z``."""
_KEEP: Final = ("product_id", "trigger", "event_time_ns", "coverage_s")


def rows(sources: Sequence[str], *, trigger: str = "grid", min_coverage_s: float | None = None) -> pl.DataFrame:
    """Read feature rows.

    Parameters
    ----------
    sources
        Parquet files, folders of them, or stretches ``FROM..TO`` of the offline table (either end may be left out, TO
        is not included); none at all means the whole offline table.
    trigger
        Keep the rows of this trigger: grid, ticker or all.
    min_coverage_s
        Keep the rows with that many seconds without a gap behind them; None means the setting.

    Returns
    -------
    DataFrame
        Features of the default service beside product_id, trigger and event_time_ns; by event time.

    Raises
    ------
    InputError
        If a file is missing, is not parquet or lacks a column.
    UsageError
        If a stretch's ends are not times with a zone.
    InsufficientDataError
        If no row is left.
    """
    if trigger not in ("grid", "ticker", "all"):
        raise UsageError(f"--trigger must be grid, ticker or all, was {trigger!r}")
    least = settings().min_coverage_s if min_coverage_s is None else min_coverage_s
    frame = pl.concat([_read(source) for source in sources or [RANGE]], how="vertical_relaxed")
    kept = frame.filter(pl.col("coverage_s") >= least)
    if trigger != "all":
        kept = kept.filter(pl.col("trigger") == trigger)
    if kept.is_empty():
        raise InsufficientDataError(
            f"of {len(frame)} rows none has trigger {trigger} and coverage_s >= {least:g}; replay more, or lower "
            "--min-coverage"
        )
    return kept.sort("event_time_ns")


def halves(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split by the middle of the time that the rows span: what came before it, what came at or after."""
    first, last = frame["event_time_ns"].min(), frame["event_time_ns"].max()
    middle = (int(first) + int(last)) // 2  # type: ignore[arg-type]  # int64, and no row is null
    early = pl.col("event_time_ns") < middle
    return frame.filter(early), frame.filter(~early)


def train_test(frame: pl.DataFrame, run: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split by a model's manifest: its training block, and everything after its end.

    Parameters
    ----------
    frame
        Rows with ``event_time_ns``.
    run
        ``champion``, a run id below the models folder, or a path of an artefact.

    Raises
    ------
    InputError
        If there is no such model, or its manifest has no training block.
    ArtefactError
        If it is damaged.
    """
    block = load(_artefact(run)).manifest.training.blocks.get("train", {})
    if not {"start_ns", "end_ns"} <= block.keys():
        raise InputError(f"the manifest of {run!r} has no block 'train' with start_ns and end_ns; train again")
    t = pl.col("event_time_ns")
    return frame.filter(t.is_between(block["start_ns"], block["end_ns"])), frame.filter(t > block["end_ns"])


def _artefact(run: str) -> Path:
    models = settings().models
    if run == "champion":
        pointer = models / "champion.json"
        try:
            return models / str(msgspec.json.decode(pointer.read_bytes(), type=dict[str, object])["path"])
        except (OSError, KeyError, msgspec.DecodeError) as error:
            raise InputError(f"no champion could be read from {pointer}; run volspike train, then promote") from error
    for folder in (models / run, Path(run)):
        if folder.is_dir():
            return folder
    raise InputError(f"run {run!r} is neither 'champion', nor a folder below {models}, nor a path of an artefact")


def _read(source: str) -> pl.DataFrame:
    columns = list(dict.fromkeys([*_KEEP, *SERVICES[DEFAULT_SERVICE]]))
    if source == RANGE or (RANGE in source and not Path(source).exists()):
        start, _, end = source.partition(RANGE)
        frame = tables.scan(VIEW)
        if start:
            frame = frame.filter(pl.col("event_time_ns") >= _time_ns(start))
        if end:
            frame = frame.filter(pl.col("event_time_ns") < _time_ns(end))
        return tables.collect(VIEW, frame.select(columns))
    path = Path(source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"{source}: no parquet file there; give a file, a folder or a stretch FROM..TO of the table")
    try:
        frame = pl.scan_parquet(files)
        lacking = [c for c in columns if c not in frame.collect_schema()]
        if lacking:
            raise InputError(f"{source}: lacks {lacking[:5]}; must hold feature rows, as volspike replay --to writes")
        return frame.select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{source}: can't be read as parquet: {str(error)[:200]}") from error


def _time_ns(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a time; write it like 2026-01-31T12:00:00Z") from error
    if at.tzinfo is None:
        raise UsageError(f"{text!r} has no zone; write it like {text}Z")
    return round(at.timestamp() * 1e6) * 1000
