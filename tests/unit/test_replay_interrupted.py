"""A replay that is interrupted waits for what is being written: else rows are given up whose versions are committed."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ingestion.kernel import QUOTE_SCHEMA, ROW_SCHEMA, Rows
from ingestion.replay import Summary, _Sink
from tests.conftest import until


class SlowTable:
    """Takes rows only when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = threading.Event(), threading.Event()
        self.taken = 0

    def add(self, *_: Any) -> None:
        self.begun.set()
        assert self.let.wait(20)
        self.taken += 1


def test_interrupting_it_again_gives_up_nothing_that_is_being_written() -> None:
    none = np.zeros(0, np.int64)
    rows = Rows(ROW_SCHEMA.empty_table(), none, QUOTE_SCHEMA.empty_table(), none)
    features, quotes = SlowTable(), SlowTable()
    quotes.let.set()
    heard: list[int] = []
    main = threading.get_ident()

    def interrupted(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    def leaving() -> bool:
        at: FrameType | None = sys._current_frames()[main]
        while at is not None and at.f_code is not _Sink.__exit__.__code__:
            at = at.f_back
        return at is not None

    def press_again() -> None:
        assert until(leaving, 10)
        for presses in (1, 2):
            signal.pthread_kill(main, signal.SIGINT)
            assert until(lambda presses=presses: len(heard) == presses, 10)  # type: ignore[misc]
        features.let.set()

    before = signal.signal(signal.SIGINT, interrupted)
    impatient = threading.Thread(target=press_again)
    try:
        with pytest.raises(KeyboardInterrupt, match="first"), _Sink(features, quotes, None, Summary()) as sink:  # type: ignore[arg-type]
            sink.take(rows, SimpleNamespace(last_n=dict))  # type: ignore[arg-type]
            assert features.begun.wait(10)
            impatient.start()
            raise KeyboardInterrupt("first")
    finally:
        impatient.join(20)
        signal.signal(signal.SIGINT, before)
    assert (features.taken, quotes.taken) == (1, 1)
