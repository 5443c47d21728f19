"""What an ingestion did: messages by type, rate, gaps, reconnects, lag, and what was spilled or dropped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_STEP_S: Final = 1e-4
_LEAST_S: Final = -2.0
_BINS: Final = 320_000
"""Lags from −2 s (clocks differ) to 30 s in steps of 0.1 ms: fixed memory, however long it runs."""


class Lags:
    """Distribution of the time from the exchange's stamp to ours.

    Examples
    --------
    >>> lags = Lags()
    >>> lags.add(np.array([0.010, 0.020, 0.030]))
    >>> round(lags.percentile(50), 3)
    0.02
    """

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, lags_s: NDArray[np.float64]) -> None:
        """Take lags in seconds."""
        if len(lags_s):
            at = np.clip((lags_s - _LEAST_S) / _STEP_S, 0, _BINS - 1).astype(np.int64)
            np.add.at(self._bins, at, 1)

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, to 0.1 ms; NaN where nothing was measured."""
        total = int(self._bins.sum())
        if not total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self._bins), max(1, np.ceil(total * percent / 100))))
        return (at + 0.5) * _STEP_S + _LEAST_S


@dataclass(slots=True)
class Report:
    """Figures of one ingestion; the worker fills them in while it runs."""

    feed: str = ""
    topic: str = ""
    products: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    types: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    future: int = 0
    sessions: int = 0
    resyncs: int = 0
    stale: int = 0
    keyframes: int = 0
    disconnects: Counter[str] = field(default_factory=Counter)
    lags: Lags = field(default_factory=Lags)
    delays: Lags = field(default_factory=Lags)
    """From receipt to the producer."""
    first_ns: int = 0
    last_ns: int = 0
    cpu_s: float = 0.0
    """Processor time of this process since the first connection."""
    logged: int = 0
    acknowledged: int = 0
    spilled: int = 0
    left: int = 0
    dropped: int = 0
    producers: int = 0
    deepest: int = 0
    tape_lines: int = 0
    tape_dropped: int = 0
    tapes: list[str] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """Messages of the exchange."""
        return sum(self.types.values())

    @property
    def rate(self) -> float:
        """Messages a second from the first received to the last; 0 where that is no time."""
        seconds = (self.last_ns - self.first_ns) / 1e9
        return self.messages / seconds if seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for ``--json``; None where nothing was measured."""
        return {
            "feed": self.feed,
            "topic": self.topic,
            "products": list(self.products),
            "seconds": round(self.seconds, 3),
            "messages": self.messages,
            "messages_per_s": round(self.rate, 1),
            "by_type": dict(self.types.most_common()),
            "malformed": self.malformed,
            "future": self.future,
            "gaps": dict(self.gaps),
            "sessions": self.sessions,
            "reconnects": max(0, self.sessions - 1),
            "disconnects": dict(self.disconnects),
            "resyncs": self.resyncs,
            "stale": self.stale,
            "keyframes": self.keyframes,
            "lag_p50_ms": _ms(self.lags.percentile(50)),
            "lag_p99_ms": _ms(self.lags.percentile(99)),
            "cpu_s": round(self.cpu_s, 3),
            "delay_p50_ms": _ms(self.delays.percentile(50)),
            "delay_p99_ms": _ms(self.delays.percentile(99)),
            "logged": self.logged,
            "acknowledged": self.acknowledged,
            "spilled": self.spilled,
            "left_in_spill": self.left,
            "dropped": self.dropped,
            "producers": self.producers,
            "queue_deepest": self.deepest,
            "tapes": self.tapes,
            "tape_lines": self.tape_lines,
            "tape_dropped": self.tape_dropped,
        }

    def text(self) -> str:
        """Return the figures as lines."""
        lines = [
            f"feed       {self.feed} → {self.topic}, {', '.join(self.products)}",
            f"messages   {self.messages:,} in {self.seconds:,.1f} s ({self.rate:,.0f}/s): {_listed(self.types)}",
            f"sessions   {self.sessions}, reconnects {max(0, self.sessions - 1)}"
            + (f" ({_listed(self.disconnects)})" if self.disconnects else ""),
            f"gaps       {sum(self.gaps.values()):,}" + (f" ({_listed(self.gaps)})" if self.gaps else ""),
            f"books      resyncs {self.resyncs}, stale {self.stale}, keyframes {self.keyframes}",
            f"lag        p50 {_text_ms(self.lags.percentile(50))}, p99 {_text_ms(self.lags.percentile(99))} "
            "from the exchange's time to receipt; "
            f"{_text_ms(self.delays.percentile(50))}, {_text_ms(self.delays.percentile(99))} on to the producer",
            f"log        {self.logged:,} written, {self.acknowledged:,} acknowledged, {self.spilled:,} by way of the "
            f"disk, {self.left:,} left there, {self.dropped:,} dropped",
        ]
        if self.malformed or self.future:
            lines.append(f"set aside  malformed {self.malformed:,}, future {self.future:,}: they stand in the log")
        if self.tapes or self.tape_dropped:
            lines.append(f"tapes      {len(self.tapes)}, {self.tape_lines:,} lines, {self.tape_dropped:,} dropped")
        return "\n".join(lines)

    def line(self) -> str:
        """Return where it stands, in one line for a terminal."""
        return (
            f"{self.messages:,} messages, {self.rate:,.0f}/s, gaps {sum(self.gaps.values())}, "
            f"reconnects {max(0, self.sessions - 1)}, lag p50 {_text_ms(self.lags.percentile(50))}, "
            f"spilled {self.spilled:,}, dropped {self.dropped:,}"
        )


def _ms(seconds: float) -> float | None:
    return None if np.isnan(seconds) else round(seconds * 1000, 2)


def _text_ms(seconds: float) -> str:
    return "unknown" if np.isnan(seconds) else f"{seconds * 1000:,.1f} ms"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda kv: -kv[1])) or "none"
