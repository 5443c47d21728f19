"""Fetching feature rows: the row numbers that a join chose, turned into columns a block at a time.

::

    keys and times of the view ──► asof_rows ──► row numbers ──► for each block of columns: scan, pick, drop the block
                                                                             │
    entity table ────────────────────────────────────────────────────────────┴──► one Arrow table, rows as they came

Only the answer and one block are held at once, whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage
from numpy.typing import NDArray

from feature_repo.asof import CREATED, TIME, asof_rows
from feature_repo.errors import ContractError, InputError, StoreError
from feature_repo.source import location, scan, tie_columns

BLOCK_CELLS = 1 << 24
"""Cells read at once: 128 MB of float64. Smaller blocks open every file of the table more often."""


@dataclass(frozen=True)
class ViewColumns:
    """One feature view as its table spells it.

    Attributes
    ----------
    keys
        (column of the table, column of the entity table) of each join key.
    features
        (column of the table, column of the answer) of each requested feature.
    """

    name: str
    rows: pl.LazyFrame
    keys: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str], ...]
    time: str
    created: str | None
    ties: tuple[str, ...]
    ttl_ns: int | None

    @classmethod
    def of(cls, view: FeatureView, refs: Sequence[str], full_names: bool, repo: Path | None) -> ViewColumns:
        """Resolve aliases, field mapping and join key map of a view, and open its table.

        Raises
        ------
        ContractError
            If the table lacks a column that the view names.
        """
        source = view.batch_source
        spelled = {new: old for old, new in source.field_mapping.items()}
        alias = view.projection.name_to_use()
        wanted = [ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == alias]
        prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
        renamed = view.projection.join_key_map
        keys = [k.name for k in view.entity_columns if k.name != DUMMY_ENTITY_ID]
        created = source.created_timestamp_column or None
        ttl_ns = None if not view.ttl else round(view.ttl.total_seconds() * 1e6) * 1000
        columns = cls(
            name=view.name,
            rows=scan(source, repo),
            keys=tuple((spelled.get(k, k), renamed.get(k, k)) for k in keys),
            features=tuple((spelled.get(f, f), prefix + f) for f in wanted),
            time=spelled.get(source.timestamp_field, source.timestamp_field),
            created=created and spelled.get(created, created),
            ties=tie_columns(source),
            ttl_ns=ttl_ns,
        )
        columns._check()
        return columns

    def _check(self) -> None:
        there = self.rows.collect_schema().names()
        needed = [self.time, *(k for k, _ in self.keys), *(f for f, _ in self.features), *filter(None, [self.created])]
        missing = [name for name in needed if name not in there]
        if missing:
            raise ContractError(
                f"feature view {self.name}: its table has no column {missing}; it has {there[:12]}… "
                f"Write the table anew with this version, or correct the view and run `feast apply`"
            )


def join(asked: pl.DataFrame, view: ViewColumns, *, created_cut: bool) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield each requested feature of a view as a column with one value per asked row.

    Parameters
    ----------
    asked
        The view's keys as the entity table names them, and :data:`~feature_repo.asof.TIME` (int64 ns).
    """
    rows = between(view.rows, view.time, *_span(asked, view.ttl_ns))
    known = known_rows(rows, view.keys, view.time, view.created, view.ties)
    names = [name for _, name in view.keys]
    chosen = asof_rows(
        _like(asked, known, names), known, names, ttl_ns=view.ttl_ns, created_cut=created_cut, ties=view.ties
    )
    height = known.height
    del known
    yield from fetch(rows, view.features, chosen, height)


def known_rows(
    rows: pl.LazyFrame, keys: Sequence[tuple[str, str]], time: str, created: str | None, ties: Sequence[str]
) -> pl.DataFrame:
    """Collect what :func:`~feature_repo.asof.asof_rows` asks of feature rows: keys, times in ns, ties as integers."""
    known = rows.select(
        *(pl.col(column).alias(name) for column, name in keys),
        nanoseconds(rows, time).alias(TIME),
        *([nanoseconds(rows, created).alias(CREATED)] if created else []),
        *ties,
    ).collect()
    text = [name for name in ties if known.schema[name] == pl.String]
    order = {name: pl.Enum(known.get_column(name).unique().sort().drop_nulls()) for name in text}
    return known.with_columns(pl.col(name).cast(dtype).to_physical() for name, dtype in order.items())


