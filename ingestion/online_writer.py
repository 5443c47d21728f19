"""The newest row of each product to Redis, at once: Feast's keys and bytes, in one round trip, an older row never.

Feast's own store reads a row's time, compares, then writes: a row that comes in between is lost, and each costs a
millisecond of Python. Here Redis itself compares and writes, in a script, which nothing comes between; of two rows with
equal times the first stays, as with Feast. ADR 10 has the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from feature_repo.contract import FEATURE_NAMES, FEATURES
from feature_repo.errors import ContractError, StoreError
from feature_repo.online_format import (
    DOUBLE,
    TIME_FIELD,
    encode_int,
    encode_timestamp,
    entity_key,
    field_key,
    parse_connection,
    project_name,
)
from infra.settings import ROOT, settings
from ingestion.kernel import Part
from ingestion.kernel.step import R_TIME_US

TIMEOUT_S: Final = 5.0
"""How long a connection or an answer may take."""
_GUARD: Final = """
local held = redis.call('HGET', KEYS[1], ARGV[3])
if held then
    local part = {0, 0}  -- seconds, nanos: the fields of a protobuf Timestamp, varints both
    local at = 1
    while at <= #held do
        local which, value, scale = math.floor(held:byte(at) / 8), 0, 1
        repeat
            at = at + 1
            value = value + held:byte(at) % 128 * scale
            scale = scale * 128
        until held:byte(at) < 128
        part[which] = value
        at = at + 1
    end
    local seconds, nanos = tonumber(ARGV[1]), tonumber(ARGV[2])
    if seconds < part[1] or (seconds == part[1] and nanos <= part[2]) then
        return 0
    end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
"""
_FIELDS: Final = [field_key(name) for name in FEATURE_NAMES]
_WHOLE: Final = [i for i, feature in enumerate(FEATURES) if feature.dtype == "int64"]
_DOUBLES: Final = np.dtype([("tag", "S1"), ("value", "<f8")])


class OnlineWriter:
    """Writes rows as the kernel made them; holds a connection, so make it once and keep it.

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
        patience = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
        # One more try, at once: a pooled connection may have died with a Redis that is back. Whoever wants more tries
        # again with the newest row, which this one isn't any more.
        self._redis: Any = Redis(**{**patience, **options, "retry": Retry(NoBackoff(), 1)})
        self._project = project
        self._script = ""

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
            If Redis is unreachable.
        """
        from redis.exceptions import NoScriptError, RedisError

        rows = [(entity_key(p.product_id, self._project), *_arguments(p)) for p in parts if p.ints.shape[1]]
        if not rows:
            return 0
        try:
            try:
                self._send(rows)
            except NoScriptError:  # the first time, and of a Redis that was started anew
                self._script = self._redis.script_load(_GUARD)
                self._send(rows)
        except (RedisError, OSError) as error:
            raise StoreError(
                f"online store: no answer from Redis at {self._at} ({error}); expected a running server. Start one "
                f"with `volspike up`, or set VOLSPIKE_REDIS_URL to host:port[,password=…]"
            ) from error
        return len(rows)

    def _send(self, rows: Sequence[tuple[Any, ...]]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for row in rows:
            pipe.evalsha(self._script or "0" * 40, 1, *row)
        pipe.execute()


def _arguments(part: Part) -> list[Any]:
    """Return the script's arguments: seconds, nanos, then field and value in turn, the row's time first."""
    numbers = part.numbers[:, -1]
    if np.isinf(numbers).any():
        name = FEATURE_NAMES[int(np.isinf(numbers).argmax())]
        raise ContractError(f"rows: {name} is infinite; expected a number or null; drop that row")
    packed = np.empty(len(numbers), _DOUBLES)
    packed["tag"], packed["value"] = DOUBLE, numbers
    raw = packed.tobytes()
    values = [raw[at : at + 9] for at in range(0, len(raw), 9)]
    for i in _WHOLE:
        if numbers[i] == numbers[i]:
            values[i] = encode_int(int(numbers[i]))
    for i in np.flatnonzero(np.isnan(numbers)).tolist():
        values[i] = b""
    ns = int(part.ints[R_TIME_US, -1]) * 1000
    arguments: list[Any] = [*divmod(ns, 1_000_000_000), TIME_FIELD, encode_timestamp(ns)]
    for pair in zip(_FIELDS, values, strict=True):
        arguments += pair
    return arguments


def default_writer() -> OnlineWriter:
    """Return a writer to the Redis of the settings."""
    return OnlineWriter(settings().redis, project_name(ROOT / "feature_repo"))
