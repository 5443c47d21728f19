"""Checkpoints of partitions, on a path or any store that fsspec knows: written whole under another name, then renamed.

A checkpoint only saves time. Where it is missing, damaged or of another contract, the log is read again.
"""

from __future__ import annotations

import os
import uuid
from typing import Any, Final

import structlog
import zstandard

from feature_repo.errors import StoreError

_SUFFIX: Final = ".ckpt.zst"


class Checkpoints:
    """The checkpoints of one consumer group.

    Parameters
    ----------
    root
        Folder or fsspec URL, as ``VOLSPIKE_STATE``.
    group
        Consumer group.
    topic
        The raw log.

    Raises
    ------
    StoreError
        If the folder can't be made.
    """

    def __init__(self, root: str, group: str, topic: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self._fs: Any
        self._fs, base = url_to_fs(root)
        self.folder = f"{base.rstrip('/')}/{group}/{topic}"
        try:
            self._fs.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise self._refused("made", error) from error

    def path(self, partition: int) -> str:
        """Return where a partition's checkpoint stands."""
        return f"{self.folder}/{partition}{_SUFFIX}"

    def write(self, partition: int, state: bytes) -> None:
        """Replace a partition's checkpoint.

        Raises
        ------
        StoreError
            If it can't be written; the old one stays.
        """
        path = self.path(partition)
        unfinished = f"{path}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        packed = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(state)
        try:
            with self._fs.open(unfinished, "wb") as file:
                file.write(packed)
            self._fs.mv(unfinished, path)
        except OSError as error:
            if self._fs.exists(unfinished):
                self._fs.rm(unfinished)
            raise self._refused("written", error) from error

    def read(self, partition: int) -> bytes | None:
        """Return a partition's state, None where there is none, or it is damaged or can't be read."""
        try:
            with self._fs.open(self.path(partition), "rb") as file:
                return zstandard.ZstdDecompressor().decompress(file.read())
        except FileNotFoundError:
            return None
        except (OSError, zstandard.ZstdError) as error:
            structlog.get_logger("featurize").warning("checkpoint", partition=partition, error=str(error))
            return None

    def _refused(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"checkpoints in {self.folder} can't be {what}: {error.strerror or error}; free space, or set "
            "VOLSPIKE_STATE to a folder or fsspec URL that can be written"
        )
