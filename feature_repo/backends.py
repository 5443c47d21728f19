"""Feast's own registry file and Redis store, at the addresses of :mod:`infra.settings`.

A ``feature_store.yaml`` can only expand environment variables that are set. These two classes change nothing but the
address (and how a file is written), so that ``feast`` in a plain shell, ``volspike`` and the service agree.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, cast

from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.DataSource_pb2 import DataSource
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig
from google.protobuf.message import DecodeError, Message
from pydantic import Field

from feature_repo.errors import ContractError, StoreError
from infra.settings import settings

_PATIENCE = {"socket_connect_timeout": "2", "socket_timeout": "5", "retry": "null"}
"""Options added to a connection string that doesn't set them. redis-py waits for ever for a host that drops packets,
and sleeps up to 10 s between three tries where nobody listens: a writer must know within a couple of seconds."""


def connection_string() -> str:
    """Address of Redis in Feast's form, ``host:port,option=value``, with bounds on waiting.

    Examples
    --------
    >>> "socket_timeout=" in connection_string()
    True
    """
    given = settings().redis
    named = {part.split("=", 1)[0] for part in given.split(",") if "=" in part}
    return ",".join([given, *(f"{name}={value}" for name, value in _PATIENCE.items() if name not in named)])


class RedisFromSettingsOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Configuration of Feast's Redis store whose default address is that of the settings."""

    type: Literal["feature_repo.backends.RedisFromSettingsOnlineStore"] = (
        "feature_repo.backends.RedisFromSettingsOnlineStore"
    )
    connection_string: str = Field(default_factory=connection_string)


class RedisFromSettingsOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """Feast's Redis online store with another default address, that refuses what the offline table refuses too."""

    def online_write_batch(self, config: Any, table: Any, data: Any, progress: Any) -> None:
        """Write rows, or none of them where one holds infinity: a push comes here before the offline table sees it."""
        for _, values, _, _ in data:
            for name, value in values.items():
                if value.WhichOneof("val") == "double_val" and math.isinf(value.double_val):
                    raise ContractError(f"view {table.name}: {name} holds infinity; expected a number or null")
        super().online_write_batch(config, table, data, progress)


class DataFolderRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """Feast's registry file as ``<data>/registry.db``, replaced atomically and only where something changed.

    Parameters
    ----------
    registry_config
        Registry part of ``feature_store.yaml``; an absolute ``path`` in it wins over the settings.
    repo_path
        Folder of ``feature_store.yaml``.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        if not Path(registry_config.path).is_absolute():
            self._filepath = settings().data / "registry.db"

    def get_registry_proto(self) -> Registry:
        """Read the registry; StoreError where the file is damaged."""
        try:
            return cast(Registry, super().get_registry_proto())
        except DecodeError as error:
            raise StoreError(
                f"{self._filepath} is no registry of Feast ({error}); delete it and run `feast apply` in feature_repo/"
            ) from error

    def _write_registry(self, registry_proto: Registry) -> None:
        # Feast stamps and rewrites the file even when it has nothing to say; an unchanged registry keeps its bytes.
        if self._filepath.exists() and _meaning(self.get_registry_proto()) == _meaning(registry_proto):
            return
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        target, self._filepath = self._filepath, self._filepath.with_name(f".registry.{os.getpid()}.tmp")
        try:
            super()._write_registry(registry_proto)
            self._filepath.replace(target)
        finally:
            self._filepath.unlink(missing_ok=True)
            self._filepath = target


def _meaning(registry: Registry) -> dict[str, list[bytes]]:
    """What a registry says, whatever the order it says it in (that of a Python set) and when it was last asked."""
    copy = Registry()
    copy.CopyFrom(registry)
    copy.ClearField("version_id")
    copy.ClearField("last_updated")
    _forget_circumstance(copy)
    said = {}
    for field, value in copy.ListFields():
        many = field.message_type is not None and not isinstance(value, Message)
        said[field.name] = (
            sorted(v.SerializeToString(deterministic=True) for v in value) if many else [repr(value).encode()]
        )
    return said


def _forget_circumstance(message: Message) -> None:
    """Clear times of registration, and the class of a stock source, which Feast gives once and then leaves out."""
    if isinstance(message, DataSource) and message.type != DataSource.CUSTOM_SOURCE:
        message.ClearField("data_source_class_type")
    for field, value in message.ListFields():
        if field.name in {"created_timestamp", "last_updated_timestamp"}:
            message.ClearField(field.name)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in [value] if isinstance(value, Message) else value:
                _forget_circumstance(part)
