"""All that the kernel remembers of one product, as flat arrays: owned here, saved and restored to the byte.

Four series enter windows: tickers, changes of the mid, trades and book samples. Each has a ring of its entries, a
tail index per window and the sums of :mod:`ingestion.kernel.sums`. Rings grow with what the longest window holds
and with nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import WINDOWS, service_hash
from feature_repo.errors import ContractError
from ingestion.kernel.book import Book, empty_book, reserve

N_WINDOWS = len(WINDOWS)
FORMAT = 1

# Columns of the rings.
PRICE, RETURN, INTERVAL = 0, 1, 2
MID_RETURN, SPREAD = 0, 1
SIZE, SIGNED = 0, 1
BID_SIZE, ASK_SIZE, BID_L10, ASK_L10, MICRO, FLOW = 0, 1, 2, 3, 4, 5

# Sums of the ticker series; those about a shift K name their group.
T_P1, T_P2, T_PX, T_R1, T_R2, T_R3, T_R4, T_D1, T_D2 = range(9)
G_PRICE, G_RETURN, G_INTERVAL = 0, 1, 2
# Sums of the mid series.
M_R1, M_R2, M_BP, M_S1, M_S2 = range(5)
G_MID, G_SPREAD = 0, 1
# Sums of the sample series: six plain ones in the order of the ring but the microprice, then its two moments.
S_BID, S_ASK, S_BID10, S_ASK10, S_M1, S_M2, S_FLOW = range(7)
G_MICRO = 0
# Columns of Series.ref.
SHIFT, PEAK = 0, 1

SCALARS = np.dtype(
    [
        ("started", "i8"),  # a message with a time has been seen in this stream
        ("connection", "i8"),  # index of the session in force, −1 before the first
        ("fresh", "i8"),  # it has begun and its first timed message is awaited
        ("had_book", "i8"),  # the session before it quoted from a book
        ("session", "i8"),  # index of the session of message n
        ("watermark", "i8"),
        ("next_grid", "i8"),
        ("n", "i8"),  # last message of the product
        ("recv", "i8"),  # its receive time, or effective time where unknown
        ("grid_k", "i8"),  # grid rows since that message
        ("row_time_us", "i8"),
        ("tickers", "i8"),  # counted for thinning
        ("subscribed", "i8"),  # −1 unknown, else flags
        ("heartbeats", "i8"),
        ("quote_source", "i8"),  # 0 open, 1 tickers, 2 book
        ("trade_source", "i8"),  # 0 open, 1 tickers, 2 matches
        ("trade_id", "i8"),
        ("lost", "i8"),  # a sequence loss awaits the next timed message
        ("book_state", "i8"),
        ("book_pending", "i8"),  # a snapshot without a time is loaded and awaits the next l2update
        ("gap_open", "i8"),
        ("gap_start", "i8"),
        ("cover_start", "i8"),
        ("gap_end", "i8"),  # of the last closed gap, −1 before the first
        ("gap_length", "i8"),
        ("bid", "f8"),
        ("ask", "f8"),
        ("bid_size", "f8"),
        ("ask_size", "f8"),
        ("mid_valid", "i8"),  # a quote has been seen
        ("mid", "f8"),  # of the last change of a best price: the other end of the next return
        ("last_spread", "f8"),
        ("last_price", "f8"),
        ("last_tick", "i8"),
        ("s_bid", "f8"),  # last book sample
        ("s_ask", "f8"),
        ("s_bid_size", "f8"),
        ("s_ask_size", "f8"),
        # index of the last entry that differs from the one before: a window is constant iff it begins at or after it
        ("price_change", "i8"),
        ("return_change", "i8"),
        ("interval_change", "i8"),
        ("mid_return_change", "i8"),
        ("spread_change", "i8"),
        ("micro_change", "i8"),
        # monotone queues over the tickers' prices
        ("min_lo", "i8"),
        ("min_hi", "i8"),
        ("max_lo", "i8"),
        ("max_hi", "i8"),
    ]
)
"""The scalars of a product's state; times in ns unless named otherwise."""

COUNTERS = (
    "reordered late gaps gap_session gap_silence gap_trades gap_sequence gap_source gap_crossed "
    "unknown_delete crossed one_sided ignored_book crossed_snapshot ticker_rows grid_rows quotes"
).split()
"""What the kernel counts, in the order of State.counts."""


class Series(NamedTuple):
    """One series' ring and sums.

    Attributes
    ----------
    t
        int64[capacity], effective times in ns; the capacity is a power of two.
    v
        float64[capacity, columns].
    acc
        float64[windows, sums, 2], pairs (hi, lo).
    ref
        float64[windows, groups, 2], shift K and peak of the highest even power sum.
    tail
        int64[windows], absolute index of the first entry inside.
    head
        int64[1], absolute index after the last entry.
    """

    t: NDArray[np.int64]
    v: NDArray[np.float64]
    acc: NDArray[np.float64]
    ref: NDArray[np.float64]
    tail: NDArray[np.int64]
    head: NDArray[np.int64]


