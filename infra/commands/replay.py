"""``volspike replay``: tapes to offline tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    raw: Annotated[list[Path], typer.Option("--raw", help="Tape or folder of tapes; may be given several times.")],
    more: Annotated[
        list[Path] | None, typer.Argument(help="More of them: what a shell makes of --raw *.zst.", metavar="PATH")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; default <data>/tables.")] = None,
    compute_every_n: Annotated[int, typer.Option(min=1, help="Emit every N-th ticker row of a product.")] = 1,
    every: Annotated[str, typer.Option(help="Grid of rows in event time: 1s, 5s, … or off.")] = "1s",
    windows: Annotated[
        str, typer.Option(help="Windows in seconds, comma-separated; others stay null.")
    ] = "30,60,300,900",
    products: Annotated[str | None, typer.Option(help="Products to keep, comma-separated; default all.")] = None,
    to: Annotated[Path | None, typer.Option(help="Also write all feature rows to this one parquet file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run recorded messages through the kernel into the offline tables.

    Adding a tape twice adds nothing; an interrupted replay is finished by running it again.

    Example: volspike replay --raw data/raw --compute-every-n 5
    """
    from infra.replay_view import progress_bar, show
    from ingestion.kernel import Options
    from ingestion.replay import replay

    options = Options(
        every_s=_seconds(every),
        compute_every_n=compute_every_n,
        windows=tuple(_whole(w, "windows") for w in windows.split(",")),
        products=None if products is None else frozenset(p.strip() for p in products.split(",")),
    )
    paths = [*raw, *(more or ())]
    with progress_bar(paths, quiet=as_json) as progress:
        summary = replay(paths, out=out, options=options, to=to, progress=progress)
    show(summary, as_json=as_json)


def _seconds(text: str) -> int | None:
    return None if text == "off" else _whole(text.removesuffix("s"), "every")


def _whole(text: str, name: str) -> int:
    from feature_repo.errors import UsageError

    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name}: expected whole seconds, was {text!r}") from error
