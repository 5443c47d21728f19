"""``volspike featurize``: the raw log through the kernel, to Redis, topics and tables."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    max_messages: Annotated[int | None, typer.Option(help="Stop after this many messages.", min=1)] = None,
    topic: Annotated[str, typer.Option(help="The raw log.")] = "ticks.raw",
    group: Annotated[str | None, typer.Option(help="Consumer group; VOLSPIKE_GROUP.")] = None,
    instance_id: Annotated[
        str | None, typer.Option(help="Static id: a worker that comes back under it keeps its partitions.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Take the raw log through the kernel: newest rows to Redis, all rows to their topics and tables.

    Run more of them and Kafka shares the partitions out; stop one, kill one, and the others go on where it was.

    Example:
        volspike featurize
        volspike featurize --max-messages 100000 --json
    """
    from infra.featurizing import featurize

    featurize(topic=topic, group=group, instance_id=instance_id, max_messages=max_messages, as_json=json)
