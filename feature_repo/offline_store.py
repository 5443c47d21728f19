"""Feast's offline store over Delta tables and parquet, with as-of joins by :mod:`feature_repo.asof`.

The stores that come with Feast lose rows on ties or ask for tens of gigabytes on a day of ticks; this one answers every
asked row exactly once, in the order asked, and holds the answer and little more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.utils import compute_non_entity_date_range

from feature_repo.asof import TIME, asof_rows
from feature_repo.entities import given, nanoseconds_of, of_range
from feature_repo.errors import ContractError, InputError
from feature_repo.retrieval import PolarsRetrievalJob, ViewColumns, between, fetch, join, known_rows
from feature_repo.source import scan, tie_columns
from feature_repo.writing import append_rows


class PolarsOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The store has no options: tables lie where :mod:`infra.settings` says."""

    type: Literal["feature_repo.offline_store.PolarsOfflineStore"] = "feature_repo.offline_store.PolarsOfflineStore"


class PolarsOfflineStore(OfflineStore):  # type: ignore[misc]
    """Reads Delta tables and parquet files through polars; appends to Delta tables."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Join features to asked rows as they could have been known at each row's time.

        Parameters
        ----------
        entity_df
            Join keys and times (pandas, polars or Arrow), any further columns; or None for every row of the views in
            [start_date, end_date].
        filter_by_created_timestamp
            Leave out rows created after the asked time.

        Returns
        -------
        RetrievalJob
            The asked rows, all and in order, with a column per feature; null where nothing was valid.

        Raises
        ------
        InputError
            If ``entity_df`` is SQL, lacks a key or its times, or has a column named like a feature.
        StoreError
            If a table does not exist.
        """
        views = [ViewColumns.of(view, feature_refs, full_feature_names, config.repo_path) for view in feature_views]
        if entity_df is None:
            asked = of_range(views, *compute_non_entity_date_range(feature_views, start_date, end_date))
        else:
            asked = given(entity_df)
        names = [name for view in views for _, name in view.features]
        taken = sorted(set(names) & set(asked.table.column_names))
        if taken or len(set(names)) < len(names):
            raise InputError(
                f"features: {taken or 'two of them'} would stand twice in the answer; rename the entity column, "
                f"or ask with full_feature_names=True"
            )
        for view in views:
            asked.require([name for _, name in view.keys])

        def evaluate() -> pa.Table:
            table = asked.table
            for view in views:
                keys = asked.asked([name for _, name in view.keys])
                for name, column in join(keys, view, created_cut=filter_by_created_timestamp):
                    table = table.append_column(name, column)
            return table

        first, last = asked.span()
        return PolarsRetrievalJob(
            evaluate,
            full_feature_names=full_feature_names,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in asked.table.column_names if name != asked.time],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
            repo=config.repo_path,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Take the newest row of each key in [start_date, end_date]: what belongs into the online store."""

        def evaluate() -> pa.Table:
            source = scan(data_source, config.repo_path)
            rows = between(source, timestamp_field, _moment(start_date), _moment(end_date))
            ties = tie_columns(data_source)
            keys = [(name, name) for name in join_key_columns]
            known = known_rows(rows, keys, timestamp_field, created_timestamp_column, ties)
            newest = known.group_by(join_key_columns, maintain_order=True).agg(pl.col(TIME).max())
            if not join_key_columns:
                newest = known.select(pl.col(TIME).max())
            chosen = asof_rows(newest, known, join_key_columns, ties=ties).drop_nulls()
            columns = _unique(join_key_columns, feature_name_columns, [timestamp_field, created_timestamp_column])
            table = pa.table(dict(fetch(rows, [(c, c) for c in columns], chosen, known.height)))
            if not join_key_columns:
                table = table.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * table.num_rows))
            return table

        return PolarsRetrievalJob(evaluate, repo=config.repo_path)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Take every row in [start_date, end_date], in the order written."""

        def evaluate() -> pa.Table:
            source = scan(data_source, config.repo_path)
            rows = between(source, timestamp_field, _moment(start_date), _moment(end_date))
            columns = _unique(join_key_columns, feature_name_columns, [timestamp_field, created_timestamp_column])
            return rows.select(columns).collect().to_arrow(compat_level=pl.CompatLevel.oldest())

        return PolarsRetrievalJob(evaluate, repo=config.repo_path)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's Delta table in one commit; rows whose id it holds already are left out."""
        append_rows(feature_view.batch_source, table, config.repo_path)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Refuse: the service logs its answers as the tables ``predictions`` and ``outcomes``."""
        raise ContractError(
            "logging_config: this offline store keeps no feature logs; expected None. The service logs what it "
            "answered, and on which row, in the table predictions"
        )


def _moment(value: datetime | None) -> int | None:
    return None if value is None else nanoseconds_of(value)


def _unique(*names: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(name for part in names for name in part if name))
