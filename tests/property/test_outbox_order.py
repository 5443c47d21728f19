"""Whatever broker, disk and process do: a reader of the topic sees each message once, in order, or a gap."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.feed.outbox import Outbox
from ingestion.feed.spill import Spill
from ingestion.topics import Envelope, partition_of
from tests.stub_broker import PARTITIONS, Broker

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD", "")
SESSION = "00f1a2b3c4d5e6f7"

STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(st.sampled_from(PRODUCTS), min_size=1, max_size=12)),
    st.sampled_from([("down", None), ("up", None), ("full", None), ("room", None), ("fail", None), ("kill", None)]),
    st.tuples(st.just("reach"), st.integers(0, 8)),
    st.just(("poll", None)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_nothing_is_lost_doubled_or_moved(steps: list[tuple[str, object]]) -> None:
    broker = Broker()
    real = os.write
    disk_full = False
    put: dict[int, str] = {}
    dropped = 0
    n = 1

    def write(file: int, data: bytes) -> int:
        if disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    with (
        tempfile.TemporaryDirectory() as folder,
        patch("ingestion.feed.spill.os.write", write),
        patch("ingestion.feed.outbox.RETRY_S", 0.0),
    ):

        def begin() -> tuple[Outbox, Spill]:
            spill = Spill(Path(folder), 1 << 20, segment_bytes=600)
            return Outbox(broker.connect, "ticks.raw", PARTITIONS, spill, max_messages=6, slow_s=-1.0), spill

        outbox, spill = begin()
        outbox.put([Envelope(SESSION, 1, 0, "", "state", "exchange", b"{}")])
        for step, value in steps:
            if step == "put":
                assert isinstance(value, list)
                batch = []
                for product in value:
                    n += 1
                    put[n] = product
                    batch.append(Envelope(SESSION, n, 0, product, "feed", "exchange", b"%d" % n))
                outbox.put(batch)
            elif step in ("down", "up"):
                broker.up = step == "up"
            elif step in ("full", "room"):
                disk_full = step == "full"
            elif step == "reach":
                assert isinstance(value, int)
                broker.producers[-1].deliver(value, acknowledged=False)
            elif step == "fail":
                broker.producers[-1].fail()
            elif step == "kill" and not disk_full and not outbox.dropped:
                spill.close()
                dropped += outbox.dropped.count
                outbox, spill = begin()
            outbox.poll()  # copies to disk what isn't acknowledged: here every message is old
        broker.up, disk_full = True, False
        for _ in range(300):
            outbox.poll()
        outbox.close(0.1)
        dropped += outbox.dropped.count

    for partition in range(PARTITIONS):
        found = broker.envelopes(partition)
        assert [e.n for e in found] == sorted({e.n for e in found})
        gaps = [(json.loads(e.raw)["product_id"] or "", e.n) for e in found if e.kind == "state" and e.n > 1]
        arrived = {e.n for e in found if e.kind == "feed"}
        mine = [k for k, p in put.items() if not p or partition_of(p, PARTITIONS) == partition]
        for k in mine:
            if k not in arrived:  # then a gap of its product stands before its next message that came
                follows = min((m for m in mine if put[m] == put[k] and m > k and m in arrived), default=n + 1)
                assert any(product == put[k] and k <= at < follows for product, at in gaps), (k, put[k], gaps)
    everywhere = {e.n for partition in range(PARTITIONS) for e in broker.envelopes(partition) if e.kind == "feed"}
    assert len(put) - len(everywhere) <= dropped