class State(NamedTuple):
    """One product's state; every member is an array, so that saving is writing them down."""

    s: NDArray[np.void]
    tick: Series
    mid: Series
    trade: Series
    sample: Series
    min_queue: NDArray[np.int64]
    max_queue: NDArray[np.int64]
    lag_std: NDArray[np.float64]
    counts: NDArray[np.int64]
    book: Book


def _series(columns: int, sums: int, groups: int, capacity: int = 1024) -> Series:
    return Series(
        t=np.zeros(capacity, np.int64),
        v=np.zeros((capacity, columns)),
        acc=np.zeros((N_WINDOWS, sums, 2)),
        ref=np.zeros((N_WINDOWS, max(groups, 1), 2)),
        tail=np.zeros(N_WINDOWS, np.int64),
        head=np.zeros(1, np.int64),
    )


def new_state() -> State:
    """Return the state of a product of which nothing has been seen."""
    s = np.zeros(1, SCALARS)
    s["connection"] = s["session"] = s["subscribed"] = s["trade_id"] = s["gap_end"] = s["n"] = -1
    s["row_time_us"] = np.iinfo(np.int64).min
    for name in ("bid", "ask", "bid_size", "ask_size", "mid", "s_bid", "s_ask", "s_bid_size", "s_ask_size"):
        s[name] = np.nan
    return State(
        s=s,
        tick=_series(3, 9, 3),
        mid=_series(2, 5, 2),
        trade=_series(2, 2, 0),
        sample=_series(6, 7, 1),
        min_queue=np.zeros(1024, np.int64),
        max_queue=np.zeros(1024, np.int64),
        lag_std=np.full(N_WINDOWS, np.nan),
        counts=np.zeros(len(COUNTERS), np.int64),
        book=empty_book(),
    )


def _grow_ring(ring: NDArray[np.generic], lo: int, hi: int, capacity: int) -> NDArray[np.generic]:
    index = np.arange(lo, hi)
    grown = np.zeros((capacity, *ring.shape[1:]), ring.dtype)
    grown[index & (capacity - 1)] = ring[index & (len(ring) - 1)]
    return grown


def _room(series: Series, more: int) -> Series:
    lo, hi = int(series.tail.min()), int(series.head[0])
    need = hi - lo + more + 1
    if need <= len(series.t):
        return series
    capacity = 1 << (need - 1).bit_length()
    return series._replace(
        t=_grow_ring(series.t, lo, hi, capacity),
        v=_grow_ring(series.v, lo, hi, capacity),
    )


def make_room(state: State, *, tickers: int, trades: int, books: int, levels: int) -> State:
    """Return the same state with rings that hold that many more entries."""
    grown = state._replace(
        tick=_room(state.tick, tickers),
        mid=_room(state.mid, tickers + 2 * books),
        trade=_room(state.trade, tickers + trades),
        sample=_room(state.sample, tickers + 2 * books),
        book=reserve(state.book, levels),
    )
    s = state.s[0]
    capacity = len(grown.tick.t)
    if capacity > len(state.min_queue):
        grown = grown._replace(
            min_queue=_grow_ring(state.min_queue, int(s["min_lo"]), int(s["min_hi"]), capacity),
            max_queue=_grow_ring(state.max_queue, int(s["max_lo"]), int(s["max_hi"]), capacity),
        )
    return grown


def _flatten(value: object) -> list[NDArray[np.generic]]:
    if isinstance(value, tuple):
        return [array for member in value for array in _flatten(member)]
    assert isinstance(value, np.ndarray)  # noqa: S101 - the members of State are arrays
    return [value]


def _rebuild(like: object, arrays: list[NDArray[np.generic]]) -> object:
    if isinstance(like, tuple):
        return type(like)(*(_rebuild(member, arrays) for member in like))
    return arrays.pop(0)


def dump(state: State) -> bytes:
    """Return the state as bytes (MessagePack of raw arrays, with the contract's hash)."""
    arrays = [(a.shape, a.tobytes()) for a in _flatten(state)]
    return msgspec.msgpack.encode((FORMAT, service_hash("spike_full_v1"), arrays))


def load(data: bytes) -> State:
    """Return the state that :func:`dump` wrote.

    Raises
    ------
    ContractError
        If it was written by another format or contract.
    """
    try:
        form, contract, arrays = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise ContractError(f"checkpoint: not a kernel state ({error}); start from the log instead") from error
    if (form, contract) != (FORMAT, service_hash("spike_full_v1")):
        raise ContractError(
            f"checkpoint: format {form}, contract {contract}; expected {FORMAT}, {service_hash('spike_full_v1')}: "
            "start from the log instead"
        )
    like = new_state()
    restored = [
        np.frombuffer(raw, dtype=was.dtype).reshape(shape).copy()
        for (shape, raw), was in zip(arrays, _flatten(like), strict=True)
    ]
    state = _rebuild(like, restored)
    assert isinstance(state, State)  # noqa: S101 - _rebuild keeps the type
    return state
