"""A chunk of decoded messages beside what the log says of each; what both dialects' decoders share."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.events import SUB_BOOK, SUB_HEARTBEAT, SUB_TRADES
from ingestion.kernel.messages import Message

FEED, RECORD = 0, 1
"""Who wrote a message: the exchange or the ingestor."""
_BOOK_CHANNELS = {"level2", "level2_batch", "level2_50", "l2_data"}
_TRADE_CHANNELS = {"matches", "market_trades"}
_HEARTBEAT_CHANNELS = {"heartbeat", "heartbeats"}


def channel_flag(name: str) -> int:
    """Return the SUBSCRIBED flag of a channel, 0 where it bears neither quotes, trades nor heartbeats."""
    if name in _BOOK_CHANNELS:
        return SUB_BOOK
    if name in _TRADE_CHANNELS:
        return SUB_TRADES
    return SUB_HEARTBEAT if name in _HEARTBEAT_CHANNELS else 0


@dataclass(slots=True)
class Chunk:
    """Decoded messages of a chunk beside what the log says of each.

    Attributes
    ----------
    messages
        The inner messages.
    n
        int64[m], message numbers.
    session
        int64[m], index into the decoder's sessions.
    recv_ns
        int64[m], NO_TIME where unknown.
    lines
        Index of each message's line in the chunk.
    kind
        int8[m]: FEED for what the exchange sent, RECORD for what the ingestor wrote.
    """

    messages: list[Message]
    n: NDArray[np.int64]
    session: NDArray[np.int64]
    recv_ns: NDArray[np.int64]
    lines: NDArray[np.int64]
    kind: NDArray[np.int8]


def reason_of(error: Exception) -> str:
    """Return why a line can't be decoded and at which field, without the byte that would make each reason its own."""
    return re.sub(r" \(byte \d+\)", "", str(error)).replace("`", "")[:120]
