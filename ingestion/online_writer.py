"""The newest row of each product to Redis, at once: Feast's keys and bytes, mostly in one trip, an older row never.

Feast's own store reads a row's time, compares, then writes: a row that comes in between is lost, and each costs a
millisecond of Python. Here Redis watches the rows: it writes none where one was changed since its time was read, and
then the times are read again. What is watched and read for the next write comes with the answer to this one::

    MULTI  HSET BTC-USD …  HSET ETH-USD …  EXEC  WATCH BTC-USD ETH-USD  HGET BTC-USD time  HGET ETH-USD time

Of two rows with equal times the first stays, as with Feast. ADR 10 has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from feature_repo.errors import StoreError
from feature_repo.online_format import TIME_FIELD, decode_timestamp, entity_key, parse_connection, project_name
from infra.settings import ROOT, settings
from ingestion.kernel import Part
from ingestion.online_command import command, time_ns

TIMEOUT_S: Final = 5.0
"""How long a connection or an answer may take."""
WATCHED: Final = 100
"""Rows that are watched for the next write; of more products only those of the last one."""
TRIES: Final = 10
"""Writes of one row that other writers may come between, one after the other."""
_NONE: Final = -1
_UNREADABLE: Final = 1 << 63
_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


class OnlineWriter:
    """Writes rows as the kernel made them, from one thread; holds a connection, so make it once and keep it.

    Parameters
    ----------
    connection
        Redis in Feast's form, ``host:port[,password=…]``.
    project
        Feast project.

    Raises
    ------
    UsageError
        If the connection names no single host and port.
    """

    def __init__(self, connection: str, project: str) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options = parse_connection(connection)
        self._at = f"{options['host']}:{options['port']}"
        patience = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "retry": Retry(NoBackoff(), 0)}
        # Of the library the connection alone: address, password, TLS, and the protocol's answers.
        pool = Redis(**{**patience, **options}).connection_pool
        self._connection: Any = pool.make_connection()
        self._project = project
        self._held: dict[bytes, int] = {}
        """Key -> time in ns of the row that Redis holds, `_NONE` or `_UNREADABLE`; watched since it was read."""
        self._unread: dict[bytes, str] = {}
        """Key -> why its time can't be read."""

    def write(self, parts: Sequence[Part]) -> int:
        """Write the last row of each part.

        Parameters
        ----------
        parts
            Rows of one product each; those without a row are passed over.

        Returns
        -------
        int
            Products written, or left as they were because Redis has a row at least as new.

        Raises
        ------
        ContractError
            If a feature is infinite.
        StoreError
            If Redis is unreachable, or refuses; or if what it holds of a product can't be read: the others are written.
        """
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import RedisError
        from redis.exceptions import TimeoutError as Late

        rows = {
            entity_key(part.product_id, self._project): (time_ns(part), command(part, self._project))
            for part in parts
            if part.ints.shape[1]
        }
        if not rows:
            return 0
        try:
            try:
                self._write(rows)
            except (Lost, Late):  # at once again: the connection may have died with a Redis that is back
                self._write(rows)
        except (Lost, Late, OSError) as error:
            raise StoreError(
                f"online store: no answer from Redis at {self._at} ({error}); expected a running server. Start one "
                f"with `volspike up`, or set VOLSPIKE_REDIS_URL to host:port[,password=…]"
            ) from error
        except RedisError as error:
            raise StoreError(f"online store: Redis at {self._at} refused: {error}; see its log") from error
        return len(rows)

    def _write(self, rows: dict[bytes, tuple[int, bytes]]) -> None:
        just_read = not rows.keys() <= self._held.keys()
        if just_read:
            self._ask([], {*rows, *self._held})
        for _ in range(TRIES):
            newer = [row for key, (ns, row) in rows.items() if ns > self._held[key]]
            if newer and self._ask(newer, self._held if len(self._held) <= WATCHED else rows):
                break
            if not newer and just_read:
                break
            # Another writer came first, maybe to a row that is his now: from here on only these are watched. Or all are
            # old by what was read with the last write, and Redis may have been emptied since.
            just_read = True
            self._ask([], rows)
        else:
            raise StoreError(f"online store: other writers came first {TRIES} times; one featurizer writes a product")
        for key in rows:
            if key in self._unread:
                raise StoreError(f"online store: {self._unread[key]}")

    def _ask(self, newer: list[bytes], keys: Iterable[bytes]) -> bool:
        """Write rows, then watch rows and read their times; False where nothing was written, as one was changed.

        EXEC ends all watching, also where there is nothing to write.
        """
        keys, connection = list(keys), self._connection
        reads = connection.pack_commands([("WATCH", *keys), *(("HGET", key, TIME_FIELD) for key in keys)])
        try:
            connection.send_packed_command([b"".join((_MULTI, *newer, _EXEC, *reads))])
            for _ in ("MULTI", *newer):  # queued
                connection.read_response()
            written = connection.read_response()
            for answer in written or ():
                if isinstance(answer, Exception):
                    raise answer
            connection.read_response()
            self._held, self._unread = {}, {}
            for key in keys:
                self._held[key] = self._time(key)
        except BaseException:  # answers may be left unread
            connection.disconnect()
            self._held = {}
            raise
        return written is not None

    def _time(self, key: bytes) -> int:
        """Read the answer to the question for a row's time."""
        from redis.exceptions import ResponseError

        try:
            held = self._connection.read_response(disable_decoding=True)
            return _NONE if held is None else decode_timestamp(held)
        except (ResponseError, StoreError) as error:  # this row's own trouble: the others are written
            self._unread[key] = str(error)
            return _UNREADABLE


def default_writer() -> OnlineWriter:
    """Return a writer to the Redis of the settings."""
    return OnlineWriter(settings().redis, project_name(ROOT / "feature_repo"))
