"""What clients ask for, in either dialect: subscriptions, and why one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from ingestion.exchange.feeds import Dialect

Topic = tuple[str, str]
"""Channel (ticker, trades, book or beats) and product; beats of an Advanced Trade connection have no product."""

EXCHANGE: Final = {
    "ticker": "ticker",
    "matches": "trades",
    "level2_batch": "book",
    "level2_50": "book",
    "heartbeat": "beats",
}
ADVANCED: Final = {"ticker": "ticker", "market_trades": "trades", "level2": "book", "heartbeats": "beats"}
NAMES: Final[dict[Dialect, dict[str, str]]] = {
    # the exchange acknowledges level2_batch by its inner name
    "exchange": {"ticker": "ticker", "trades": "matches", "book": "level2_50", "beats": "heartbeat"},
    "advanced": {"ticker": "ticker", "trades": "market_trades", "book": "level2", "beats": "heartbeats"},
}
_ACTIONS: Final[dict[str | None, Literal["subscribe", "unsubscribe"]]] = {
    "subscribe": "subscribe",
    "unsubscribe": "unsubscribe",
}
_KEYED: Final = ("level2", "level3", "full")
_DOCUMENTED: Final = "https://docs.cdp.coinbase.com/exchange/websocket-feed/authentication"


class Refused(Exception):
    """A request that the exchange answers with an error.

    Attributes
    ----------
    message, reason
        As the answer has them.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(reason or message)
        self.message, self.reason = message, reason


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes
    ----------
    action
        ``subscribe`` or ``unsubscribe``.
    dialect
        Told by its form: ``channels`` are the Exchange's, one ``channel`` is Advanced Trade's.
    topics
        In the order asked, once each. An unsubscription without products has one topic per channel with product "".
    channels
        As the client named them.
    """

    action: Literal["subscribe", "unsubscribe"]
    dialect: Dialect
    topics: tuple[Topic, ...]
    channels: tuple[str, ...]


class _Channel(msgspec.Struct):
    name: str
    product_ids: list[str] | None = None


class _Request(msgspec.Struct):
    type: str | None = None
    product_ids: list[str] | None = None
    channels: list[str | _Channel] | None = None
    channel: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)


def read_request(data: str | bytes, dialect: Dialect | None, products: tuple[str, ...]) -> Request:
    """Read a client's message.

    Parameters
    ----------
    data
        As received.
    dialect
        Of the connection; None where it isn't settled yet.
    products
        Products that may be subscribed.

    Raises
    ------
    Refused
        If it is malformed, or names a channel or product that isn't there. Nothing of such a request is done.
    """
    try:
        said = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("Malformed JSON", str(error)) from error
    action = _ACTIONS.get(said.type)
    if action is None:
        raise Refused("Failed to subscribe", f"{said.type!r} is not a valid type; expected subscribe or unsubscribe")
    form: Dialect = "advanced" if said.channel is not None else "exchange"
    if dialect is not None and form != dialect:
        expected = "channel" if dialect == "advanced" else "channels"
        raise Refused(f"Failed to {action}", f"{expected} is required on this endpoint")
    topics: dict[Topic, None] = {}
    asked: list[str] = []
    for name, ids in _named(said):
        asked.append(name)
        channel = _channel(name, form, action)
        if form == "advanced" and channel == "beats":
            topics[channel, ""] = None
            continue
        if not ids and action == "subscribe":
            reason = f"You need to specify at least one product ID for channel {name}"
            raise Refused(f"Failed to {action}", reason)
        for product in ids:
            if product not in products:
                raise Refused(f"Failed to {action}", f"{product} is not a valid product")
            topics[channel, product] = None
        if not ids:
            topics[channel, ""] = None
    if not asked and action == "unsubscribe":
        topics = dict.fromkeys((c, p) for c in dict.fromkeys(EXCHANGE.values()) for p in said.product_ids or ("",))
    elif not asked:
        raise Refused(f"Failed to {action}", "You need to specify at least one channel")
    return Request(action, form, tuple(topics), tuple(asked))


def _named(said: _Request) -> list[tuple[str, list[str]]]:
    common = said.product_ids or []
    if said.channel is not None:
        return [(said.channel, common)]
    named: list[tuple[str, list[str]]] = []
    for channel in said.channels or []:
        if isinstance(channel, str):
            named.append((channel, common))
        else:
            named.append((channel.name, [*common, *(channel.product_ids or [])]))
    return named


def _channel(name: str, form: Dialect, action: str) -> str:
    if form == "exchange" and name in _KEYED:
        reason = f"level2, level3, and full channels now require authentication. {_DOCUMENTED}"
        raise Refused(f"Failed to {action}", reason)
    channel = (EXCHANGE if form == "exchange" else ADVANCED).get(name)
    if channel is None:
        raise Refused(f"Failed to {action}", f"{name} is not a valid channel")
    return channel
