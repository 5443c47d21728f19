"""The ledger of what the simulated exchange sent: NDJSON, one line a message or an event, readable after a kill.

::

    {"c":1,"i":17,"t":1764547200012345678,"y":"match","p":"BTC-USD","k":"900000001","h":3735928559,"q":41,"f":"drop"}
    {"c":1,"t":1764547200012345678,"e":"close","why":"slow client"}

c connection · i index of the message on it, from 1, absent where it wasn't sent · t time handed to the socket, ns · y
kind · p product · k key: trade id, sequence of a heartbeat, time of an update · h CRC-32 of the bytes sent · q Advanced
Trade ``sequence_num`` · f fault injected. Lines of an event have ``e``: open, subscribe, close, or a fault of the whole
connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from feature_repo.errors import InputError, StoreError

SYNC_S: Final = 0.1
"""Lines wait at most this long in the process: what a kill may cost. What the system holds survives it."""


class Record(NamedTuple):
    """One message as it goes into the ledger: ``number`` and ``crc`` 0 where it wasn't sent, ``seq`` −1 without one."""

    connection: int
    number: int
    kind: str
    product: str
    key: str
    crc: int
    seq: int
    fault: str


class Entry(
    msgspec.Struct,
    rename={
        "connection": "c",
        "index": "i",
        "time_ns": "t",
        "kind": "y",
        "product": "p",
        "key": "k",
        "crc": "h",
        "seq": "q",
        "fault": "f",
        "event": "e",
    },
):
    """A line of the ledger, read back.

    Attributes
    ----------
    connection
        Number of the connection, from 1.
    time_ns
        When it was handed to the socket, or happened, ns UTC.
    index
        Of the message on its connection, from 1; None where it wasn't sent.
    kind, product, key, crc, seq, fault, event, why
        As in the module's docstring; empty or None where absent.
    """

    connection: int
    time_ns: int
    index: int | None = None
    kind: str = ""
    product: str = ""
    key: str = ""
    crc: int | None = None
    seq: int | None = None
    fault: str = ""
    event: str = ""
    why: str = ""

    @property
    def sent(self) -> bool:
        """Whether it is a message that went out."""
        return self.index is not None


class Ledger:
    """Write the ledger; without a path, nothing is kept.

    Parameters
    ----------
    path
        File, appended to.

    Raises
    ------
    StoreError
        On entering, if the file can't be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file = -1
        self._lines: list[str] = []

    @property
    def kept(self) -> bool:
        """Whether anything is kept."""
        return self.path is not None

    def __enter__(self) -> Self:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise StoreError(f"ledger {self.path} can't be written ({error}): choose another place") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def add(self, records: Iterable[Record], time_ns: int) -> None:
        """Note messages that were handed to a socket, or not, at one time."""
        if self._file < 0:
            return
        at = f',"t":{time_ns}'
        for connection, number, kind, product, key, crc, seq, fault in records:
            sent = f',"i":{number},"h":{crc}' if number else ""
            counted = f',"q":{seq}' if seq >= 0 else ""
            injected = f',"f":"{fault}"' if fault else ""
            self._lines.append(
                f'{{"c":{connection}{at}{sent},"y":"{kind}","p":"{product}","k":"{key}"{counted}{injected}}}\n'
            )

    def event(self, connection: int, event: str, time_ns: int, why: str = "") -> None:
        """Note what happened to a connection."""
        if self._file < 0:
            return
        line = {"c": connection, "t": time_ns, "e": event, **({"why": why} if why else {})}
        self._lines.append(msgspec.json.encode(line).decode() + "\n")

    def sync(self) -> None:
        """Hand what waits to the system, from where a kill of this process can't take it back.

        Raises
        ------
        StoreError
            If the disk is full or gone.
        """
        if not self._lines or self._file < 0:
            return
        data = "".join(self._lines).encode()
        self._lines.clear()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StoreError(
                f"ledger {self.path} can't be written ({error}): free space or leave --ledger out"
            ) from error


def read_ledger(path: Path) -> list[Entry]:
    """Read a ledger back; a last line cut short by a kill is left out.

    Raises
    ------
    InputError
        If the file can't be read, or a line before the last is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"ledger {path} can't be read: {error.strerror}") from error
    try:
        return msgspec.json.Decoder(Entry).decode_lines(data[: data.rfind(b"\n") + 1])
    except msgspec.MsgspecError as error:
        raise InputError(
            f"ledger {path} is damaged ({error}); expected the file that `volspike exchange` wrote"
        ) from error
