"""What a replay shows on a terminal: a bar with rate and time left, then a summary."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ingestion.replay import Progress, Summary
    from ingestion.tapes import Tape

_NOT_TYPES = (
    "reordered late future dead_lettered_future malformed duplicate empty_line unknown_type other_product gaps "
    "ticker_rows grid_rows quotes crossed one_sided ignored_book crossed_snapshot unknown_delete sequence_loss"
).split()


@contextmanager
def progress_bar(paths: Sequence[Path], *, quiet: bool) -> Iterator[Progress | None]:
    """Show bytes read, messages a second and time left, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from ingestion.tapes import find_tapes

    total = sum(tape.size for tape in find_tapes(paths))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=total, rate="")
        done: dict[Path, int] = {}
        lines: dict[Path, int] = {}

        def tell(tape: Tape, read_bytes: int, messages: int) -> None:
            done[tape.path] = read_bytes
            lines[tape.path] = messages
            elapsed = bar.tasks[task].elapsed or 1e-9
            rate = f"{sum(lines.values()) / elapsed:,.0f} messages/s"
            bar.update(task, completed=sum(done.values()), description=tape.path.name, rate=rate)

        yield tell


def show(summary: Summary, *, as_json: bool) -> None:
    """Print what a replay did."""
    if as_json:
        print(msgspec.json.encode(summary.as_dict()).decode())
        return
    counts = summary.counts
    types = {k: v for k, v in counts.items() if k not in _NOT_TYPES and not k.startswith(("gap_", "malformed:"))}
    messages = ", ".join(f"{name} {n:,}" for name, n in sorted(types.items(), key=lambda kv: -kv[1]))
    why = ", ".join(f"{k.removeprefix('gap_')} {counts[k]}" for k in sorted(counts) if k.startswith("gap_"))
    print(f"tapes      {len(summary.tapes)}")
    print(f"messages   {sum(types.values()):,}: {messages}")
    print(
        f"rows       {summary.rows:,} (tickers {counts['ticker_rows']:,}, grid {counts['grid_rows']:,}), "
        f"quotes {summary.quotes:,}"
    )
    print(f"added      {summary.rows_added:,} rows, {summary.quotes_added:,} quotes")
    if not summary.rows:
        print("           no row was made: see --products, and the times of the tapes")
    elif not summary.rows_added:
        print("           the tables hold these tapes already; rows of other options go to tables of their own: --out")
    print(
        f"set aside  late {counts['late']:,}, reordered {counts['reordered']:,} (used), future {counts['future']:,}, "
        f"malformed {counts['malformed']:,}, duplicate {counts['duplicate']:,}, unknown type {counts['unknown_type']:,}"
    )
    for reason in sorted(k for k in counts if k.startswith("malformed: ")):
        print(f"             {counts[reason]:,} × {reason.removeprefix('malformed: ')}")
    print(f"gaps       {counts['gaps']:,}{f' ({why})' if why else ''}")
    book = ("crossed_snapshot", "crossed", "one_sided", "unknown_delete", "ignored_book")
    if any(counts[name] for name in book):
        print(f"quotes     {_listed(counts, book)}")
    for damage in summary.damaged:
        print(f"damaged    {damage}; what came before it was used; a whole copy of it is another tape")
    if summary.dead_letters:
        print(f"rejected   kept in {summary.dead_letters}")
    print(f"seconds    {summary.seconds:.2f}")


def _listed(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {counts[name]:,}" for name in names if counts[name])
