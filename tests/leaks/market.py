"""A small generated market in memory: the tables that replay would write, and their labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from ingestion.kernel import Featurizer
from ingestion.market import START_NS, generate
from training.labels import _label

DAY_NS = 86_400 * 1_000_000_000
SESSIONS = (6000, 5400)
"""Length of each recording in seconds; they begin a day apart."""


@dataclass(frozen=True)
class Source:
    """Tables ``spike_features`` (grid rows) and ``quotes``, the labels of all grid rows, and the tapes' content."""

    table: pl.DataFrame
    quotes: pl.DataFrame
    labels: pl.DataFrame
    tapes: tuple[bytes, ...]


@lru_cache(maxsize=1)
def source(
    seed: int, sessions: tuple[int, ...] = SESSIONS, products: tuple[str, ...] = ("BTC-USD", "ETH-USD")
) -> Source:
    tables, quotes, tapes = [], [], []
    for i, seconds in enumerate(sessions):
        start = START_NS + i * DAY_NS
        messages = generate(seed=seed * 10 + i, seconds=seconds, products=products, start_ns=start)
        tapes.append(b"\n".join(raw for _, _, raw in messages) + b"\n")
        made = Featurizer(hashlib.sha256(tapes[-1]).hexdigest()[:16]).push_lines(tapes[-1])
        tables.append(pl.from_arrow(made.features))
        quotes.append(pl.from_arrow(made.quotes))
    table = pl.concat(tables).filter(pl.col("trigger") == "grid")
    return Source(table, pl.concat(quotes), label(table, pl.concat(quotes)), tuple(tapes))


def label(table: pl.DataFrame, quotes: pl.DataFrame) -> pl.DataFrame:
    """Label grid rows as ``training.labels.labels`` does, without tables on disk."""
    keys = ["product_id", "session"]
    rows = table.select(*keys, "n", "k", "row_time", "event_time_ns", "coverage_s")
    there = quotes.partition_by(keys, as_dict=True)
    parts = [
        _label(part, there[key], int(part["event_time_ns"].max()), 60, "1s")
        for key, part in rows.partition_by(keys, as_dict=True).items()
    ]
    return pl.concat(parts).sort("event_time_ns", "product_id", "session", "n", -pl.col("k"))
