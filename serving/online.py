"""Online reader: the newest row of a product, out of Redis, in the keys and bytes that Feast's Redis store writes.

Feast's own reader costs its import at each start and answers by position in an order that depends on
``PYTHONHASHSEED``. This one asks for the fields it wants by name; ``feature_repo/online_format.py`` has the format.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from feature_repo.errors import StoreError
from feature_repo.online_format import (
    TIME_FIELD,
    Value,
    decode_timestamp,
    decode_value,
    entity_key,
    every_key,
    field_key,
    parse_connection,
    product_of,
)

TIMEOUT_S: Final = 1.0
"""How long a connection or an answer may take: beyond, a 503 that says when to try again serves a client better."""
RESCAN_S: Final = 1.0
"""How old the list of products in the store may be where the newest row of all of them is asked for."""

@dataclass(frozen=True, slots=True)
class Row:
    """One product's newest row: its time (ns UTC, whole microseconds) and the values asked for, by name."""

    product_id: str
    time_ns: int
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Read:
    """What one read found: a row or None per product, and the newest row time over all products, where asked for."""

    rows: Mapping[str, Row | None]
    newest_ns: int | None


def _row(product: str, fields: Mapping[bytes, bytes], names: Sequence[str]) -> Row | None:
    time_raw = fields.get(TIME_FIELD)
    if not time_raw:
        return None
    return Row(product, decode_timestamp(time_raw), {name: decode_value(fields.get(field_key(name))) for name in names})


class OnlineReader:
    """Reads rows by name over one asynchronous connection pool; belongs to one event loop, recovers by itself.

    Parameters
    ----------
    connection
        Redis in Feast's form.
    project
        Feast project.
    """

    def __init__(self, connection: str, project: str) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Lost

        self._project = project
        patience = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
        # One more try, at once: a pooled connection may have died with a Redis that has long been back.
        again = {"retry": Retry(NoBackoff(), 1), "retry_on_error": [Lost]}
        self._client: Any = Redis(**{**patience, **parse_connection(connection), **again})
        self._products: tuple[str, ...] = ()
        self._scanned = float("-inf")

    async def read(self, products: Sequence[str], names: Sequence[str], *, newest: bool = False) -> Read:
        """Read the newest rows of products in one round trip.

        Parameters
        ----------
        products
            Product ids; repeats are read once.
        names
            Features wanted; those the store lacks come back None.
        newest
            Also find the newest row time over all products in the store.

        Raises
        ------
        StoreError
            If Redis is unreachable, refuses or holds what can't be decoded.
        """
        wanted = list(dict.fromkeys(products))
        others = [p for p in await self.products() if p not in wanted] if newest else []
        # The whole hash: to name a hundred fields is no quicker than to skip the few not asked for, and slower by far
        # where Redis keeps the hash as a list.
        commands: list[tuple[str | bytes, ...]] = [("HGETALL", entity_key(p, self._project)) for p in wanted]
        commands += [("HMGET", entity_key(p, self._project), TIME_FIELD) for p in others]
        replies = await self._execute(commands)
        found: list[dict[bytes, bytes]] = replies[: len(wanted)]
        rows = {p: _row(p, fields, names) for p, fields in zip(wanted, found, strict=True)}
        times = [row.time_ns for row in rows.values() if row]
        times += [decode_timestamp(raw) for (raw,) in replies[len(wanted) :] if raw]
        return Read(rows, max(times, default=None) if newest else None)

    async def products(self) -> tuple[str, ...]:
        """All products in the store, as of at most :data:`RESCAN_S` ago; StoreError as :meth:`read`."""
        if time.monotonic() - self._scanned > RESCAN_S:
            found: list[str] = []
            with _store_errors():
                async for key in self._client.scan_iter(match=every_key(self._project), count=1000):
                    found.append(product_of(key, self._project))
            self._products, self._scanned = tuple(sorted(found)), time.monotonic()
        return self._products

    async def ping(self) -> None:
        """Ask Redis whether it is there; StoreError where it isn't."""
        with _store_errors():
            await self._client.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _execute(self, commands: list[tuple[str | bytes, ...]]) -> list[Any]:
        with _store_errors():
            if len(commands) == 1:
                return [await self._client.execute_command(*commands[0])]
            pipe = self._client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute()
            return replies


class _store_errors:
    """Turn what the Redis client raises into a StoreError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        from redis.exceptions import RedisError

        if isinstance(error, RedisError | OSError):
            raise StoreError(
                f"the online store (VOLSPIKE_REDIS_URL or VOLSPIKE_REDIS_PORT) is unreachable: {error}; is Redis up?"
            ) from error
