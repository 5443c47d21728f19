"""How fast, how evenly shared and in how much memory the raw log becomes rows (``bench ingest``: the way into the log).

Caveats: the market is generated (per product and second 4 tickers, 4 matches, 4 level-2 updates and a heartbeat; with
status records and keyframes, as ingested). Broker, Redis and everything measured share the machine, and so does
whatever else runs on it: processor time stands beside each rate. The embedded broker keeps 5 MiB a partition, less than
any of this needs, so the topic lies in a real one. A featurizer is one thread of Python besides the client's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ingestion import cluster, kafka, tables
from ingestion.topics import FEATURES, QUOTES, Envelope, headers, partition_of
from tests.benchmarks.live_parts import (
    Place,
    Process,
    cpu_s,
    figure,
    place,
    rss_bytes,
    running,
)

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
LOG_SECONDS = 7_200
QUICK = {"seconds": 900, "hours": 0.05}
_DECODER = msgspec.msgpack.Decoder(list[tuple[str, int, int, str, str, str, bytes]])


def run(seconds: int = LOG_SECONDS, hours: float = 1.0) -> list[dict[str, Any]]:
    """Measure, and return one object per figure.

    Parameters
    ----------
    seconds
        Length of the market behind the topic that is read.
    hours
        At 1,000 messages a second, behind the measurement of memory.
    """
    found: list[dict[str, Any]] = []
    with place("real") as there:
        files = write_logs(there.data, seconds)
        found += from_topic(there, files)
        found += from_files(files)
        found += memory(there, int(hours * 3_600_000))
    return found


def write_logs(folder: Path, seconds: int) -> list[Path]:
    """Write a log for each of two partitions, of as many messages: the same market under names that belong there."""
    from tests import log_kit

    files = []
    log = log_kit.with_keyframes(log_kit.market(1, seconds, PRODUCTS))
    for index in range(2):
        path = folder / f"log-{index}.msgpack"
        names = {product: _name_in(index, product) for product in PRODUCTS}
        path.write_bytes(msgspec.msgpack.encode([_renamed(e, names) for e in log]))
        files.append(path)
    return files


def _name_in(partition: int, product: str) -> str:
    """Return a name of the product that goes to this of two partitions."""
    base = product.partition("-")[0]
    names = (f"{base}-{quote}" for quote in ("USD", "EUR", "GBP", "USDT", "USDC", "BTC", "ETH", "JPY", "CHF"))
    return next(name for name in names if partition_of(name, 2) == partition)


def _renamed(e: Envelope, names: Mapping[str, str]) -> Envelope:
    raw = e.raw
    for product, name in names.items():
        raw = raw.replace(f'"{product}"'.encode(), f'"{name}"'.encode())
    return e._replace(product_id=names.get(e.product_id, e.product_id), raw=raw)


def read_log(path: Path) -> list[Envelope]:
    """Read a log that :func:`write_logs` wrote."""
    return [Envelope(*e) for e in _DECODER.decode(path.read_bytes())]  # type: ignore[arg-type]


def from_topic(there: Place, files: Sequence[Path]) -> list[dict[str, Any]]:
    """One featurizer from a filled topic, then two from twice as many partitions."""
    log = read_log(files[0])
    one, two = "bench.one", "bench.two"
    cluster.require_topics(there.servers, [one], 1)
    cluster.require_topics(there.servers, [two], 2)
    cluster.require_topics(there.servers, [FEATURES, QUOTES], 4)
    fill(there.servers, one, [log])
    fill(there.servers, two, [log, read_log(files[1])])
    first = featurize(there, one, 1, len(log), "first")  # the broker makes its offsets topic and compiles itself
    alone = featurize(there, one, 1, len(log), "one")
    both = featurize(there, two, 2, len(log), "two")
    rate = alone["messages"] / alone["seconds"]
    cpu = [side["cpu_s"] / side["rows"] * 1e6 for side in (alone, both)]
    busy = (alone["cpu_s"] + alone["broker_s"]) / alone["seconds"]
    return [
        figure("one featurizer from a filled topic", rate, "1/s", 50_000.0, ">="),
        figure("the same on a broker just started", first["messages"] / first["seconds"], "1/s"),
        figure("its processor time a message, client's threads too", alone["cpu_s"] / alone["messages"] * 1e6, "us"),
        figure("its rows", alone["rows"] / alone["seconds"], "1/s"),
        figure("two workers, broker: processor time a row against one", cpu[1] / cpu[0], "x", 1.15, "<=", cpu[0]),
        figure(
            "two workers, broker: throughput against one",
            both["messages"] / both["seconds"] / rate,
            "x",
            1.5,
            ">=",
            rate,
        ),
        figure("the same at most, were all cores busy and as fast as one alone", (os.cpu_count() or 1) / busy, "x"),
    ]


def fill(servers: str, topic: str, logs: Sequence[Sequence[Envelope]]) -> None:
    """Put one log into each partition of a topic."""
    producer = kafka.producer(servers, queue_buffering_max_messages=1_000_000)
    for index, log in enumerate(logs):
        for e in log:
            while True:
                try:
                    producer.produce(topic, e.raw, e.product_id.encode() or None, index, headers=headers(e))
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("the broker acknowledges nothing")


def featurize(there: Place, topic: str, workers: int, messages: int, name: str) -> dict[str, float]:
    """Run workers over a filled topic into a folder of that name, each until it has taken its share; sum up."""
    before_s = cpu_s(there.broker.pid)
    jobs = [
        Process(
            ["-m", "tests.benchmarks.bench_stream", "featurize", topic, str(index), str(workers), str(messages)],
            there.environment(name),
        )
        for index in range(workers)
    ]
    done = together(jobs)
    return {**done, "broker_s": cpu_s(there.broker.pid) - before_s}


def together(jobs: Sequence[Process]) -> dict[str, float]:
    """Sum up what jobs did, from where the first began with its first message to where the last had ended."""
    try:
        done = [job.result() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    if len({d["rows"] for d in done}) > 1:
        raise RuntimeError(f"each has the same market, but the rows were {[d['rows'] for d in done]}")
    total = {key: float(sum(d[key] for d in done)) for key in ("messages", "rows", "cpu_s")}
    return {**total, "seconds": max(d["ended"] for d in done) - min(d["began"] for d in done)}


class _Given:
    """A consumer that is given its partition by hand: no time goes into agreeing with a group about it."""

    def __init__(self, servers: str, topic: str, index: int) -> None:
        from confluent_kafka import TopicPartition

        self._consumer = kafka.consumer(f"bench-{topic}", servers)
        self._partition = TopicPartition(topic, index, 0)

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._consumer.assign([self._partition])
        on_assign(self, [self._partition])

    def incremental_assign(self, partitions: list[Any]) -> None:
        """They are assigned."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def _job_featurize(topic: str, index: str, partitions: str, messages: str) -> dict[str, float]:
    """Take one partition to Redis, topics and tables; the clock begins with the worker, its kernel loaded."""
    from infra.imports import arrow_without_pandas
    from ingestion.tuning import one_heap, tuned

    arrow_without_pandas()  # as the command does
    one_heap()

    from infra.settings import settings
    from ingestion.featurize.checkpoint import Checkpoints
    from ingestion.featurize.online_sink import OnlineSink
    from ingestion.featurize.publisher import PRODUCER, Publisher
    from ingestion.featurize.worker import Worker
    from ingestion.kernel.warm import warm_up
    from ingestion.online_writer import default_writer

    warm_up()
    for name in ("spike_features", "quotes"):
        tables.last_n(name)  # what writes tables is imported when first used: a second or two
    s = settings()
    there = cluster.require_topics(s.kafka_servers, [topic, FEATURES, QUOTES], 1)
    worker = Worker(
        lambda: _Given(s.kafka_servers, topic, int(index)),  # type: ignore[arg-type,return-value]
        topic,
        int(partitions),
        publisher=Publisher(kafka.producer(s.kafka_servers, **PRODUCER), there),
        online=OnlineSink(default_writer().write),
        checkpoints=Checkpoints(s.checkpoints, f"bench-{index}", topic),
        commit_every_s=s.commit_every_s,
        checkpoint_every_s=s.checkpoint_every_s,
    )
    began = time.time()
    with tuned():
        summary = worker.run(lambda: False, int(messages))
    return {
        "messages": summary.messages,
        "rows": summary.rows,
        "cpu_s": summary.cpu_s,
        "began": began,
        "ended": began + summary.seconds,
    }


