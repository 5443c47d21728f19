"""All that the kernel remembers of one product, as flat arrays: owned here, saved and restored to the byte.

Four series enter windows: tickers, changes of the mid, trades and book samples. Each has a ring of its entries, a
tail index per window and the sums of :mod:`ingestion.kernel.sums`. Rings grow with what the longest window holds
and with nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import WINDOWS, service_hash
from feature_repo.errors import ContractError
from ingestion.kernel.book import Book, empty_book, reserve

N_WINDOWS = len(WINDOWS)
FORMAT = 4

# Sources of quotes and of trades.
OPEN, TICKERS, BOOK = 0, 1, 2
MATCHES = 2

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
# The series, first index of State.acc and State.index.
TICK, MID, TRADE, SAMPLE = range(4)
# State.acc holds the sums as pairs (hi, lo), then a pair (shift K, peak of the highest even power sum) per group.
REF = 9
SHIFT, PEAK = 0, 1
N_SUMS = REF + 3
# Column of State.index after the tails of the windows.
HEAD = N_WINDOWS

SCALARS = np.dtype(
    [
        ("started", "i8"),  # a message with a time has been seen in this stream
        ("connection", "i8"),  # index of the session in force, −1 before the first
        ("fresh", "i8"),  # it has begun and its first timed message is awaited
        ("alone", "i8"),  # its first timed message has been the only one
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
        ("told", "i8"),  # the log records the gaps of this session: look for none
        ("heartbeats", "i8"),
        ("quote_source", "i8"),  # OPEN, TICKERS or BOOK
        ("trade_source", "i8"),  # OPEN, TICKERS or MATCHES
        ("trade_id", "i8"),
        ("lost", "i8"),  # a loss awaits the next timed message: 1 seen in the sequence, 2 recorded
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
    ]
)
"""The scalars of a product's state; times in ns unless named otherwise."""

COUNTERS = (
    "reordered late gaps gap_session gap_silence gap_trades gap_sequence gap_source gap_recorded gap_crossed "
    "unknown_delete crossed one_sided ignored_book crossed_snapshot ticker_rows grid_rows quotes keyframe_differs"
).split()
"""What the kernel counts, in the order of State.counts."""


class State(NamedTuple):
    """One product's state; every member is an array, so that saving is writing them down.

    Attributes
    ----------
    s
        SCALARS[1].
    tick_t, mid_t, trade_t, sample_t
        int64[capacity], the rings' effective times in ns; each capacity is a power of two.
    tick_v, mid_v, trade_v, sample_v
        float64[capacity, columns].
    acc
        float64[4 series, windows, N_SUMS, 2].
    index
        int64[4 series, windows + 1]: absolute index of the first entry inside each window, and of the next to come.
    queue
        int64[2, capacity of ticks], candidates for minimum and maximum price.
    front
        int64[2, windows + 1]: of each queue, where the candidates of each window begin, and where they end.
    lag_std
        float64[windows], return_std as it stood at the last ticker.
    counts
        int64[COUNTERS].
    levels, first, blocks
        The book; see :mod:`ingestion.kernel.book`.
    """

    s: NDArray[np.void]
    tick_t: NDArray[np.int64]
    tick_v: NDArray[np.float64]
    mid_t: NDArray[np.int64]
    mid_v: NDArray[np.float64]
    trade_t: NDArray[np.int64]
    trade_v: NDArray[np.float64]
    sample_t: NDArray[np.int64]
    sample_v: NDArray[np.float64]
    acc: NDArray[np.float64]
    index: NDArray[np.int64]  # type: ignore[assignment]  # the name of a method of tuples, which nobody calls
    queue: NDArray[np.int64]
    front: NDArray[np.int64]
    lag_std: NDArray[np.float64]
    counts: NDArray[np.int64]
    levels: NDArray[np.float64]
    first: NDArray[np.float64]
    blocks: NDArray[np.int64]

    @property
    def book(self) -> Book:
        """The product's book."""
        return Book(self.levels, self.first, self.blocks)


