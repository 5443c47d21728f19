"""How soon a message of the exchange is a row in Redis, over the whole chain, each part a process of its own.

::

    exchange ──► ingest ──► broker ──► featurize ──► Redis ◄── polled here every half millisecond
       │ ledger: when each ticker was handed to the socket         │ when a row at least as new was first seen
       └──────────────── the k-th ticker of a product makes its k-th ticker row ────────────────┘

Caveats: all processes share the machine with each other and with whatever else runs; the poll's own distance is in the
figures. The market is generated and squeezed to 1,000 messages a second of three products. A row that a newer one
replaced between two looks counts from the newer one, so nothing is left out. Stretches before the group has settled
aren't measured.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.benchmarks.live_parts import Place, Process, address_of, figure, place, volspike, wait

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
QUICK = {"seconds": 10.0}
SPEED = 1_000 / 34
"""The generated market of three products has 34 messages a second."""
SETTLE_S = 5.0
POLL_S = 0.0005
VIEW_TIME = b"_ts:spike_features"


def run(seconds: float = 60.0) -> list[dict[str, Any]]:
    """Measure, and return one object per figure.

    Parameters
    ----------
    seconds
        Of the stretch that is measured, on each broker.
    """
    found = []
    for kind, p50_ms, p99_ms in (("embedded", 15.0, 40.0), ("real", None, 25.0)):
        delays, _ = chain(kind, seconds)
        name = f"send to row readable, {kind} broker"
        found.append(figure(f"{name}, p50", float(np.percentile(delays, 50)), "ms", p50_ms, "<="))
        found.append(figure(f"{name}, p99", float(np.percentile(delays, 99)), "ms", p99_ms, "<="))
    delays, wrong = chain("real", max(15.0, seconds / 2), kill=True)
    found.append(figure("partition moved after kill -9: latest row", float(delays.max()) / 1000, "s", 5.0, "<="))
    found.append(figure("its rows lost or doubled", wrong, "rows", 0.0, "<="))
    return found


def chain(kind: str, seconds: float, *, kill: bool = False) -> tuple[np.ndarray[Any, Any], int]:
    """Run the chain; return the delays in ms of the tickers measured, and the rows lost or doubled.

    Parameters
    ----------
    kind
        Broker.
    seconds
        Measured stretch.
    kill
        Run two featurizers and kill one a third into the stretch.
    """
    with place(kind) as there:
        environment = there.environment()
        ledger = there.data / "ledger.ndjson"
        jobs: list[Process] = []
        try:
            jobs += [Process(volspike("featurize"), environment) for _ in range(1 + kill)]
            wait(lambda: _members(there) == 1 + kill, "the featurizers to join their group")
            feed = volspike(
                "exchange", "--port", "0", "--speed", f"{SPEED:.3f}", "--times", "squeeze", "--ledger", str(ledger)
            )
            jobs.append(Process(feed, there.environment("exchange")))
            url = f"ws://{address_of(there.data / 'exchange', 'exchange')}"
            ingest = Process(volspike("ingest", "--feed", url, "--pair", ",".join(PRODUCTS)), environment)
            jobs.append(ingest)
            seen = Poll(there.redis)
            wait(lambda: seen.look() >= len(PRODUCTS), "rows of all products")
            begin_ns = time.time_ns() + int(SETTLE_S * 1e9)
            end_ns = begin_ns + int(seconds * 1e9)
            kill_ns = begin_ns + int(seconds * 1e9) // 3 if kill else 1 << 62
            while time.time_ns() < end_ns:
                seen.look()
                if time.time_ns() > kill_ns:
                    jobs[0].kill()
                    kill_ns = 1 << 62
                time.sleep(POLL_S)
            ingest.end()
            seen.until(time.monotonic() + 1.0)
            jobs[kill].end()
        finally:
            for job in jobs:
                job.kill()
        return _delays(there.data / "data", ledger, seen, begin_ns, end_ns)


def _members(there: Place) -> int:
    """Featurizers that have been given partitions."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    from infra.settings import settings

    client = AdminClient({"bootstrap.servers": there.servers, "log_level": 0})
    if there.kind == "embedded":  # it doesn't describe groups; its one member reads from the beginning anyhow
        return 1
    try:
        told = client.describe_consumer_groups([settings().group], request_timeout=5)[settings().group].result()
    except KafkaException:  # no such group yet, or no coordinator yet: asked again
        return 0
    return sum(1 for m in told.members if m.assignment and m.assignment.topic_partitions)


