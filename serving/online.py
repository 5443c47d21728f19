"""Online reader: the newest row of a product, out of Redis, in the keys and bytes that Feast's Redis store writes.

Feast's own reader costs its import (5 s and more) at each start and answers by position in an order that depends on
``PYTHONHASHSEED``. This one asks for the fields it wants by name and needs nothing of Feast; ADR 10 says why, and
``tests/contract/test_online_reader.py`` holds it equal to ``store.get_online_features`` for every feature.

::

    key    <u32 1> <u32 2> <u32 10> product_id <u32 2> <u32 length> BTC-USD volspike      (integers little endian)
    field  murmur3_32("spike_features:w60_return_std")          -> feast.types.Value as protobuf, empty where null
    field  "_ts:spike_features"                                 -> google.protobuf.Timestamp
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import mmh3
import yaml

from feature_repo.contract import ENTITY, VIEW
from feature_repo.errors import StoreError, UsageError

TIMEOUT_S: Final = 1.0
"""How long a connection or an answer may take: beyond, a 503 that says when to try again serves a client better."""
RESCAN_S: Final = 1.0
"""How old the list of products in the store may be where the newest row of all of them is asked for."""

_TS_FIELD: Final = f"_ts:{VIEW}".encode()
_STRING: Final = 2  # feast.types.ValueType.STRING
_PREFIX: Final = struct.pack("<III", 1, _STRING, len(ENTITY)) + ENTITY.encode()
_double = struct.Struct("<d").unpack_from

Value = float | int | None


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


def project_name(repo: Path) -> str:
    """Name of the Feast project, which ends every key.

    Parameters
    ----------
    repo
        Folder with ``feature_store.yaml``.

    Raises
    ------
    StoreError
        If the file is missing or names no project.
    """
    path = repo / "feature_store.yaml"
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["project"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: no project name could be read ({type(error).__name__}); restore the file") from error


def entity_key(product_id: str, project: str) -> bytes:
    """Key of a product's hash: entity key serialization version 3, then the project."""
    encoded = product_id.encode()
    return _PREFIX + struct.pack("<II", _STRING, len(encoded)) + encoded + project.encode()


@lru_cache(maxsize=1024)
def field_key(feature: str) -> bytes:
    """Field of a feature in the hash."""
    return struct.pack("<I", mmh3.hash(f"{VIEW}:{feature}", signed=False))


def decode_value(raw: bytes | None) -> Value:
    """Decode a ``feast.types.Value`` that holds a number; absent, empty and ``null_val`` are None.

    Raises
    ------
    StoreError
        If it holds anything but a number.
    """
    if not raw:
        return None
    tag = raw[0]
    if tag == 0x29 and len(raw) == 9:  # double_val = 5, fixed 64
        number: float = _double(raw, 1)[0]
        return number
    if tag in (0x20, 0x18):  # int64_val = 4, int32_val = 3
        return _signed(_varint(raw, 1)[0])
    if tag == 0x35 and len(raw) == 5:  # float_val = 6, fixed 32
        return float(struct.unpack_from("<f", raw, 1)[0])
    if tag == 0x68:  # null_val = 13
        return None
    raise StoreError(f"the online store holds a value that is no number ({raw[:12].hex()}); materialize again")


def decode_timestamp(raw: bytes) -> int:
    """Decode a ``google.protobuf.Timestamp`` to ns."""
    seconds, nanos, at = 0, 0, 0
    while at < len(raw):
        tag = raw[at]
        value, at = _varint(raw, at + 1)
        if tag == 0x08:
            seconds = _signed(value)
        elif tag == 0x10:
            nanos = value
        else:
            raise StoreError(f"the online store holds a damaged row time ({raw[:16].hex()}); materialize again")
    return seconds * 1_000_000_000 + nanos


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw):
            raise StoreError(f"the online store holds a cut-off number ({raw[:12].hex()}); materialize again")
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def parse_connection(connection: str) -> dict[str, Any]:
    """Split Feast's connection string, ``host:port[,option=value…]``, into arguments of ``redis.Redis``.

    Raises
    ------
    UsageError
        If it names no single host and port.
    """
    parts = [part for part in connection.split(",") if part]
    nodes = [part for part in parts if "=" not in part]
    host, _, port = nodes[0].rpartition(":") if len(nodes) == 1 else ("", "", "")
    if not host or not port.isdigit():
        raise UsageError(f"VOLSPIKE_REDIS_URL must be host:port[,password=…], was {nodes}; set one host and port")
    options: dict[str, Any] = {}
    for part in parts:
        name, equals, text = part.partition("=")
        if equals:
            try:
                options[name] = json.loads(text)
            except json.JSONDecodeError:
                options[name] = text
    return {**options, "host": host, "port": int(port)}


def _row(product: str, fields: Mapping[bytes, bytes], names: Sequence[str]) -> Row | None:
    time_raw = fields.get(_TS_FIELD)
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
        # The whole hash: to name a hundred fields costs more, here and in Redis, than to skip the few not asked for.
        commands: list[tuple[str | bytes, ...]] = [("HGETALL", entity_key(p, self._project)) for p in wanted]
        commands += [("HMGET", entity_key(p, self._project), _TS_FIELD) for p in others]
        replies = await self._execute(commands)
        found: list[dict[bytes, bytes]] = replies[: len(wanted)]
        rows = {p: _row(p, fields, names) for p, fields in zip(wanted, found, strict=True)}
        times = [row.time_ns for row in rows.values() if row]
        times += [decode_timestamp(raw) for (raw,) in replies[len(wanted) :] if raw]
        return Read(rows, max(times, default=None) if newest else None)

    async def products(self) -> tuple[str, ...]:
        """All products in the store, as of at most :data:`RESCAN_S` ago; StoreError as :meth:`read`."""
        if time.monotonic() - self._scanned > RESCAN_S:
            suffix = self._project.encode()
            found: list[str] = []
            with _store_errors():
                async for key in self._client.scan_iter(match=_PREFIX + b"*" + suffix, count=1000):
                    found.append(key[len(_PREFIX) + 8 : len(key) - len(suffix)].decode())
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
