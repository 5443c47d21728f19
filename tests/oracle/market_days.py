"""Days of the generated market as feature tables and labels, in memory: messages through the kernel, no files between.

A day of a product takes about 15 s, so each is kept in a cache folder under a name that changes with the code that
makes it: the market's and the kernel's sources, the contract.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import CALENDAR, DEFAULT_SERVICE, SERVICES
from infra.settings import ROOT
from ingestion.kernel import ROW_SCHEMA, Featurizer, Options
from ingestion.kernel.label import sigma_fwd
from ingestion.market import PRODUCTS, START_NS, generate, latent
from ingestion.market.parameters import DEFAULT

S: Final = 1_000_000_000
DAY_S: Final = 86_400
EVERY_S: Final = 5
"""Grid of the rows: neighbouring seconds nearly repeat each other, a fifth of them tells as much."""
WARM_S: Final = 900
"""The longest window: before it is full a row has less to read than the filter has seen."""
FEATURES: Final = tuple(name for name in SERVICES[DEFAULT_SERVICE] if name not in CALENDAR)
"""What models read where training spans less than a week; a generated market has no times of day either."""
_LINES = 50_000
_SOURCES = ("ingestion/market", "ingestion/kernel", "feature_repo/contract.py")
FORMAT: Final = 1
"""Of the kept files; raise it when what they hold changes."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the stream showed of the process, by second of the tape: all that a filter can use.

    Attributes
    ----------
    orders, moves, wide
        int64[seconds]: slots with a taker order, quote moves, moves after which the spread was over one tick.
    jumps
        int64[Σ moves], sizes of the moves in ticks, in order.
    """

    orders: NDArray[np.int64]
    moves: NDArray[np.int64]
    wide: NDArray[np.int64]
    jumps: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Day:
    """One product's day: grid rows with a label and a full window, what the stream showed, and the truth behind it.

    Attributes
    ----------
    product
        Product id.
    start_ns
        Second 0 of the tape, ns UTC.
    t_ns
        int64[n], times of the rows.
    x
        float64[n, f], columns :data:`FEATURES`, NaN where null.
    sigma_fwd
        float64[n], the label's volatility.
    mid
        float64[n], last mid, quote currency.
    shown
        By second.
    regime, ou, burst
        [seconds], the hidden state.
    """

    product: str
    start_ns: int
    t_ns: NDArray[np.int64]
    x: NDArray[np.float64]
    sigma_fwd: NDArray[np.float64]
    mid: NDArray[np.float64]
    shown: Shown
    regime: NDArray[np.int64]
    ou: NDArray[np.float64]
    burst: NDArray[np.float64]

    @property
    def second(self) -> NDArray[np.int64]:
        """int64[n]: seconds of the tape that lie wholly before each row."""
        return (self.t_ns - self.start_ns) // S


def days(
    seeds: Sequence[int], *, products: Sequence[str] = PRODUCTS, seconds: int = DAY_S, jobs: int = 2, first: int = 0
) -> list[Day]:
    """Make one day of each seed and product, or read it from the cache.

    Parameters
    ----------
    seeds
        One day each, put one after the other on the clock.
    products, seconds
        Of each tape.
    jobs
        Processes.
    first
        Days between the market's start and the first of these.

    Returns
    -------
    list of Day
        By seed, then product.
    """
    asked = [(seed, p, seconds, START_NS + (first + i) * DAY_S * S) for i, seed in enumerate(seeds) for p in products]
    missing = [one for one in asked if not path_of(*one).exists()]
    if missing:
        with ProcessPoolExecutor(min(jobs, len(missing)), get_context("spawn")) as pool:
            list(pool.map(make, *zip(*missing, strict=True)))
    return [read(*one) for one in asked]


def cache() -> Path:
    """Folder of the cache folders."""
    return Path(tempfile.gettempdir())


def path_of(seed: int, product: str, seconds: int, start_ns: int) -> Path:
    """File that holds a day."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for source in _SOURCES:
        path = ROOT / source
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    folder = cache() / f"volspike-market-{digest.hexdigest()[:12]}"
    return folder / f"{seed}_{product}_{seconds}s_{start_ns // S}.npz"