class Poll:
    """What Redis showed of each product's newest row, and when."""

    def __init__(self, address: str) -> None:
        import redis
        from feast.infra.online_stores.helpers import _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        from feature_repo.contract import ENTITY
        from feature_repo.store import config

        host, port = address.split(":")
        feast = config()
        keys = [
            _redis_key(
                feast.project,
                EntityKey(join_keys=[ENTITY], entity_values=[Value(string_val=product)]),
                feast.entity_key_serialization_version,
            )
            for product in PRODUCTS
        ]
        self._connection = redis.Connection(host=host, port=int(port))
        self._connection.connect()
        self._question = b"".join(b"".join(self._connection.pack_command("HGET", key, VIEW_TIME)) for key in keys)
        self._last: list[bytes | None] = [None] * len(PRODUCTS)
        self._seen: dict[str, list[tuple[bytes, int]]] = {product: [] for product in PRODUCTS}

    def look(self) -> int:
        """Look once; return how many products have a row.

        The bytes of the question never change and those of the answers are read at the end: a look takes little of
        the cores that the chain runs on.
        """
        self._connection.send_packed_command([self._question])
        found = [self._connection.read_response(disable_decoding=True) for _ in PRODUCTS]
        now = time.time_ns()
        for i, (product, value) in enumerate(zip(PRODUCTS, found, strict=True)):
            if value is not None and value != self._last[i]:
                self._last[i] = value
                self._seen[product].append((value, now))
        return sum(value is not None for value in found)

    def seen(self, product: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return int64[2, looks]: times in µs of the rows that were the newest, and in ns when each was first seen."""
        from google.protobuf.timestamp_pb2 import Timestamp

        stamps = ((Timestamp.FromString(value), when) for value, when in self._seen[product])
        return np.array([(s.seconds * 1_000_000 + s.nanos // 1000, when) for s, when in stamps], np.int64).T

    def until(self, end: float) -> None:
        """Look until then."""
        while time.monotonic() < end:
            self.look()
            time.sleep(POLL_S)


def _delays(
    data: Path, ledger: Path, seen: Poll, begin_ns: int, end_ns: int
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], int]:
    """Match tickers sent with rows made, product by product, and rows with when they were seen."""
    from ingestion import tables
    from ingestion.exchange import read_ledger

    rows = tables.scan("spike_features", root=data / "tables").filter(pl.col("trigger") == "ticker")
    table = rows.select("product_id", "session", "n", "k", pl.col("row_time").cast(pl.Int64)).collect()
    wrong = int(table.select("product_id", "session", "n", "k").is_duplicated().sum())
    sent = [e for e in read_ledger(ledger) if e.sent and e.kind == "ticker"]
    delays = []
    for product in PRODUCTS:
        at = np.array([e.time_ns for e in sent if e.product == product], np.int64)
        made = table.filter(pl.col("product_id") == product).sort("n")["row_time"].to_numpy()
        times, when = seen.seen(product)
        # What was sent while ingest ended may be logged or not; before that each ticker has its row.
        wrong += max(0, int((at < end_ns).sum()) - len(made))
        count = min(len(at), len(made))
        at, made = at[:count], made[:count]
        chosen = (at >= begin_ns) & (at < end_ns - 500_000_000)
        first = np.searchsorted(times, made[chosen])
        inside = first < len(times)
        delays.append((when[first[inside]] - at[chosen][inside]) / 1e6)
    return np.concatenate(delays), wrong


os.environ.setdefault("VOLSPIKE_LOG_LEVEL", "warning")
