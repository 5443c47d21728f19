"""The newest row of each product in Redis, by the short road: Feast's own online store, without its data frames.

``store.push`` of a row takes tens of milliseconds, nearly all of it in conversions. Here the protobuf values are made
straight from the row, and :meth:`RedisOnlineStore.online_write_batch` writes them: the same keys and bytes, and its
guard, by which an older row never replaces a newer one (of two with equal times the first stays).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_repo.contract import ENTITY, FEATURE_NAMES, FEATURES, VIEW
from feature_repo.errors import ContractError, StoreError
from infra.settings import settings

if TYPE_CHECKING:
    from feast import RepoConfig

TIME = "row_time"
CREATED = "created_timestamp"
_NEEDED = frozenset({ENTITY, TIME, CREATED, *FEATURE_NAMES})


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """What Redis holds of a product: the row's time and its values by name; None is null."""

    row_time: datetime
    values: dict[str, float | int | None]


class OnlineTable:
    """The view ``spike_features`` in one Redis; holds a connection, so make it once and keep it.

    Parameters
    ----------
    config
        Configuration of Feast; None means that of the settings.
    """

    def __init__(self, config: RepoConfig | None = None) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        from feature_repo.definitions import spike_features
        from feature_repo.store import config as from_settings

        self._config = from_settings() if config is None else config
        self._store = get_online_store_from_config(self._config.online_store)
        self._view = spike_features
        self._value, self._entity_key = Value, EntityKey
        encode: dict[str, Callable[[Any], Any]] = {"float64": self._double, "int64": self._int}
        self._columns = [(f.name, encode[f.dtype]) for f in FEATURES]
        nodes = [part for part in self._config.online_store.connection_string.split(",") if "=" not in part]
        self.address = ",".join(nodes)

    def write(self, rows: pa.Table) -> int:
        """Write the newest row of each product; see :func:`write_rows`."""
        lacking = sorted(_NEEDED.difference(rows.column_names))
        if lacking:
            raise ContractError(
                f"rows: no column {lacking[:5]} ({len(lacking)} lacking); expected the contract's columns"
            )
        rows = _newest(rows)
        if not rows.num_rows:
            return 0
        encoded = [
            (name, [None if x is None else encode(x) for x in rows.column(name).to_pylist()])
            for name, encode in self._columns
        ]
        data = [
            (
                self._key(product),
                {name: self._value() if values[i] is None else values[i] for name, values in encoded},
                row_time,
                created,
            )
            for i, (product, row_time, created) in enumerate(
                zip(*(rows.column(name).to_pylist() for name in (ENTITY, TIME, CREATED)), strict=True)
            )
        ]
        with self._reachable():
            self._store.online_write_batch(self._config, self._view, data, None)
        return len(data)

    def read(self, product_ids: Sequence[str], features: Sequence[str] = FEATURE_NAMES) -> dict[str, OnlineRow | None]:
        """Read rows by name; None where Redis has no row of a product. See :func:`read_online`."""
        keys = [self._key(product) for product in product_ids]
        with self._reachable():
            # Feast appends to the list of names it is given.
            found = self._store.online_read(self._config, self._view, keys, list(features))
        return {product: self._row(*answer) for product, answer in zip(product_ids, found, strict=True)}

    def clear(self) -> None:
        """Delete the view's rows of every product.

        Raises
        ------
        StoreError
            If Redis is unreachable.
        """
        with self._reachable():
            self._store.delete_table(self._config, self._view)

    def _key(self, product: str) -> Any:
        return self._entity_key(join_keys=[ENTITY], entity_values=[self._value(string_val=product)])

    def _row(self, row_time: datetime | None, values: dict[str, Any] | None) -> OnlineRow | None:
        # Feast answers a missing row with the epoch, not with None.
        if row_time is None or values is None or row_time.timestamp() == 0:
            return None
        kinds = {name: value.WhichOneof("val") for name, value in values.items()}
        return OnlineRow(row_time, {n: None if kinds[n] is None else getattr(v, kinds[n]) for n, v in values.items()})

    def _double(self, x: float) -> Any:
        if math.isinf(x):
            raise ContractError("rows: a feature is infinite; expected a number or null; drop that row")
        return None if math.isnan(x) else self._value(double_val=x)

    def _int(self, x: int) -> Any:
        return self._value(int64_val=x)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreError(
                f"online store: no answer from Redis at {self.address} ({error}); expected a running server. Start one "
                f"with `volspike up`, or set VOLSPIKE_REDIS_URL to host:port[,password=…]"
            ) from error


