"""What a validation shows: a count while it reads, then a table of products and the verdicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from feature_repo.errors import StoreError
from infra import services
from infra.settings import settings

if TYPE_CHECKING:
    from ingestion.validation import Findings


def running_kafka() -> str:
    """Return the broker that is configured or runs already.

    Raises
    ------
    StoreError
        If there is none: an embedded one of our own would be empty.
    """
    configured = settings().kafka_servers
    if configured:
        return configured
    found = services.running(settings().run, "kafka")
    if not found:
        raise StoreError(
            "no Kafka runs: start volspike up, volspike ingest or make kafka beside this, or set VOLSPIKE_KAFKA_SERVERS"
        )
    return found[0].address


@contextmanager
def watching(topic: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show the messages read so far, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda messages: None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"reading {topic}") as status:
        yield lambda messages: status.update(f"reading {topic}: {messages:,} messages")


def show(findings: Findings, *, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        print(json.dumps(findings.as_dict()))
        return
    said = findings.as_dict()
    print(f"topic      {findings.topic}: {said['messages']:,} messages in {findings.seconds:,.1f} s of reading")
    print(f"log        sessions {said['sessions']}, records {_listed(said['records'])}, repeated {said['repeated']:,}")
    for name, p in said["products"].items():
        rates = ", ".join(f"{kind} {n:,} ({p['per_s'][kind] or 0:g}/s)" for kind, n in p["by_type"].items())
        print(f"{name:<10} {rates or 'nothing'}")
        share = "not judged" if p["heartbeat_share"] is None else f"{p['heartbeat_share']:.1%}"
        print(
            f"           a recent heartbeat in {share} of the time, gaps {_listed(p['gaps'])} over {p['gap_s']:g} s"
            f"{' (one open)' if p['gap_open'] else ''}, longest quiet {p['longest_quiet_s']:g} s"
        )
    if said["errors"]:
        print(f"unread     {_listed(said['errors'])}")
    for check in said["checks"]:
        verdict = {True: "holds", False: "FALLS SHORT", None: "too little to tell"}[check["holds"]]
        value = "–" if check["value"] is None else f"{check['value']:g}"
        print(f"check      {check['check']}: {value} {check['op']} {check['bound']:g}: {verdict}")
    print("verdict    healthy" if findings.healthy else "verdict    the stream falls short")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "none"
