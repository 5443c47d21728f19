"""The kernel where the design is easily read in two ways: it must do what DESIGN and ADR 1 decide."""

from __future__ import annotations

import pytest

from ingestion.kernel import stream_rows
from tests.oracle import disputed, tapes
from tests.oracle.compare import count_differences, differences, edge_differences
from tests.oracle.naive import replay


@pytest.mark.parametrize("name", disputed.TAPES)
def test_reading(name: str) -> None:
    lines = disputed.TAPES[name]()
    kernel, oracle = stream_rows(lines, session="a" * 16), replay(lines, session="a" * 16)
    assert differences(kernel.rows, kernel.quotes, oracle) + count_differences(kernel.counts, oracle) == []


@pytest.mark.parametrize("name", ["two_sessions", "book", "silent_day", "matches_and_tickers", "book_after_tickers"])
def test_edges_of_gaps_are_created_when_they_are_known(name: str) -> None:
    """``created_timestamp`` is the message's receive time, where unknown its effective time, as ADR 1 (27) has it."""
    lines = tapes.TAPES[name]()
    kernel = stream_rows(lines, session="a" * 16)
    assert edge_differences(kernel.quotes, replay(lines, session="a" * 16, only_rows=lambda i: False)) == []