def write_rows(rows: pa.Table, *, store: OnlineTable | None = None) -> int:
    """Write the newest row of each product to Redis.

    Parameters
    ----------
    rows
        Columns of ``spike_features``, in any order of rows; further columns are left out. A null feature is stored as
        an empty value, so that an older value of it doesn't stay.
    store
        Connection to use; None means one per process, to the Redis of the settings.

    Returns
    -------
    int
        Products written, or left as they were because Redis has a row at least as new.

    Raises
    ------
    ContractError
        If a column is missing or a feature infinite.
    StoreError
        If Redis is unreachable.
    """
    return (store or default_table()).write(rows)


def read_online(
    product_ids: Sequence[str], features: Sequence[str] = FEATURE_NAMES, *, store: OnlineTable | None = None
) -> dict[str, OnlineRow | None]:
    """Read rows back as Feast's own store reads them, mapped by name.

    Raises
    ------
    StoreError
        If Redis is unreachable.
    """
    return (store or default_table()).read(product_ids, features)


def materialize(*, rebuild: bool = False, store: OnlineTable | None = None) -> dict[str, datetime]:
    """Write the newest row of each product from the offline table to Redis.

    Parameters
    ----------
    rebuild
        Delete the view's rows first: after a change of contract, or to take a row back that was stamped in the future.
    store
        Connection to use; None means one per process, to the Redis of the settings.

    Returns
    -------
    dict
        Product to the row time that Redis holds now, which is later than the table's where the live road was faster.

    Raises
    ------
    StoreError
        If there is no offline table, a part of it is damaged, or Redis is unreachable. With ``rebuild``, nothing is
        deleted before the new rows have been read.
    """
    table = store or default_table()
    rows = newest_offline()
    if rebuild:
        table.clear()
    table.write(rows)
    products = sorted(rows.column(ENTITY).to_pylist())
    return {product: row.row_time for product, row in table.read(products, ["mid"]).items() if row}


def newest_offline() -> pa.Table:
    """Newest row of each product in the offline table: entity, features and both timestamps."""
    from feature_repo.definitions import spike_table
    from feature_repo.offline_store import PolarsOfflineStore
    from feature_repo.store import config
    from ingestion import tables  # Delta Lake, which who only reads Redis does without

    tables.require_whole(VIEW)
    job = PolarsOfflineStore.pull_latest_from_table_or_query(
        config(), spike_table, [ENTITY], list(FEATURE_NAMES), TIME, CREATED
    )
    return job.to_arrow()


def default_table() -> OnlineTable:
    """Connection of this process to the Redis of the settings."""
    return _table_at(settings().redis)


@lru_cache(maxsize=4)
def _table_at(address: str) -> OnlineTable:
    return OnlineTable()


def _newest(rows: pa.Table) -> pa.Table:
    """Keep the row of greatest time of each product; of equals the last."""
    best: dict[str, tuple[int, int]] = {}
    times = rows.column(TIME).cast(pa.int64()).to_pylist()
    for i, (product, time) in enumerate(zip(rows.column(ENTITY).to_pylist(), times, strict=True)):
        if product not in best or time >= best[product][0]:
            best[product] = time, i
    return rows if len(best) == rows.num_rows else rows.take(sorted(i for _, i in best.values()))
