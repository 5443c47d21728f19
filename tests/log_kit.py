"""A raw log as the ingestor writes it, made from the generated market, and put into a topic."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ingestion import kafka
from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels
from ingestion.market import generate
from ingestion.topics import RAW, Envelope, chunks, headers, partition_of

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
CHANNELS = ["ticker", "matches", "level2_batch", "heartbeat"]
SESSION = "00f1a2b3c4d5e6f7"
S = 1_000_000_000


def record(session: str, recv_ns: int, product: str, kind: str, **said: object) -> Envelope:
    """Return a record of the ingestor, not numbered yet."""
    if product:
        said["product_id"] = product
    return Envelope(session, 0, recv_ns, product, kind, "exchange", json.dumps(said).encode())  # type: ignore[arg-type]


def numbered(log: Iterable[Envelope]) -> list[Envelope]:
    """Number each session's messages 1, 2, …."""
    counts: dict[str, int] = defaultdict(int)
    out = []
    for e in log:
        counts[e.session] += 1
        out.append(e._replace(n=counts[e.session]))
    return out


def market(
    seed: int, seconds: int, products: Sequence[str] = PRODUCTS, session: str = SESSION, start_s: int = 1_764_547_200
) -> list[Envelope]:
    """Return a session of the generated market that begins with its record, not numbered yet."""
    made = generate(seed=seed, seconds=seconds, products=products, start_ns=start_s * S)
    log = [Envelope(session, 0, t // 1000 * 1000, p, "feed", "exchange", raw) for t, p, raw in made]
    said = {"products": list(products), "channels": CHANNELS}
    return [record(session, log[0].recv_ns, "", "state", type="session", feed="exchange", **said), *log]


def with_keyframes(log: list[Envelope], every_s: int = 60) -> list[Envelope]:
    """Put in what the ingestor does, status and keyframe of each product as its own book stands, and number all."""
    watch, out, due, watched = Featurizer(), [], log[0].recv_ns + every_s * S, 0
    for i, e in enumerate(log):
        if e.recv_ns >= due:
            due += every_s * S
            watch.push_log([m._replace(n=j + 1) for j, m in enumerate(log[watched:i], start=watched)])
            watched = i
            for product in sorted({m.product_id for m in log[:i] if m.product_id}):
                book = watch.state(product).book
                sides = {"bids": side_levels(book, BIDS, 1000).tolist(), "asks": side_levels(book, ASKS, 1000).tolist()}
                out.append(record(e.session, e.recv_ns, product, "state", type="status", channels=CHANNELS, trade_id=1))
                out.append(record(e.session, e.recv_ns, product, "keyframe", type="keyframe", **sides))
        out.append(e)
    return numbered(out)


def produce(servers: str, log: Iterable[Envelope], partitions: int, topic: str = RAW) -> int:
    """Put a log into a topic as the ingestor does; return the number of messages acknowledged."""
    producer = kafka.producer(servers, queue_buffering_max_messages=500_000)
    failed: list[str] = []
    sent = 0
    for e in log:
        places = [partition_of(e.product_id, partitions)] if e.product_id else range(partitions)
        parts = chunks(e.raw)
        for place in places:
            for i, part in enumerate(parts):
                while True:
                    try:
                        producer.produce(
                            topic,
                            part,
                            e.product_id.encode() or None,
                            partition=place,
                            headers=list(headers(e, i, len(parts))),
                            on_delivery=lambda error, _: failed.append(error.str()) if error else None,
                        )
                        break
                    except BufferError:
                        producer.poll(0.1)
                sent += 1
        producer.poll(0)
    assert producer.flush(60) == 0, "the broker acknowledges nothing"
    assert not failed, failed[0]
    return sent


def kept(messages: Iterable[tuple[Envelope, int, int]]) -> list[Envelope]:
    """Return what a reader keeps of a partition: whole messages, each number of a session once."""
    found: list[Envelope] = []
    held: list[Envelope] = []
    seen: dict[str, int] = {}
    for envelope, part, parts in messages:
        held = [*held, envelope] if part == len(held) else [envelope]
        if len(held) < parts:
            continue
        whole = envelope._replace(raw=b"".join(e.raw for e in held))
        held = []
        if whole.n > seen.get(whole.session, 0):
            seen[whole.session] = whole.n
            found.append(whole)
    return found
