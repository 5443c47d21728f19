"""The two dialects as a client speaks them: addresses, names of channels, subscribe and unsubscribe.

Source: Coinbase Exchange and Advanced Trade WebSocket documentation. The Exchange feed takes all channels in one
message; Advanced Trade takes one channel a message, under names of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from feature_repo.errors import UsageError
from ingestion.topics import Dialect

URLS: Final[dict[str, str]] = {
    "exchange": "wss://ws-feed.exchange.coinbase.com",
    "advanced": "wss://advanced-trade-ws.coinbase.com",
}
ADVANCED_NAMES: Final = {
    "ticker": "ticker",
    "matches": "market_trades",
    "level2_batch": "level2",
    "heartbeat": "heartbeats",
}
"""Channels of the Exchange feed that volspike reads, and what Advanced Trade calls them."""
BOOK: Final = "level2_batch"
HEARTBEAT: Final = "heartbeat"


class Feed(NamedTuple):
    """Where to connect and what is spoken there."""

    url: str
    dialect: Dialect


def feed_of(name: str) -> Feed:
    """Return the feed that a setting names.

    Parameters
    ----------
    name
        ``exchange``, ``advanced``, or a WebSocket address; an address that has the word advanced in its host or path
        speaks that dialect, any other the Exchange one.

    Raises
    ------
    UsageError
        If it is neither.

    Examples
    --------
    >>> feed_of("ws://127.0.0.1:8765/advanced").dialect
    'advanced'
    """
    if name in URLS:
        return Feed(URLS[name], "advanced" if name == "advanced" else "exchange")
    try:
        parts = urlsplit(name)
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"feed is {name!r}, expected exchange, advanced or an address such as ws://127.0.0.1:8765; set --feed or "
            "VOLSPIKE_FEED"
        )
    return Feed(name, "advanced" if "advanced" in f"{parts.hostname}{parts.path}" else "exchange")


def checked_channels(channels: Sequence[str]) -> tuple[str, ...]:
    """Return the channels by their names on the Exchange feed.

    Raises
    ------
    UsageError
        If there is none, or one that volspike doesn't read.
    """
    back = {theirs: ours for ours, theirs in ADVANCED_NAMES.items()}
    named = tuple(dict.fromkeys(back.get(c, c) for c in channels))
    unknown = [c for c in named if c not in ADVANCED_NAMES]
    if unknown or not named:
        raise UsageError(
            f"channels were {','.join(channels) or 'none'}, must be some of {', '.join(ADVANCED_NAMES)}; set --channels"
        )
    return named


def requests(
    dialect: Dialect,
    what: Literal["subscribe", "unsubscribe"],
    products: Sequence[str],
    channels: Sequence[str],
) -> list[str]:
    """Return the messages that subscribe, or unsubscribe, these products' channels.

    Examples
    --------
    >>> requests("advanced", "subscribe", ["BTC-USD"], ["level2_batch"])
    ['{"type":"subscribe","product_ids":["BTC-USD"],"channel":"level2"}']
    """
    base = {"type": what, "product_ids": list(products)}
    if dialect == "exchange":
        return [msgspec.json.encode({**base, "channels": list(channels)}).decode()]
    return [msgspec.json.encode({**base, "channel": ADVANCED_NAMES[c]}).decode() for c in channels]
