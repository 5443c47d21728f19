"""What an ingestor remembers of its topic, so that one that begins again needn't wait for a broker that is gone.

The exchange doesn't wait: while a broker restarts, messages go to the spill, and only the number of partitions must be
known for that.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

_FILE = "topic.json"


class Topic(msgspec.Struct, frozen=True):
    """A topic as it was found: bootstrap servers and number of partitions."""

    servers: str
    partitions: int


def remember(folder: Path, topic: Topic) -> None:
    """Write it down in the spill's folder."""
    unfinished = folder / f".{_FILE}"
    unfinished.write_bytes(msgspec.json.encode(topic))
    unfinished.replace(folder / _FILE)


def recall(folder: Path, servers: str, least: int) -> int | None:
    """Return the number of partitions; None where nothing is known, or of other servers, or it was too few.

    Parameters
    ----------
    folder
        The spill's folder.
    servers
        Bootstrap servers in force.
    least
        Partitions that the topic must have.
    """
    try:
        found = msgspec.json.decode((folder / _FILE).read_bytes(), type=Topic)
    except (OSError, msgspec.MsgspecError):
        return None
    return found.partitions if found.servers == servers and found.partitions >= least else None