def make(seed: int, product: str, seconds: int, start_ns: int) -> None:
    """Make one product's day and keep it."""
    messages = generate(seed=seed, seconds=seconds, products=[product], start_ns=start_ns)
    featurizer = Featurizer("5eed" + "0" * 12, Options(every_s=EVERY_S, compute_every_n=2**62))
    names = ("event_time_ns", "coverage_s", "mid", *FEATURES)
    rows, quotes, orders = [], [], set()
    for chunk in _chunks(raw for _, _, raw in messages):
        orders.update(_time(raw) for raw in chunk if raw.startswith(b'{"type":"match"'))
        made = featurizer.push_lines(b"\n".join(chunk) + b"\n")
        wanted = made.features.select([c for c in ROW_SCHEMA.names if c in names])
        rows.append(np.column_stack([wanted[c].to_numpy().astype(np.float64) for c in names[1:]]))
        rows[-1] = np.column_stack([wanted["event_time_ns"].to_numpy() - start_ns, rows[-1]])
        quotes.append([made.quotes[c].to_numpy() for c in ("event_time_ns", "bid", "ask")])
    table = np.vstack(rows)
    q_t, bid, ask = (np.concatenate(column) for column in zip(*quotes, strict=True))
    if np.isnan(bid).any():
        raise RuntimeError(f"the tape of seed {seed}, {product} has gaps: a generated market has none")
    t = start_ns + table[:, 0].astype(np.int64)
    none = np.zeros(0, np.int64)
    sigma = sigma_fwd(t, q_t, bid, ask, none, none, start_ns + (seconds - 1) * S)
    keep = ~np.isnan(sigma) & (table[:, 1] >= WARM_S)
    order_t = np.array(sorted(orders), dtype="datetime64[us]").astype(np.int64) * 1000
    shown = _shown(order_t - start_ns, q_t - start_ns, bid, ask, product, seconds)
    hidden = latent(seed=seed, seconds=seconds, products=[product])[product]
    path = path_of(seed, product, seconds, start_ns)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{np.random.SeedSequence().entropy}.part.npz")
    np.savez(
        part,
        t_ns=t[keep],
        x=table[keep, 3:].astype(np.float32),  # trees compare in float32 too; it halves the cache
        sigma_fwd=sigma[keep],
        mid=table[keep, 2],
        regime=hidden.regime,
        ou=hidden.ou,
        burst=hidden.burst,
        orders=shown.orders,
        moves=shown.moves,
        wide=shown.wide,
        jumps=shown.jumps,
    )
    part.replace(path)


def read(seed: int, product: str, seconds: int, start_ns: int) -> Day:
    """Read a day that :func:`make` kept."""
    with np.load(path_of(seed, product, seconds, start_ns)) as kept:
        a = {name: kept[name] for name in kept.files}
    shown = Shown(a["orders"], a["moves"], a["wide"], a["jumps"])
    x = a["x"].astype(np.float64)
    return Day(
        product, start_ns, a["t_ns"], x, a["sigma_fwd"], a["mid"], shown, a["regime"], a["ou"], a["burst"]
    )


def _shown(
    order_ns: NDArray[np.int64],
    quote_ns: NDArray[np.int64],
    bid: NDArray[np.float64],
    ask: NDArray[np.float64],
    product: str,
    seconds: int,
) -> Shown:
    """Count what shows; a quote move always moves the best bid, and nothing else does."""
    tick = 10.0 ** DEFAULT.products[product].decimals
    bids, asks = np.rint(bid * tick).astype(np.int64), np.rint(ask * tick).astype(np.int64)
    moved = np.flatnonzero(np.diff(bids)) + 1
    at = quote_ns[moved] // S
    return Shown(
        np.bincount(order_ns // S, minlength=seconds),
        np.bincount(at, minlength=seconds),
        np.bincount(at[(asks - bids)[moved] > 1], minlength=seconds),
        np.abs(np.diff(bids))[moved - 1],
    )


def _time(raw: bytes) -> str:
    at = raw.index(b'"time":"') + 8
    return raw[at : raw.index(b'Z"', at)].decode()


def _chunks(lines: Iterable[bytes]) -> Iterable[list[bytes]]:
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == _LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