def from_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Run the kernel over filled files, one alone and then two at a time."""
    alone = kernels(files[:1])
    both = kernels(files)
    loops = [sum(loop_s(workers)) / workers for workers in (1, 2)]
    rates = [side["messages"] / side["seconds"] for side in (alone, both)]
    cpu = [side["cpu_s"] / side["rows"] * 1e6 for side in (alone, both)]
    return [
        figure("kernel over a partition's file", rates[0], "1/s"),
        figure("its processor time a message", alone["cpu_s"] / alone["messages"] * 1e6, "us"),
        figure("two workers, files: processor time a row against one", cpu[1] / cpu[0], "x", 1.15, "<=", cpu[0]),
        figure("two workers, files: throughput against one", rates[1] / rates[0], "x", 1.7, ">=", rates[0]),
        figure("the machine: processor time of a loop, two at once against one", loops[1] / loops[0], "x"),
    ]


def loop_s(workers: int) -> list[float]:
    """Processor time of a loop that shares nothing, in that many processes: what a second busy core costs here."""
    code = "import time; c = time.process_time(); sum(range(40_000_000)); print(time.process_time() - c)"
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(workers)]
    return [float(job.communicate()[0]) for job in jobs]


def kernels(files: Sequence[Path]) -> dict[str, float]:
    """Run one process a file; their clocks begin together."""
    start = time.time() + 8 + 0.1 * sum(path.stat().st_size for path in files) / 1e7
    command = ["-m", "tests.benchmarks.bench_stream", "kernel"]
    jobs = [Process([*command, str(path), repr(start)], dict(os.environ)) for path in files]
    return together(jobs)


def _job_kernel(path: str, start: str) -> dict[str, float]:
    """Run one partition's file through the kernel, to rows as they are published."""
    from ingestion import wire
    from ingestion.kernel import Featurizer
    from ingestion.kernel.warm import warm_up

    warm_up()
    log = read_log(Path(path))
    while time.time() < float(start):
        time.sleep(0.01)
    kernel, rows, sent = Featurizer(), 0, 0
    began, cpu = time.time(), time.process_time()
    for at in range(0, len(log), 5_000):
        for part in kernel.push_log(log[at : at + 5_000]).parts:
            rows += part.ints.shape[1]
            sent += sum(len(m.value) for m in (*wire.feature_messages(part), *wire.quote_messages(part)))
    used = time.process_time() - cpu
    return {"messages": len(log), "rows": rows, "cpu_s": used, "began": began, "ended": time.time(), "bytes": sent}


