"""The featurizer with its services around it: what ``volspike featurize`` runs."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial
from types import FrameType

from infra.logs import configure_logging
from infra.settings import settings


def featurize(
    *, topic: str, group: str | None, instance_id: str | None, max_messages: int | None, as_json: bool
) -> None:
    """Run one featurizer until it is stopped, and say what it did.

    Raises
    ------
    UsageError
        If the topic is no name.
    StoreError
        If Kafka or Redis can't be reached at the start, the topic has too few partitions, a folder can't be written, or
        another worker has the same static id.
    """
    from infra.imports import arrow_without_pandas
    from ingestion.tuning import one_heap, tuned

    arrow_without_pandas()
    one_heap()

    from infra.broker import ensure_kafka
    from infra.embedded import ensure_redis
    from ingestion import cluster, kafka
    from ingestion.featurize.checkpoint import Checkpoints
    from ingestion.featurize.online_sink import OnlineSink
    from ingestion.featurize.publisher import PRODUCER, Publisher
    from ingestion.featurize.worker import Summary, Worker
    from ingestion.kernel.warm import warm_up
    from ingestion.online_writer import default_writer
    from ingestion.topics import FEATURES, QUOTES, require_name

    configure_logging(settings().log_level)
    require_name(topic)
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    warm_up()  # a partition taken over must not wait for the compiler
    with ExitStack() as stack:
        servers = stack.enter_context(ensure_kafka())
        stack.enter_context(ensure_redis())
        s = settings()
        name = group or s.group
        there = cluster.require_topics(servers, [topic, FEATURES, QUOTES], s.partitions)
        checkpoints = Checkpoints(s.checkpoints, f"{name}/{cluster.cluster_id(servers)}", topic)
        online = OnlineSink(default_writer().write)
        worker = Worker(
            partial(kafka.consumer, name, servers, instance=instance_id, **cluster.pace(servers)),
            topic,
            there[topic],
            publisher=Publisher(kafka.producer(servers, **PRODUCER), there),
            online=online,
            checkpoints=checkpoints,
            commit_every_s=s.commit_every_s,
            checkpoint_every_s=s.checkpoint_every_s,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        say("reading", topic, as_json)
        with tuned():
            summary: Summary = worker.run(stop.is_set, max_messages)
    if as_json:
        print(json.dumps(summary.as_dict()))
        return
    rate = summary.messages / summary.seconds if summary.seconds else 0.0
    print(
        f"{summary.messages:,} messages in {summary.seconds:,.1f} s ({rate:,.0f}/s): {summary.rows:,} rows, "
        f"{summary.quotes:,} quotes; in the tables {summary.counts['spike_features_added']:,} and "
        f"{summary.counts['quotes_added']:,} more"
    )
    worth = ("gaps", "late", "future", "malformed", "duplicate", "chunks_lost", "keyframe_differs")
    failed = ("online_failures", "commit_failures", "fenced")
    told = [f"{what} {summary.counts[what]:,}" for what in (*worth, *failed) if summary.counts[what]]
    if told:
        print("  " + ", ".join(told))


def say(what: str, topic: str, as_json: bool) -> None:
    """Tell a terminal that the worker reads."""
    if sys.stderr.isatty() and not as_json:
        print(f"{what} {topic}; Ctrl-C ends", file=sys.stderr)
