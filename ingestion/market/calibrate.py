"""What a tape looks like in the figures that the market is calibrated to, and how far its spikes can be foreseen.

Nothing here is used in training or serving; the label is computed once more, naively, on a grid of whole seconds.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from feature_repo.errors import InputError
from ingestion.market.book import Side

F64 = NDArray[np.float64]

RECORDED: Final = {
    "BTC-USD 2025-11-12, 7 busy minutes": (14.3, 0.16, 1.1e-4, 1.4e-4, 1.6e-4),
    "BTC-USD 2025-11-30, 342 minutes": (3.6, 0.51, 3.1e-5, 7.0e-5, 1.2e-4),
    "BTC-USD 2026-04-03, 15 minutes": (3.4, 0.82, 2.3e-5, 3.2e-5, 3.5e-5),
    "ETH-USD 2026-04-03, 15 minutes": (2.2, 0.77, 2.9e-5, 4.1e-5, 4.6e-5),
}
"""Tickers a second, share of zero returns, trailing 60-s std p50, p90, p99: measured on recorded tapes of that day."""
_PIECE_S = 60.0
"""A silence of tickers longer than this divides a tape into pieces, as between two recordings."""


class _Message(msgspec.Struct):
    type: str | None = None
    product_id: str | None = None
    time: str | None = None
    best_bid: float | None = None
    best_ask: float | None = None
    changes: list[tuple[str, float, float]] | None = None
    bids: list[tuple[float, float]] | None = None
    asks: list[tuple[float, float]] | None = None
    raw: str | None = None


@dataclass(slots=True)
class Quotes:
    """Times and mids of one product; ``ticker_*`` as tickers show them, ``book_*`` after each book message."""

    ticker_s: F64
    ticker_mid: F64
    book_s: F64
    book_mid: F64


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of the table, of one product of one tape.

    Attributes
    ----------
    tickers_per_s
        Over the pieces' lengths.
    ties
        Share of tickers that have the time of the one before.
    zeros
        Share of one-second mid returns that are exactly 0.
    std
        p50, p90, p99 of the trailing 60-s standard deviation of one-second log mid returns.
    """

    tickers_per_s: float
    ties: float
    zeros: float
    std: tuple[float, float, float]


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain, ``.gz`` or ``.zst`` tape.

    Raises
    ------
    InputError
        If the file can't be opened.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield from gzip.open(file)
            elif path.suffix == ".zst":
                yield from io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
            else:
                yield from file
    except OSError as error:
        raise InputError(f"tape {path} could not be read ({error}): give an existing tape") from error


def quotes_of(lines: Iterable[bytes], decimals: int = 8) -> dict[str, Quotes]:
    """Read tickers and books of all products from Exchange messages, bare or wrapped.

    Parameters
    ----------
    lines
        Messages or tape lines.
    decimals
        Decimals to which prices are told apart.
    """
    decoder = msgspec.json.Decoder(_Message, strict=False)
    unit = 10**decimals
    found: dict[str, tuple[list[str], list[float], list[str], list[float]]] = {}
    books: dict[str, tuple[Side, Side]] = {}
    for line in lines:
        message = decoder.decode(line)
        if message.raw is not None:
            message = decoder.decode(message.raw)
        product = message.product_id
        if product is None:
            continue
        ticker_time, ticker_mid, book_time, book_mid = found.setdefault(product, ([], [], [], []))
        if message.type == "ticker" and message.time and message.best_bid and message.best_ask:
            ticker_time.append(message.time)
            ticker_mid.append((message.best_bid + message.best_ask) / 2)
        elif message.type == "snapshot":
            books[product] = bids, asks = Side(-1), Side(1)
            for side, levels in ((bids, message.bids or []), (asks, message.asks or [])):
                for price, _ in levels:
                    side.set(side.sign * round(price * unit), 1)
        elif message.type == "l2update" and message.time and product in books:
            bids, asks = books[product]
            for name, price, size in message.changes or []:
                side = bids if name == "buy" else asks
                side.set(side.sign * round(price * unit), int(size > 0))
            bids.changed.clear()
            asks.changed.clear()
            if bids.keys and asks.keys:
                book_time.append(message.time)
                book_mid.append((bids.best + asks.best) / 2 / unit)
    return {
        product: Quotes(_seconds(a), np.asarray(b), _seconds(c), np.asarray(d))
        for product, (a, b, c, d) in found.items()
        if a or c
    }