def memory(there: Place, messages: int) -> list[dict[str, Any]]:
    """Let one featurizer take an hour of 1,000 messages a second, made while it reads, and look at what it holds."""
    from ingestion.market import generate

    topic = "bench.long"
    cluster.require_topics(there.servers, [topic], 1)
    producer = kafka.producer(there.servers)
    held: list[tuple[int, int]] = []
    environment = there.environment("long")
    command = ["-m", "tests.benchmarks.bench_stream", "featurize", topic, "0", "1", str(messages)]

    def market() -> Iterator[tuple[int, str, bytes]]:
        yield from squeezed(generate(seed=3, seconds=messages // 25, products=PRODUCTS, start_ns=1_764_547_200 * 10**9))

    with running(command, environment) as worker:
        n = 0
        session = f"{3:016x}"
        said = json.dumps({"type": "session", "feed": "exchange", "products": PRODUCTS, "channels": []}).encode()
        for recv_ns, product, raw in market():
            n += 1
            raw, product = (said, "") if n == 1 else (raw, product)
            e = Envelope(session, n, recv_ns, product, "state" if n == 1 else "feed", "exchange", raw)
            while True:
                try:
                    producer.produce(topic, e.raw, e.product_id.encode() or None, 0, headers=headers(e))
                    break
                except BufferError:
                    producer.poll(0.1)
            if n % 2_000 == 0:
                producer.poll(0)
                held.append((n, rss_bytes(worker.pid)))
            if n == messages:
                break
        producer.flush(120)
        while worker.process.poll() is None:
            held.append((messages, rss_bytes(worker.pid)))
            time.sleep(0.1)
        done = worker.result()
    tail = held[len(held) * 9 // 10 : -3] or held[-3:]
    quarter = [size for n, size in held if messages * 0.2 < n <= messages * 0.3] or [held[len(held) // 4][1]]
    early, late = sorted(quarter)[len(quarter) // 2], sorted(size for _, size in tail)[len(tail) // 2]
    return [
        figure(f"memory after {done['messages']:,} messages", late / 2**20, "MiB", 400.0, "<=", early / 2**20),
        figure("its growth since the first quarter", 100 * (late / early - 1), "%", 5.0, "<="),
    ]


def squeezed(messages: Iterator[tuple[int, str, bytes]]) -> Iterator[tuple[int, str, bytes]]:
    """Give a market's messages the times of 1,000 a second."""
    import re

    import numpy as np

    stamp = re.compile(rb'"time":"[^"]*"')
    start = 1_764_547_200_000_000
    for i, (_, product, raw) in enumerate(messages):
        us = start + i * 1_000
        text = b'"time":"' + np.datetime_as_string(np.datetime64(us, "us")).encode() + b'Z"'
        yield us * 1_000, product, stamp.sub(text, raw, count=1)


if __name__ == "__main__":
    jobs = {"featurize": _job_featurize, "kernel": _job_kernel}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
