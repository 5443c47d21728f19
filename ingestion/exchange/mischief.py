"""What goes wrong on one connection: faults by chance and by hand, and the messages they hold back."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

from ingestion.exchange.faults import ON_MESSAGES, Draw, Order, Rule
from ingestion.exchange.feeds import Dialect, Item
from ingestion.exchange.frames import BINARY, TEXT, Message

if TYPE_CHECKING:
    from ingestion.exchange.client import Client

Ahead = Callable[[Item, Dialect, float], Message]
Held = tuple[Message, bytes, int]
_NOISE: Final = b'{"type":"ticker","price":"1\x00\x01<!DOCTYPE html>'


class Mischief:
    """The faults of one connection.

    Parameters
    ----------
    draw
        Its chances.
    orders
        Faults asked for by hand, shared by all connections; empty ones are taken out.
    connection
        Its number.
    ahead
        Makes the message of an item again, with times so many seconds ahead.

    Attributes
    ----------
    counts
        Faults that happened.
    swapped
        A message that waits for the one after it.
    """

    def __init__(self, draw: Draw, orders: list[Order], connection: int, ahead: Ahead) -> None:
        self.draw, self.orders, self.connection = draw, orders, connection
        self.counts: Counter[str] = Counter()
        self.swapped: Held | None = None
        self._ahead = ahead
        self._late: list[tuple[float, int, Held]] = []
        self._count = count()
        self._by_chance = draw.any

    @property
    def awake(self) -> bool:
        """Whether a message could meet a fault."""
        return self._by_chance or bool(self.orders or self._late) or self.swapped is not None

    def on_message(self, kind: str, product: str, now_s: float) -> Rule | None:
        """Return the fault that meets a message, None for most."""
        for order in self.orders:
            rule = order.rule
            if rule.fault in ON_MESSAGES and order.connection in (None, self.connection) and rule.meets(kind, product):
                self._use(order)
                return rule
        return self.draw.message(kind, product, now_s)

    def on_request(self, fault: str, product: str = "", channel: str = "") -> bool:
        """Whether a fault meets a request, by hand or by chance."""
        for order in self.orders:
            rule = order.rule
            if (
                rule.fault == fault
                and order.connection in (None, self.connection)
                and (not rule.products or product in rule.products)
                and rule.channel in ("", channel)
            ):
                self._use(order)
                self.counts[fault] += 1
                return True
        if self.draw.request(fault, product, channel):
            self.counts[fault] += 1
            return True
        return False

    def on_connection(self, now_s: float) -> Rule | None:
        """Return a repeated fault of the whole connection whose time has come."""
        rule = self.draw.due(now_s) if self._by_chance else None
        if rule is not None:
            self.counts[rule.fault] += 1
        return rule

    def do(self, client: Client, rule: Rule | None, message: Message, seq: int, now_s: float, stream_s: float) -> None:
        """Send a message as a fault has it; without one, send it and the one that waits for it."""
        payload, held, self.swapped = client.payload(message, seq), self.swapped, None
        fault = "" if rule is None else rule.fault
        self.counts.update([fault] if fault else [])
        match fault:
            case "drop":
                client.omit(message, fault, seq)
            case "double":
                client.queue(message, payload, seq, fault)
                client.queue(message, payload, seq, fault)
            case "swap" if held is None:
                self.swapped = message, payload, seq
            case "late":
                assert rule is not None  # noqa: S101 - it gave the fault
                heapq.heappush(self._late, (stream_s + rule.length_s, next(self._count), (message, payload, seq)))
            case "future" if message.item is not None and client.dialect is not None and rule is not None:
                ahead = self._ahead(message.item, client.dialect, rule.length_s)
                client.queue(message, client.payload(ahead, seq), seq, fault)
            case "truncate":
                client.queue(message, payload[: self.draw.rng.randrange(1, max(2, len(payload)))], seq, fault)
            case "garbage":
                self._garbage(client)
                client.queue(message, payload, seq)
            case "cut":
                client.halve(payload)
                client.omit(message, fault, seq)
            case _:
                client.queue(message, payload, seq)
                if rule is not None:
                    client.strike(rule, now_s)
        if held is not None:
            client.queue(*held, "swap")

    def release(self, client: Client, stream_s: float) -> None:
        """Send what was held back long enough; at the end of time, all of it."""
        if stream_s == math.inf and self.swapped is not None:
            client.queue(*self.swapped, "swap")
            self.swapped = None
        while self._late and self._late[0][0] <= stream_s:
            client.queue(*heapq.heappop(self._late)[2], "late")

    def _garbage(self, client: Client) -> None:
        text = self.draw.rng.random() < 0.5
        noise = _NOISE if text else self.draw.rng.randbytes(64)
        client.queue(Message("garbage", "", "", b""), noise, -1, "garbage", TEXT if text else BINARY)

    def _use(self, order: Order) -> None:
        order.count -= 1
        if order.count == 0:
            self.orders.remove(order)