def new_state(capacity: int = 1024) -> State:
    """Return the state of a product of which nothing has been seen."""
    s = np.zeros(1, SCALARS)
    for name in ("connection", "session", "subscribed", "trade_id", "gap_end", "n"):
        s[name] = -1
    s["row_time_us"] = np.iinfo(np.int64).min
    for name in ("bid", "ask", "bid_size", "ask_size", "mid", "s_bid", "s_ask", "s_bid_size", "s_ask_size"):
        s[name] = np.nan

    def times() -> NDArray[np.int64]:
        return np.zeros(capacity, np.int64)

    def values(columns: int) -> NDArray[np.float64]:
        return np.zeros((capacity, columns))

    book = empty_book()
    return State(
        s=s,
        tick_t=times(),
        tick_v=values(3),
        mid_t=times(),
        mid_v=values(2),
        trade_t=times(),
        trade_v=values(2),
        sample_t=times(),
        sample_v=values(6),
        acc=np.zeros((4, N_WINDOWS, N_SUMS, 2)),
        index=np.zeros((4, N_WINDOWS + 1), np.int64),
        queue=np.zeros((2, capacity), np.int64),
        front=np.zeros((2, N_WINDOWS + 1), np.int64),
        lag_std=np.full(N_WINDOWS, np.nan),
        counts=np.zeros(len(COUNTERS), np.int64),
        levels=book.levels,
        first=book.first,
        blocks=book.blocks,
    )


def _capacity(now: int, need: int) -> int:
    return now if need <= now else 1 << (need - 1).bit_length()


def _move(old: Any, new: Any, lo: int, hi: int) -> None:
    """Copy the entries lo…hi−1 from one ring (last axis first) to a larger one."""
    index = np.arange(lo, hi)
    new[index & (len(new) - 1)] = old[index & (len(old) - 1)]


def make_room(state: State, *, tickers: int, trades: int, books: int, levels: int) -> State:
    """Return the same state with rings and a book that hold that many more entries."""
    members = state._asdict()
    more = {TICK: tickers, MID: tickers + 2 * books, TRADE: tickers + trades, SAMPLE: tickers + 2 * books}
    for series, name in ((TICK, "tick"), (MID, "mid"), (TRADE, "trade"), (SAMPLE, "sample")):
        lo, hi = int(state.index[series, :HEAD].min()), int(state.index[series, HEAD])
        t, v = members[f"{name}_t"], members[f"{name}_v"]
        capacity = _capacity(len(t), hi - lo + more[series] + 1)
        if capacity > len(t):
            members[f"{name}_t"], members[f"{name}_v"] = np.zeros(capacity, np.int64), np.zeros((capacity, v.shape[1]))
            _move(t, members[f"{name}_t"], lo, hi)
            _move(v, members[f"{name}_v"], lo, hi)
    capacity = len(members["tick_t"])
    if capacity > state.queue.shape[1]:
        members["queue"] = np.zeros((2, capacity), np.int64)
        for old, new, front in zip(state.queue, members["queue"], state.front, strict=True):
            _move(old, new, int(front.min()), int(front[HEAD]))
    members["levels"], members["first"], members["blocks"] = reserve(state.book, levels)
    return State(**members)


def dump(state: State) -> tuple[Any, ...]:
    """Return the state as what MessagePack can hold: the contract's hash, each array's shape and its memory itself.

    Encode it before the state goes on.
    """
    arrays = [(a.shape, np.ascontiguousarray(a).reshape(-1).view(np.uint8).data) for a in state]
    return FORMAT, service_hash("spike_full_v1"), arrays


def load(dumped: Any) -> State:
    """Return the state that :func:`dump` gave, as decoded.

    Raises
    ------
    ContractError
        If it was written by another format or contract.
    """
    try:
        form, contract, arrays = dumped
    except (ValueError, TypeError) as error:
        raise ContractError(f"checkpoint: not a kernel state ({error}); start from the log instead") from error
    if (form, contract) != (FORMAT, service_hash("spike_full_v1")):
        raise ContractError(
            f"checkpoint: format {form}, contract {contract}; expected {FORMAT}, {service_hash('spike_full_v1')}: "
            "start from the log instead"
        )
    members = zip(arrays, new_state(), strict=True)
    return State(*(np.frombuffer(raw, dtype=was.dtype).reshape(shape).copy() for (shape, raw), was in members))
