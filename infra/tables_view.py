"""How commands show results: a table for people, one JSON object for machines, a spinner only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def emit(value: object) -> None:
    """Print one JSON value; a number that is not finite is an error, never a bare NaN."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are aligned to the right, missing values shown as a dash."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        view.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(_text(value) for value in row))
    console = Console()
    # In a pipe there is no width to keep to, and nothing may be cut.
    (console if console.is_terminal else Console(width=200)).print(view)


@contextmanager
def status(doing: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done on a terminal, on standard error; say nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(doing) as spinner:
        yield lambda text: spinner.update(f"{doing}: {text}")


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
