"""``volspike ingest``: a feed to the raw log."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    minutes: Annotated[float | None, typer.Option(help="Minutes to run; default until Ctrl-C.")] = None,
    pair: Annotated[
        str | None, typer.Option(help="Products, comma-separated; default the setting VOLSPIKE_PAIR.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels by their Exchange names; default the setting VOLSPIKE_CHANNELS.")
    ] = None,
    feed: Annotated[
        str | None, typer.Option(help="exchange, advanced, or a ws:// address; default the setting VOLSPIKE_FEED.")
    ] = None,
    topic: Annotated[str, typer.Option(help="Topic of the raw log.")] = "ticks.raw",
    save_raw: Annotated[bool, typer.Option("--save-raw", help="Also record tapes under <data>/raw.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Watch a feed: every message, gap and keyframe into Kafka, in order, losing nothing.

    Messages that the broker doesn't take wait on disk. Ctrl-C ends it: what was received is logged first.

    Example: volspike ingest --feed exchange --pair BTC-USD,ETH-USD --minutes 15 --save-raw
    """
    import json
    from contextlib import nullcontext

    from feature_repo.errors import UsageError
    from infra.broker import ensure_kafka
    from infra.ingest_view import live_line
    from infra.logs import configure_logging
    from infra.settings import settings
    from ingestion.feed import Order, ingest
    from ingestion.feed.pipeline import spill_folder
    from ingestion.feed.remembered import recall

    if minutes is not None and not minutes > 0:
        raise UsageError(f"minutes must be > 0, was {minutes}; leave it out to run until Ctrl-C")
    s = settings()
    configure_logging(s.log_level)
    order = Order(
        feed=feed or s.feed,
        products=s.products if pair is None else _names(pair),
        channels=s.watched_channels if channels is None else _names(channels),
        topic=topic,
        minutes=minutes,
        save_raw=save_raw,
    )
    again = recall(spill_folder(topic), s.kafka_servers, s.partitions) is not None
    with nullcontext(s.kafka_servers) if again else ensure_kafka() as servers, live_line(quiet=as_json) as show:
        report = ingest(order, servers, show=show)
    print(json.dumps(report.as_dict()) if as_json else report.text())


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
