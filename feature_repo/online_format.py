"""Feast's format of the online store in Redis: keys, fields and values, read and written without Feast.

Feast's own code costs its import (60 MB, 5 s and more) at each start, and a millisecond a row. The service reads and
the featurizer writes by this module; ADR 10 says why. ``tests/contract/test_online_reader.py`` and
``test_online_writer.py`` hold it equal to Feast's store, byte for byte.

::

    key    <u32 1> <u32 2> <u32 10> product_id <u32 2> <u32 length> BTC-USD volspike      (integers little endian)
    field  murmur3_32("spike_features:w60_return_std")          -> feast.types.Value as protobuf, empty where null
    field  "_ts:spike_features"                                 -> google.protobuf.Timestamp
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import mmh3
import yaml

from feature_repo.contract import ENTITY, VIEW
from feature_repo.errors import StoreError, UsageError

TIME_FIELD: Final = f"_ts:{VIEW}".encode()
"""Field that holds the row's time."""
DOUBLE: Final = b"\x29"
"""Tag of ``double_val`` (field 5, fixed 64); eight bytes little endian follow."""
_INT64: Final = b"\x20"
_STRING: Final = 2  # feast.types.ValueType.STRING
_PREFIX: Final = struct.pack("<III", 1, _STRING, len(ENTITY)) + ENTITY.encode()
_double = struct.Struct("<d").unpack_from

Value = float | int | None


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


def product_of(key: bytes, project: str) -> str:
    """Return the product of a key that :func:`entity_key` made."""
    return key[len(_PREFIX) + 8 : len(key) - len(project.encode())].decode()


def every_key(project: str) -> bytes:
    """Return the pattern of all products' keys."""
    return _PREFIX + b"*" + project.encode()


def encode_int(value: int) -> bytes:
    """Encode an ``int64_val`` (field 4, varint) of at least 0."""
    return _INT64 + _to_varint(value)


def encode_timestamp(ns: int) -> bytes:
    """Encode a ``google.protobuf.Timestamp`` of at least 0 ns; a part that is 0 is left out, as protobuf does."""
    seconds, nanos = divmod(ns, 1_000_000_000)
    return (b"\x08" + _to_varint(seconds) if seconds else b"") + (b"\x10" + _to_varint(nanos) if nanos else b"")


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


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
