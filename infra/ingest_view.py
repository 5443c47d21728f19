"""The line that an ingestion shows on a terminal while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingestion.feed import Report


@contextmanager
def live_line(*, quiet: bool) -> Iterator[Callable[[Report], None]]:
    """Show where it stands, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda report: None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda report: live.update(report.line(), refresh=True)
