"""The ingestor's own records of the raw log, as bytes: session, gap, book, status, keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from ingestion.kernel.book import ASKS, BIDS, Book, side_levels
from ingestion.topics import Dialect

KEYFRAME_LEVELS: Final = 1000
"""Best levels a side in a keyframe."""
Reason = Literal["trades", "silence", "sequence", "crossed", "dropped", "keyframe"]
"""What showed a gap."""
BookState = Literal["resyncing", "stale"]

_encode = msgspec.json.Encoder().encode


def session(dialect: Dialect, products: Sequence[str], channels: Sequence[str]) -> bytes:
    """Return the first record of a session: what it subscribes.

    Examples
    --------
    >>> session("exchange", ["BTC-USD"], ["ticker"]).decode()
    '{"type":"session","feed":"exchange","products":["BTC-USD"],"channels":["ticker"]}'
    """
    return _encode({"type": "session", "feed": dialect, "products": list(products), "channels": list(channels)})


def gap(product_id: str | None, reason: Reason) -> bytes:
    """Return the record that stands before the message that showed a gap; no product means all."""
    return _encode({"type": "gap", "product_id": product_id or None, "reason": reason})


def book(product_id: str, state: BookState) -> bytes:
    """Return the record that a book's retry budget is used up, or that it tries again."""
    return _encode({"type": "book", "product_id": product_id, "state": state})


def status(product_id: str, channels: Sequence[str], trade_id: int | None) -> bytes:
    """Return what a reader that enters the log here must know of a product."""
    return _encode({"type": "status", "product_id": product_id, "channels": list(channels), "trade_id": trade_id})


def keyframe(product_id: str, levels: Book) -> bytes:
    """Return the best levels of a book, best first, as pairs of price and size."""
    return _encode(
        {
            "type": "keyframe",
            "product_id": product_id,
            "bids": side_levels(levels, BIDS, KEYFRAME_LEVELS).tolist(),
            "asks": side_levels(levels, ASKS, KEYFRAME_LEVELS).tolist(),
        }
    )
