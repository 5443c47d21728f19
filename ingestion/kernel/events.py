"""What the kernel eats: one product's messages as a flat array of events, in log order.

A message becomes one event, or several where it speaks of several products or trades. Book levels stand beside the
events in one flat array, each event pointing at its slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Kinds of event. Numba reads these as compile-time constants.
TICKER = 1
TRADE = 2
LAST_TRADE = 3  # continuity only
BOOK_UPDATE = 4
BOOK_SNAPSHOT = 5
HEARTBEAT = 6
SUBSCRIBED = 7  # `flags` says what the session subscribes for this product
SEQUENCE_LOSS = 8  # the connection lost messages before the next one
# Records of the ingestor.
SESSION = 9  # a connection begins: `flags` as for SUBSCRIBED; from here on gaps are told, not looked for
STATUS = 10  # what a reader that enters the log here must know: `flags` as for SUBSCRIBED, `trade_id`
GAP = 11  # the next message with a time ends a gap
BOOK_NOTE = 12  # `flags` is the book's state: RESYNCING or STALE
KEYFRAME = 13  # the book as the ingestor has it

# Flags of SUBSCRIBED.
SUB_BOOK = 1
SUB_TRADES = 2
SUB_HEARTBEAT = 4

NO_TIME = np.int64(-1)
NO_ID = np.int64(-1)

EVENT = np.dtype(
    [
        ("kind", "i1"),
        ("side", "i1"),  # taker: +1 buys, −1 sells, 0 unknown
        ("flags", "i1"),
        ("k", "i4"),  # index inside the message
        ("n", "i8"),  # message number in the session
        ("session", "i8"),  # index into Batch.sessions
        ("t_ns", "i8"),  # event time, NO_TIME where the message has none
        ("recv_ns", "i8"),  # receive time, NO_TIME where unknown
        ("trade_id", "i8"),  # NO_ID where there is none
        ("price", "f8"),
        ("size", "f8"),
        ("bid", "f8"),
        ("ask", "f8"),
        ("bid_size", "f8"),
        ("ask_size", "f8"),
        ("lo", "i8"),  # slice of the batch's levels
        ("hi", "i8"),
    ],
    align=True,
)
"""One event; NaN where a message has no such number."""

LEVEL = np.dtype([("price", "f8"), ("size", "f8"), ("side", "i8")])
"""One change of a book level: side 0 bids, 1 asks; size 0 removes."""


@dataclass(slots=True)
class Reject:
    """A message that was not used: its number, why, and its bytes for the dead-letter file."""

    n: int
    reason: str
    line: bytes


@dataclass(slots=True)
class Batch:
    """A stretch of the log, decoded.

    Attributes
    ----------
    events
        Per product, EVENT[n] in log order.
    levels
        LEVEL[m], shared by all products.
    sessions
        Session ids (16 hex digits) that ``EVENT.session`` points into.
    counts
        Messages by type, and rejections by reason.
    rejects
        What goes to the dead-letter file.
    """

    events: dict[str, NDArray[np.void]] = field(default_factory=dict)
    levels: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, LEVEL))
    sessions: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
