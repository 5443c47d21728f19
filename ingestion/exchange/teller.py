"""Who is told what: items of the feed, and the answers to requests, in each client's dialect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from ingestion.exchange import messages as say
from ingestion.exchange.client import Client
from ingestion.exchange.feeds import Dialect, Feed, Item
from ingestion.exchange.frames import Message
from ingestion.exchange.market import Market
from ingestion.exchange.pace import Pace
from ingestion.exchange.requests import Refused, Request, Topic
from ingestion.exchange.times import Shift

_CHECKED: Final = ("l2update", "snapshot", "last_match", "heartbeat")
"""Kinds that not every subscriber gets."""
_CHANNEL: Final = {
    "ticker": "ticker",
    "match": "trades",
    "last_match": "trades",
    "l2update": "book",
    "snapshot": "book",
    "heartbeat": "beats",
}


class Teller:
    """Turn items and requests into messages.

    Parameters
    ----------
    market
        Learns from each item before anybody is told.
    pace
        Says what time it is.
    feed
        That is served.
    noted
        Whether a ledger is kept.
    """

    def __init__(self, market: Market, pace: Pace, feed: Feed, *, noted: bool) -> None:
        self.market, self.pace = market, pace
        self._native = feed.dialect == "advanced"
        self._makes_beats = not feed.heartbeats
        self._noted = noted
        self._beat = 0

    def tell(self, item: Item, clients: Collection[Client], now_s: float) -> None:
        """Send an item to those who subscribed it; ``now_s`` is the clock of stalls and repeated faults."""
        try:
            item = self.market.apply(item)
        except (msgspec.MsgspecError, ValueError):
            pass  # a damaged message on a tape is sent as it is: clients must bear it
        kind = item.kind
        topic = (_CHANNEL[kind], item.product)
        exchange = advanced = None
        for client in clients:
            if topic not in client.topics or (kind in _CHECKED and not self._concerns(item, topic, client)):
                continue
            if client.dialect == "exchange":
                if exchange is None:
                    exchange = self._message(item, "exchange", self.pace.shift)
                client.send(exchange, now_s, item.recv_ns / 1e9)
            else:
                if advanced is None:
                    advanced = self._message(item, "advanced", self.pace.shift)
                client.send(advanced, now_s, item.recv_ns / 1e9)

    def openings(self, client: Client, request: Request) -> Iterator[Message]:
        """Yield the answer to a subscription or unsubscription, and do it."""
        dialect = request.dialect
        fresh: list[Topic] = []
        for channel, product in request.topics:
            if request.action == "unsubscribe":
                gone = [t for t in client.topics if t[0] == channel and product in ("", t[1])]
                for topic in gone:
                    del client.topics[topic]
                    client.told.discard(topic)
            elif (channel, product) not in client.topics:
                client.topics[channel, product] = None
                fresh.append((channel, product))
        now_ns, shift = self.pace.now_ns(), self.pace.shift
        # The Exchange answers first; Advanced Trade sends what it has, then the answer.
        if dialect == "exchange":
            yield Message("subscriptions", "", "", say.subscriptions(client.topics))
        for topic in fresh:
            opening = self._opening(client, topic, now_ns, shift)
            if opening is not None:
                yield opening
        if dialect == "advanced":
            yield Message("subscriptions", "", "", *say.advanced_subscriptions(client.topics, now_ns, shift))

    def check(self, request: Request) -> None:
        """Refuse a dialect that the feed can't be told in.

        Raises
        ------
        Refused
            If the feed is a recording of Advanced Trade, and the request the Exchange's.
        """
        if self._native and request.dialect == "exchange":
            raise Refused("Failed to subscribe", "this tape is of Advanced Trade; connect to /advanced")

    def ahead(self, item: Item, dialect: Dialect, seconds: float) -> Message:
        """Return an item's message with times so many seconds ahead."""
        return self._message(item, dialect, self.pace.shift.ahead(seconds))

    def _concerns(self, item: Item, topic: Topic, client: Client) -> bool:
        if item.kind == "l2update":
            return topic in client.told
        if item.kind == "last_match":
            if topic in client.told:
                return False
            client.told.add(topic)
        elif item.kind == "snapshot":
            client.told.add(topic)
            if client.mischief.on_request("no_snapshot", item.product):
                client.omit(Message("snapshot", item.product, "", b""), "no_snapshot")
                return False
        return not (item.kind == "heartbeat" and client.dialect == "advanced")

    def _message(self, item: Item, dialect: Dialect, shift: Shift) -> Message:
        kind, product = item.kind, item.product
        if self._native:
            key = say.key_of(item, shift) if self._noted else ""
            return Message(kind, product, key, *say.as_recorded(item.raw, shift), item)
        if dialect == "exchange":
            payload, when = shift.one(item.raw)
            key = say.key_of(item, when) if self._noted else ""
            return Message(kind, product, key, payload, None, item)
        key = say.key_of(item, shift) if self._noted else ""
        if kind == "snapshot":
            split = say.advanced_book(product, self.market.products[product], shift.ns(item.recv_ns), shift)
        elif kind == "last_match":
            known = self.market.products[product]
            split = say.advanced_trades(known, shift.ns(item.recv_ns), shift, native=False)
        else:
            split = say.translated(item, shift)
        return Message(kind, product, key, *split, item)

    def _opening(self, client: Client, topic: Topic, now_ns: int, shift: Shift) -> Message | None:
        channel, product = topic
        known, native = self.market.products.get(product), self._native
        advanced = client.dialect == "advanced"
        if known is None:
            return None
        if channel == "book" and known.book is not None:
            client.told.add(topic)
            if client.mischief.on_request("no_snapshot", product):
                client.omit(Message("snapshot", product, "", b""), "no_snapshot")
                return None
            if advanced:
                return Message("snapshot", product, "", *say.advanced_book(product, known, now_ns, shift))
            return Message("snapshot", product, "", say.snapshot(product, known))
        newest = str(known.numbers()[1])
        if channel == "trades" and known.trades:
            client.told.add(topic)
            if advanced:
                return Message("last_match", product, newest, *say.advanced_trades(known, now_ns, shift, native=native))
            return Message("last_match", product, newest, say.last_match(known, shift))
        if channel == "ticker" and known.ticker:
            if advanced:
                return Message("ticker", product, newest, *say.advanced_newest(known, now_ns, shift, native=native))
            return Message("ticker", product, newest, shift.one(known.ticker)[0])
        return None

    def beat(self, second_ns: int, clients: Collection[Client], now_s: float) -> None:
        """Send the heartbeats of a second of the feed, ns on the recording's clock."""
        self._beat += 1
        now_ns, shift = self.pace.shift.ns(second_ns), self.pace.shift
        for client in clients:
            if client.dialect == "advanced":
                if ("beats", "") in client.topics:
                    split = say.advanced_heartbeat(self._beat, now_ns, shift)
                    client.send(Message("heartbeat", "", str(self._beat), *split), now_s, second_ns / 1e9)
            elif self._makes_beats:
                for channel, product in client.topics:
                    if channel == "beats":
                        said, sequence = say.heartbeat(product, self.market.products[product], now_ns, shift)
                        client.send(Message("heartbeat", product, str(sequence), said), now_s, second_ns / 1e9)
