"""Where feature rows are read from: our Delta tables by name, and the files that stock Feast sources name.

A :class:`DeltaTableSource` holds a table's name, not its path, so a registry can be moved with its data and means the
same table on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from feast import RepoConfig, ValueType
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.type_map import pa_to_feast_value_type

from feature_repo.contract import ENTITY, FEATURES, ROW_COLUMNS, ROW_ID, VIEW
from feature_repo.errors import ContractError, StoreError
from infra.settings import settings

_ARROW = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def row_schema() -> pa.Schema:
    """Columns of ``spike_features`` by the contract: row columns, then the features."""
    fields = [pa.field(c.name, _ARROW[c.dtype], nullable=c.nullable) for c in ROW_COLUMNS]
    return pa.schema(fields + [pa.field(f.name, _ARROW[f.dtype]) for f in FEATURES])


class DeltaTableSource(DataSource):  # type: ignore[misc]
    """A table under ``<data>/tables``.

    Parameters
    ----------
    table
        Name of the table, a folder under ``settings().tables``.
    """

    def __init__(self, *, table: str, name: str | None = None, **options: Any) -> None:
        self.table = table
        super().__init__(name=name or table, **options)

    @property
    def path(self) -> Path:
        """Folder of the table."""
        return settings().tables / self.table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeltaTableSource) and self.table == other.table and bool(super().__eq__(other))

    def __hash__(self) -> int:
        return int(super().__hash__())

    def source_type(self) -> int:
        """Kind of source in Feast's registry."""
        return int(DataSourceProto.CUSTOM_SOURCE)

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> DeltaTableSource:
        """Read the source from the registry."""
        return DeltaTableSource(
            table=json.loads(data_source.custom_options.configuration)["table"],
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        options = DataSourceProto.CustomSourceOptions(configuration=json.dumps({"table": self.table}).encode())
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type="feature_repo.source.DeltaTableSource",
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            custom_options=options,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """Accept a table that doesn't exist yet: ``feast apply`` comes before the first row."""

    def get_table_query_string(self) -> str:
        """Location of the table, which is what Feast shows for a source."""
        return str(self.path)

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """Map names of Arrow types to Feast's."""
        return pa_to_feast_value_type  # type: ignore[no-any-return]

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Columns of the table in order; of ``spike_features`` those of the contract, also before its first row."""
        schema = row_schema() if _is_rows(self) else arrow_schema(self, None)
        return [(field.name, str(field.type)) for field in schema]


def arrow_schema(source: DataSource, repo: Path | None) -> pa.Schema:
    """Columns of a table that exists, with text as Arrow's plain ``string``.

    Raises
    ------
    StoreError
        If there is nothing to read.
    """
    found = scan(source, repo).collect_schema().to_frame().to_arrow().schema
    text = (pa.types.is_large_string, pa.types.is_string_view)
    return pa.schema([f.with_type(pa.string()) if any(is_(f.type) for is_ in text) else f for f in found])


def scan(source: DataSource, repo: Path | None) -> pl.LazyFrame:
    """Open a source lazily, fixed at the version that is newest now: scanning twice gives the same rows in order.

    Parameters
    ----------
    source
        A :class:`DeltaTableSource`, or a stock ``FileSource`` of parquet or Delta.
    repo
        Folder that relative paths of a ``FileSource`` start from.

    Raises
    ------
    StoreError
        If there is nothing to read.
    ContractError
        If the source is of another kind.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    delta, path = location(source, repo)
    if not delta:
        return pl.scan_parquet(path, hive_partitioning=False)
    try:
        rows = pl.scan_delta(DeltaTable(path))
        return _with_new_features(rows) if _is_rows(source) else rows
    except TableNotFoundError:
        raise StoreError(
            f"source {source.name}: no Delta table at {path}; make its first rows with `volspike replay --raw TAPE`, "
            f"or point VOLSPIKE_DATA at the folder that has them"
        ) from None
    except (DeltaError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise StoreError(
            f"source {source.name}: the Delta table at {path} can't be read ({said}); restore it, or move it away and "
            "replay the tapes"
        ) from error


def tie_columns(source: DataSource) -> tuple[str, ...]:
    """Columns that decide between rows equal in key and times; files of a Delta table have no order to go by."""
    return tuple(name for name in ROW_ID if name != ENTITY) if _is_rows(source) else ()


def _is_rows(source: DataSource) -> bool:
    return isinstance(source, DeltaTableSource) and source.table == VIEW


def _with_new_features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Add as null the features that are younger than the table."""
    there = set(rows.collect_schema().names())
    types = {"float64": pl.Float64, "int64": pl.Int64}
    return rows.with_columns(pl.lit(None, types[f.dtype]).alias(f.name) for f in FEATURES if f.name not in there)


def location(source: DataSource, repo: Path | None) -> tuple[bool, str]:
    """Whether a source is a Delta table, and where it lies.

    Raises
    ------
    ContractError
        If the source is of another kind.
    """
    if isinstance(source, DeltaTableSource):
        return True, str(source.path)
    if isinstance(source, FileSource):
        uri = source.file_options.uri
        path = uri if "://" in uri or repo is None else str(repo / uri)
        return isinstance(source.file_format, DeltaFormat), path
    raise ContractError(
        f"source {source.name}: a {type(source).__name__} can't be read by this offline store; "
        f"expected a DeltaTableSource or a FileSource of parquet or Delta"
    )
