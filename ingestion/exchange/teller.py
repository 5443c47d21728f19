"""Who is told what: items of the feed, and the answers to requests, in each client's dialect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from ingestion.exchange import messages as say
from ingestion.exchange.client import Client, Message
from ingestion.exchange.feeds import Dialect, Feed, Item
from ingestion.exchange.market import Market
from ingestion.exchange.pace import Pace
from ingestion.exchange.requests import Refused, Request, Topic
from ingestion.exchange.times import Shift

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
    """

    def __init__(self, market: Market, pace: Pace, feed: Feed) -> None:
        self.market, self.pace = market, pace
        self._native = feed.dialect == "advanced"
        self._makes_beats = not feed.heartbeats
        self._beat = 0

    def tell(self, item: Item, clients: Collection[Client]) -> Iterator[tuple[Client, Message]]:
        """Yield who is to be told of an item, and how."""
        if item.kind == "beat":
            yield from self._beats(clients)
            return
        try:
            item = self.market.apply(item)
        except (msgspec.MsgspecError, ValueError):
            pass  # a damaged message on a tape is sent as it is: clients must bear it
        topic = (_CHANNEL[item.kind], item.product)
        made: dict[Dialect, Message] = {}
        for client in clients:
            dialect = client.dialect
            if dialect is None or topic not in client.topics or not self._concerns(item, topic, client):
                continue
            if dialect not in made:
                made[dialect] = self._message(item, dialect)
            yield client, made[dialect]

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
            yield Message("subscriptions", "", "", say.advanced_subscriptions(client.topics, now_ns, shift))

    def check(self, request: Request) -> None:
        """Refuse a dialect that the feed can't be told in.

        Raises
        ------
        Refused
            If the feed is a recording of Advanced Trade, and the request the Exchange's.
        """
        if self._native and request.dialect == "exchange":
            raise Refused("Failed to subscribe", "this tape is of Advanced Trade; connect to /advanced")

    def ahead(self, item: Item, dialect: Dialect, seconds: float) -> bytes | say.Split:
        """Return an item's message with times so many seconds ahead."""
        return self._message(item, dialect, self.pace.shift.ahead(seconds)).payload

    def _concerns(self, item: Item, topic: Topic, client: Client) -> bool:
        if item.kind == "l2update":
            return topic in client.told
        if item.kind == "last_match":
            if topic in client.told:
                return False
            client.told.add(topic)
        elif item.kind == "snapshot":
            client.told.add(topic)
            if client.wanted("no_snapshot", item.product):
                client.omit(Message("snapshot", item.product, "", b""), "no_snapshot")
                return False
        return not (item.kind == "heartbeat" and client.dialect == "advanced")

    def _message(self, item: Item, dialect: Dialect, shift: Shift | None = None) -> Message:
        shift = shift or self.pace.shift
        kind, product = item.kind, item.product
        if self._native:
            return Message(kind, product, say.key_of(item, b""), say.as_recorded(item.raw, shift), item)
        moved, when = shift.one(item.raw)
        key = say.key_of(item, when)
        if dialect == "exchange":
            return Message(kind, product, key, moved, item)
        known, now_ns = self.market.products[product], shift.ns(item.recv_ns)
        if kind == "snapshot":
            return Message(kind, product, key, say.advanced_book(product, known, now_ns, shift), item)
        if kind == "last_match":
            return Message(kind, product, key, say.advanced_trades(known, now_ns, shift, native=False), item)
        return Message(kind, product, key, say.translated(item, shift), item)

    def _opening(self, client: Client, topic: Topic, now_ns: int, shift: Shift) -> Message | None:
        channel, product = topic
        known, advanced = self.market.products.get(product), client.dialect == "advanced"
        if known is None:
            return None
        payload: bytes | say.Split
        if channel == "book" and known.book is not None:
            client.told.add(topic)
            if client.wanted("no_snapshot", product):
                client.omit(Message("snapshot", product, "", b""), "no_snapshot")
                return None
            payload = say.advanced_book(product, known, now_ns, shift) if advanced else say.snapshot(product, known)
            return Message("snapshot", product, "", payload)
        if channel == "trades" and known.trades:
            client.told.add(topic)
            if advanced:
                payload = say.advanced_trades(known, now_ns, shift, native=self._native)
            else:
                payload = say.last_match(known, shift)
            return Message("last_match", product, str(known.numbers()[1]), payload)
        if channel == "ticker" and known.ticker:
            if advanced:
                payload = say.advanced_newest(known, now_ns, shift, native=self._native)
            else:
                payload = shift.one(known.ticker)[0]
            return Message("ticker", product, str(known.numbers()[1]), payload)
        return None

    def _beats(self, clients: Collection[Client]) -> Iterator[tuple[Client, Message]]:
        self._beat += 1
        now_ns, shift = self.pace.now_ns(), self.pace.shift
        for client in clients:
            if client.dialect == "advanced":
                if ("beats", "") in client.topics:
                    said = say.advanced_heartbeat(self._beat, now_ns, shift)
                    yield client, Message("heartbeat", "", str(self._beat), said)
            elif self._makes_beats:
                for channel, product in client.topics:
                    if channel == "beats":
                        beat, sequence = say.heartbeat(product, self.market.products[product], now_ns, shift)
                        yield client, Message("heartbeat", product, str(sequence), beat)