def fetch(
    rows: pl.LazyFrame, columns: Sequence[tuple[str, str]], chosen: pl.Series, height: int
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield columns of ``rows`` (``height`` of them) at the row numbers ``chosen``, null where a number is null."""
    step = max(1, BLOCK_CELLS // max(1, height))
    # Picking by numbers that may be null takes three times as long as picking some row and blanking it afterwards.
    valid = None if not chosen.null_count() else chosen.is_not_null().to_numpy()
    numbers = chosen.fill_null(0).cast(pl.UInt32)
    for start in range(0, len(columns), step):
        part = columns[start : start + step]
        block = rows.select(pl.col(column).alias(name) for column, name in part).collect()
        if block.height != height:
            raise StoreError(
                f"feature table: {height} rows at first, {block.height} at the second look; its files were "
                f"changed under the reader. Ask again"
            )
        picked = block.rechunk().select(pl.all().gather(numbers)) if height else block.clear(len(chosen))
        for _, name in part:
            yield name, pa.chunked_array([_blank(_plain(picked.get_column(name).to_arrow()), valid)])


def between(rows: pl.LazyFrame, time: str, first_ns: int | None, last_ns: int | None) -> pl.LazyFrame:
    """Keep rows whose time is in [first, last], by a comparison that lets the reader skip whole files."""
    dtype = rows.collect_schema()[time]
    per = {"ms": 1_000_000, "us": 1_000, "ns": 1}.get(getattr(dtype, "time_unit", None) or "", 0)
    if not per:
        raise ContractError(f"column {time}: expected a timestamp, was {dtype}; correct the view's timestamp_field")
    if first_ns is not None:
        rows = rows.filter(pl.col(time) >= pl.lit(-(-first_ns // per)).cast(dtype))
    if last_ns is not None:
        rows = rows.filter(pl.col(time) <= pl.lit(last_ns // per).cast(dtype))
    return rows


def nanoseconds(rows: pl.LazyFrame, time: str) -> pl.Expr:
    """Express a timestamp column as int64 ns since 1970; a time without zone is UTC."""
    dtype = rows.collect_schema()[time]
    return pl.col(time).cast(pl.Datetime("ns", getattr(dtype, "time_zone", None))).cast(pl.Int64)


class PolarsRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A retrieval that runs when its result is asked for.

    Parameters
    ----------
    evaluate
        Computes the table.
    repo
        Folder that relative paths of a saved dataset start from.
    """

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        *,
        full_feature_names: bool = False,
        on_demand: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        repo: Path | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._full_feature_names = full_feature_names
        self._on_demand = list(on_demand)
        self._metadata = metadata
        self._repo = repo

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views computed from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._evaluate().to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a parquet file or a Delta table; a reader sees all of it or nothing.

        Raises
        ------
        SavedDatasetLocationAlreadyExists
            If something is there and ``allow_overwrite`` is false.
        InputError
            If the storage is not a ``SavedDatasetFileStorage``.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise InputError(f"storage: expected a SavedDatasetFileStorage, was {type(storage).__name__}")
        delta, path = location(storage.to_data_source(), self._repo)
        if Path(path).exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=path)
        table = self.to_arrow()
        if delta:
            from deltalake import write_deltalake

            write_deltalake(path, table, mode="overwrite", schema_mode="overwrite")
            return
        import pyarrow.parquet as pq

        unfinished = Path(path).with_name(f".{Path(path).name}.tmp")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            pq.write_table(table, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _span(asked: pl.DataFrame, ttl_ns: int | None) -> tuple[int | None, int | None]:
    times = asked.get_column(TIME)
    first, last = times.min(), times.max()
    if not isinstance(first, int) or not isinstance(last, int):
        return None, None
    return (first - ttl_ns if ttl_ns else None), last


def _like(asked: pl.DataFrame, known: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Cast the asked keys to the table's types."""
    try:
        return asked.select([*(pl.col(n).cast(known.schema[n]) for n in names), TIME])
    except pl.exceptions.PolarsError as error:
        types = {name: (str(asked.schema[name]), str(known.schema[name])) for name in names}
        raise InputError(f"entity_df: join keys don't fit: (given, expected) {types}: {error}") from None


def _plain(array: pa.Array) -> pa.Array:
    long = pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
    return array.cast(pa.string()) if long else array


def _blank(array: pa.Array, valid: NDArray[np.bool_] | None) -> pa.Array:
    """Make null what is not valid, without touching the values."""
    if valid is None:
        return array
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)) or array.offset:
        return pc.if_else(pa.array(valid), array, None)
    known = valid if not array.null_count else valid & array.is_valid().to_numpy(zero_copy_only=False)
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(array.type, len(array), [bits, array.buffers()[1]])
