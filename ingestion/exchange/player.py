"""The playing of a feed: items to clients when they are due, what was sent to the ledger, the unfit cut off."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ingestion.exchange.client import Client
from ingestion.exchange.faults import Rule
from ingestion.exchange.feeds import Feed, Item
from ingestion.exchange.ledger import SYNC_S, Ledger
from ingestion.exchange.market import Market
from ingestion.exchange.pace import Pace, Times
from ingestion.exchange.teller import Teller

_GHOST_S: Final = 600.0
"""Seconds that a half-open socket is kept: longer than any client should believe in it."""
_TURN_S: Final = 0.002
_HEAD: Final = ("snapshot", "last_match")
_S: Final = 1_000_000_000
_BATCH: Final = 256
"""Items between two looks at the sockets: a few milliseconds at full speed."""
_TICK_S: Final = 0.01
"""Longest sleep: held-back messages and stalls end on time."""
_ROOM: Final = 1 << 20
"""Bytes that may wait for a client before a feed without pace waits for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the exchange grants its clients; the real one's figures.

    Attributes
    ----------
    subscribe_s
        Seconds to subscribe after connecting.
    idle_s
        Between these bounds an Advanced Trade connection is closed that was sent nothing; ``heartbeats`` avoid it.
    queue_bytes
        Most that may wait for a client before it is cut off: some seconds of a busy market beside a full snapshot.
    patience_s
        Seconds that a feed without pace waits for a client that takes nothing.
    """

    subscribe_s: float = 5.0
    idle_s: tuple[float, float] = (60.0, 90.0)
    queue_bytes: int = 32 << 20
    patience_s: float = 5.0


@dataclass(slots=True)
class Summary:
    """What was served so far.

    Attributes
    ----------
    connections
        Ever accepted.
    messages
        Market messages of the feed, by kind.
    sent
        Frames handed to sockets.
    faults
        Injected, by name.
    closed
        Connections ended by the exchange, by reason.
    seconds
        Since the feed began.
    """

    connections: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it in JSON's terms."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Counter) else value


class Player:
    """Play one feed to the clients there are.

    Parameters
    ----------
    feed, speed, times, ago_s, loop, limits, ledger
        As for :class:`ingestion.exchange.Exchange`.

    Attributes
    ----------
    clients
        By number.
    ended
        Set when the feed's last item has been sent.
    """

    def __init__(
        self, feed: Feed, speed: float, times: Times, *, ago_s: float, loop: bool, limits: Limits, ledger: Ledger
    ) -> None:
        self.feed, self.limits, self.ledger = feed, limits, ledger
        self.clients: dict[int, Client] = {}
        self.summary = Summary()
        self.ended = asyncio.Event()
        self._speed, self._times, self._ago_s, self._loop = speed, times, ago_s, loop
        self._began = asyncio.Event()
        self._began_s = self._synced_s = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self._rewind()

    def begin(self) -> None:
        """Start the clock, if it doesn't run yet."""
        if not self.pace.started:
            self._began_s = time.monotonic()
            self.pace.start()
            self._began.set()

    async def run(self) -> None:
        """Play until cancelled; after the end, what was held back and idle connections are still seen to."""
        while not self.ended.is_set():
            while not self._began.is_set():
                await asyncio.sleep(_TICK_S)
                self._tick()
            await self._play()
            for client in self.clients.values():
                client.mischief.release(client, math.inf)
            self._tick()
            if not self._loop:
                self.ended.set()
                break
            for client in list(self.clients.values()):
                self.end(client, "service restart", 1012)
            self._began.clear()
            self._rewind()
        while True:
            await asyncio.sleep(_TICK_S)
            self._tick()

    def end(self, client: Client, why: str, code: int | None = None) -> None:
        """Close a connection; without a code it is cut off."""
        client.why = client.why or why
        if code is None:
            client.connection.transport.abort()
        else:
            task = asyncio.ensure_future(client.connection.close(code, why))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def strike(self, client: Client, rule: Rule) -> None:
        """Let a fault of a whole connection happen."""
        self.flush(client)
        self.ledger.event(client.number, rule.fault, time.time_ns())
        client.strike(rule, time.monotonic())
        self.flush(client)

    def flush(self, client: Client) -> None:
        """Hand what waits for a client to its socket, and note it."""
        before, why = client.flushed, client.why
        records = client.flush(time.monotonic(), self.pace.recorded_ns() / 1e9)
        self.summary.sent += client.flushed - before
        if records:
            self.ledger.add(records, time.time_ns())
        if client.why and not why:
            # What was just written reaches the socket at the end of this turn of the loop.
            asyncio.get_running_loop().call_later(_TURN_S, client.connection.transport.abort)

    def _rewind(self) -> None:
        self.market = Market(self.feed.products, self.feed.dialect, continuous=self.feed.continuous)
        self._items: Iterator[Item] = self.feed.items()
        item = next(self._items, None)
        self.pace = Pace(0 if item is None else item.recv_ns, self._speed, self._times, self._ago_s)
        self.teller = Teller(self.market, self.pace, self.feed, noted=self.ledger.kept)
        # What stands before the first movement is known to everybody who comes.
        while item is not None and item.kind in _HEAD:
            self.market.apply(item)
            item = next(self._items, None)
        self._next = item
        self._second_ns = 0 if item is None else item.recv_ns - item.recv_ns % _S + _S

    async def _play(self) -> None:
        item = self._next
        while item is not None:
            limit, now_s, done = self.pace.limit(), time.monotonic(), 0
            clients, tell, items, counts = self.clients.values(), self.teller.tell, self._items, self.summary.messages
            while item is not None and item.recv_ns <= limit and done < _BATCH:
                recv_ns = item.recv_ns
                if recv_ns >= self._second_ns:
                    self._beats(recv_ns, now_s)
                self.pace.reached_ns = recv_ns
                counts[item.kind] += 1
                tell(item, clients, now_s)
                item = next(items, None)
                done += 1
            if item is not None and done < _BATCH and limit >= self._second_ns:
                self._beats(int(limit), now_s)  # silence is told by heartbeats
            self._tick()
            if math.isinf(self._speed):
                await self._room()
                while not any(client.topics for client in self.clients.values()):
                    await asyncio.sleep(_TICK_S)  # as fast as clients take it: without one, not at all
                    self._tick()
            elif done == _BATCH:
                await asyncio.sleep(0)
            elif item is not None:
                await asyncio.sleep(min(max(self.pace.wait_s(item.recv_ns), 0.0005), _TICK_S))

    def _beats(self, until_ns: int, now_s: float) -> None:
        """Send the heartbeats of the seconds that have passed."""
        while self._second_ns <= until_ns:
            self.teller.beat(self._second_ns, self.clients.values(), now_s)
            self._second_ns += _S

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self.pace.started:
            self.summary.seconds = now_s - self._began_s
        for client in list(self.clients.values()):
            rule = client.mischief.on_connection(now_s) if client.topics else None
            if rule is not None:
                self.strike(client, rule)
            self.flush(client)
            if client.silent and now_s - client.sent_s > _GHOST_S:
                self.end(client, "half_open")
            if client.idle_s and client.open and now_s - client.sent_s > client.idle_s:
                self.end(client, "idle", 1000)
        if now_s - self._synced_s > SYNC_S:
            self._synced_s = now_s
            self.ledger.sync()

    async def _room(self) -> None:
        """Wait until every client has taken most of what it was sent; one that takes nothing is cut off."""
        waited_s = time.monotonic()
        await asyncio.sleep(0)
        while slow := [c for c in self.clients.values() if c.waiting() > _ROOM]:
            if time.monotonic() - waited_s > self.limits.patience_s:
                for client in slow:
                    self.end(client, "slow client")
                return
            await asyncio.sleep(0.0005)