def _seconds(times: list[str]) -> F64:
    naive = np.array([t.removesuffix("Z") for t in times], dtype="datetime64[us]")
    return np.asarray(naive.astype(np.int64) / 1e6, dtype=np.float64)


def one_second_returns(times_s: F64, mid: F64) -> F64:
    """Log returns of the last mid at each whole second, shape ``(seconds − 1,)``."""
    grid = np.arange(np.ceil(times_s[0]), np.floor(times_s[-1]) + 1)
    return np.diff(np.log(mid[np.searchsorted(times_s, grid, side="right") - 1]))


def sigma(returns: F64, window: int = 60) -> F64:
    """Population standard deviation of each run of ``window`` returns, shape ``(n − window + 1,)``."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(returns, window).std(axis=1), dtype=np.float64)


def figures(times_s: F64, mid: F64) -> Figures:
    """Measure one series of mids; pieces under three minutes are left out.

    Raises
    ------
    InputError
        If no piece is long enough.
    """
    order = np.argsort(times_s, kind="stable")
    times_s, mid = times_s[order], mid[order]
    edges = [0, *(np.flatnonzero(np.diff(times_s) > _PIECE_S) + 1).tolist(), len(times_s)]
    pieces = [slice(a, b) for a, b in pairwise(edges) if b > a and times_s[b - 1] - times_s[a] >= 180.0]
    if not pieces:
        raise InputError(f"tape has no piece of 180 s among {len(times_s)} tickers: give a longer one")
    returns = [one_second_returns(times_s[p], mid[p]) for p in pieces]
    trailing = np.quantile(np.concatenate([sigma(r) for r in returns]), [0.5, 0.9, 0.99])
    length = sum(float(times_s[p][-1] - times_s[p][0]) for p in pieces)
    every = np.concatenate(returns)
    return Figures(
        sum(p.stop - p.start for p in pieces) / length,
        float(np.mean(np.diff(times_s) == 0.0)),
        float(np.mean(every == 0.0)),
        (float(trailing[0]), float(trailing[1]), float(trailing[2])),
    )


@dataclass(frozen=True, slots=True)
class Foresight:
    """How well volatility so far, and the hidden state itself, tell the next 60 seconds' spikes.

    Attributes
    ----------
    prevalence
        Share of seconds whose next 60 s are a spike: sigma at or above its own 95th percentile.
    ewma
        PR-AUC of an exponentially weighted volatility of one-second returns, time constant 90 s.
    oracle
        PR-AUC of the true hidden h: what nobody who sees only the stream can beat by much.
    """

    prevalence: float
    ewma: float
    oracle: float


def foresight(times_s: F64, mid: F64, h: F64, start_s: float) -> Foresight:
    """Measure it on one product's book mids.

    Parameters
    ----------
    times_s, mid
        Quotes of a generated tape.
    h
        Its hidden path, one value a second.
    start_s
        Time of the path's first step.
    """
    from sklearn.metrics import average_precision_score

    returns = one_second_returns(times_s, mid)
    first = int(np.ceil(times_s[0]) - start_s)
    average, smoothed = float(np.var(returns[:60])), []
    for r in returns.tolist():
        average += (r * r - average) / 90.0
        smoothed.append(average)
    warm = 900
    ahead = sigma(returns)[warm:]
    past = np.asarray(smoothed)[warm - 1 : warm - 1 + len(ahead)]
    hidden = h[first + warm - 1 : first + warm - 1 + len(ahead)]
    spike = ahead >= np.quantile(ahead, 0.95)
    return Foresight(
        float(spike.mean()),
        float(average_precision_score(spike, past)),
        float(average_precision_score(spike, hidden)),
    )


def to_json(named: dict[str, Figures]) -> str:
    """Return figures as one JSON object."""
    return json.dumps(
        {
            name: {"tickers_per_s": f.tickers_per_s, "ties": f.ties, "zeros": f.zeros, "std_p50_p90_p99": f.std}
            for name, f in named.items()
        }
    )
