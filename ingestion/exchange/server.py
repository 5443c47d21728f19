"""The simulated exchange: a WebSocket server that plays a feed to any number of clients, in both Coinbase dialects."""

from __future__ import annotations

import asyncio
import http
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as Handshake
from websockets.http11 import Response

from feature_repo.errors import StoreError
from ingestion.exchange import faults as _faults
from ingestion.exchange import messages as say
from ingestion.exchange.client import Client
from ingestion.exchange.control import answer
from ingestion.exchange.faults import Draw, Faults, Order
from ingestion.exchange.feeds import Dialect, Feed, Item
from ingestion.exchange.frames import Message
from ingestion.exchange.ledger import Ledger
from ingestion.exchange.market import Levels
from ingestion.exchange.mischief import Mischief
from ingestion.exchange.pace import Times
from ingestion.exchange.player import Limits, Player, Summary
from ingestion.exchange.requests import Refused, read_request

_PATHS: Final = ("/", "/exchange", "/advanced", "/control")


class Exchange:
    """Serve a feed for the time of an ``async with`` block.

    The feed begins with the first subscription, so that nobody misses its start. Paths: ``/`` and ``/exchange`` speak
    Exchange, ``/advanced`` Advanced Trade, on ``/`` the form of the first request decides; ``/control`` takes
    ``{"type":"inject","fault":…}``, ``{"type":"summary"}`` and ``{"type":"book","product_id":…}``.

    Parameters
    ----------
    feed
        What is served.
    host, port
        Where; port 0 takes a free one.
    speed, times, ago_s
        As for :class:`ingestion.exchange.pace.Pace`.
    faults
        What goes wrong by chance; text is parsed.
    ledger
        File of what was sent; None keeps none.
    loop
        Begin anew at the feed's end: connections are closed with 1012 (service restart). Else it stays silent.
    limits
        Granted to clients.

    Raises
    ------
    StoreError
        On entering, if the port is busy or the ledger can't be written.

    Examples
    --------
    ::

        async with Exchange(Synthetic(seed=7), speed=10) as exchange, connect(exchange.url) as socket:
            await socket.send('{"type":"subscribe","product_ids":["BTC-USD"],"channels":["ticker"]}')
            exchange.inject("drop", kind="ticker")
    """

    def __init__(
        self,
        feed: Feed,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = 1.0,
        times: Times = "shift",
        ago_s: float = 0.0,
        faults: Faults | str | None = None,
        ledger: Path | None = None,
        loop: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.host = host
        self.faults = Faults.parse(faults) if isinstance(faults, str) else faults or Faults()
        self._port = port
        self._ledger = Ledger(ledger)
        self._player = Player(
            feed, speed, times, ago_s=ago_s, loop=loop, limits=limits or Limits(), ledger=self._ledger
        )
        self._orders: list[Order] = []
        self._handshakes = Draw(self.faults, 0, 0.0)
        self._server: Server | None = None
        self._playing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._ledger.__enter__()
        try:
            # Frames are written past the library's own send, so it must neither compress nor fragment them.
            self._server = await serve(
                self._serve,
                self.host,
                self._port,
                process_request=self._admit,
                compression=None,
                ping_interval=None,
                close_timeout=1.0,
                max_size=1 << 20,
            )
        except OSError as error:
            self._ledger.__exit__(None, None, None)
            raise StoreError(
                f"port {self._port} on {self.host} can't be listened on ({error.strerror}): stop what holds it or "
                "choose another with --port or VOLSPIKE_EXCHANGE_PORT"
            ) from error
        self._playing = asyncio.create_task(self._player.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None and self._playing is not None  # noqa: S101 - set on entering
        self._playing.cancel()
        for client in list(self._player.clients.values()):
            self._player.flush(client)
            if client.silent:
                client.connection.transport.abort()
        self._server.close(code=1001, reason="going away")
        await self._server.wait_closed()
        try:
            with suppress(asyncio.CancelledError):
                await self._playing
        finally:
            self._ledger.__exit__(None, None, None)

    @property
    def port(self) -> int:
        """Port it listens on."""
        assert self._server is not None  # noqa: S101 - set on entering
        return int(next(iter(self._server.sockets)).getsockname()[1])

    @property
    def url(self) -> str:
        """Address of the feed's own dialect."""
        return f"ws://{self.host}:{self.port}{'/advanced' if self._player.feed.dialect == 'advanced' else ''}"

    @property
    def url_advanced(self) -> str:
        """Address of the Advanced Trade dialect."""
        return f"ws://{self.host}:{self.port}/advanced"

    @property
    def serves(self) -> str:
        """What it serves, for people."""
        feed = self._player.feed
        return f"{feed.name}: {', '.join(feed.products)}"

    @property
    def clients(self) -> int:
        """Connections open now."""
        return len(self._player.clients)

    @property
    def ended(self) -> asyncio.Event:
        """Set when the feed's last message has been sent."""
        return self._player.ended

    @property
    def summary(self) -> Summary:
        """What was served so far."""
        summary = self._player.summary
        for client in self._player.clients.values():
            summary.faults.update(client.mischief.counts)
            client.mischief.counts.clear()
        return summary

    def book(self, product: str) -> tuple[Levels, Levels]:
        """Return bids and asks, best first, as text, as clients who missed nothing have them; empty at first."""
        book = self._player.market.products[product].book
        return ([], []) if book is None else book.sides()

    def inject(self, fault: str, **what: Any) -> None:
        """Let a fault happen: to the next ``count`` messages or requests it meets, to connections at once.

        Parameters
        ----------
        fault
            A key of ``ingestion.exchange.faults.FAULTS``.
        **what
            ``count``, ``product``, ``kind`` (joined by ``+``, or all), ``seconds``, ``channel``, ``connection``.

        Raises
        ------
        UsageError
            If something of it is unknown.
        """
        order = _faults.order(fault, **what)
        if fault not in _faults.ON_CONNECTIONS:
            self._orders.append(order)
            return
        for client in list(self._player.clients.values()):
            if client.open and order.connection in (None, client.number):
                client.mischief.counts[fault] += 1
                self._player.strike(client, order.rule)

    def _admit(self, connection: ServerConnection, handshake: Handshake) -> Response | None:
        path = handshake.path.split("?")[0]
        if path not in _PATHS:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"paths: {' '.join(_PATHS)}\n")
        if path == "/control":
            return None
        order = next((o for o in self._orders if o.rule.fault == "reject"), None)
        if order is not None:
            order.count -= 1
            if not order.count:
                self._orders.remove(order)
        elif not self._handshakes.request("reject"):
            return None
        self._player.summary.faults["reject"] += 1
        self._ledger.event(0, "reject", time.time_ns())
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "try again later\n")

    async def _serve(self, connection: ServerConnection) -> None:
        path = connection.request.path.split("?")[0] if connection.request else "/"
        if path == "/control":
            await self._control(connection)
            return
        player = self._player
        player.summary.connections += 1
        number, now_s = player.summary.connections, time.monotonic()
        mischief = Mischief(Draw(self.faults, number, now_s), self._orders, number, self._ahead)
        client = Client(connection, number, mischief, player.limits.queue_bytes, noted=self._ledger.kept)
        client.sent_s = now_s
        if path != "/":
            client.dialect = "advanced" if path == "/advanced" else "exchange"
        player.clients[number] = client
        self._ledger.event(number, "open", time.time_ns(), path)
        deadline = asyncio.get_running_loop().call_later(player.limits.subscribe_s, self._overdue, client)
        try:
            async for data in connection:
                self._request(client, data)
        except ConnectionClosed:
            pass  # how it ended stands in the ledger
        finally:
            deadline.cancel()
            del player.clients[number]
            player.summary.faults.update(client.mischief.counts)
            why = client.why or "by client"
            player.summary.closed[why] += 1
            self._ledger.event(number, "close", time.time_ns(), why)

    def _ahead(self, item: Item, dialect: Dialect, seconds: float) -> Message:
        return self._player.teller.ahead(item, dialect, seconds)

    def _overdue(self, client: Client) -> None:
        if not client.topics:
            self._player.end(client, "not subscribed in time", 1008)

    def _request(self, client: Client, data: str | bytes) -> None:
        player = self._player
        now_s, stream_s = time.monotonic(), player.pace.recorded_ns() / 1e9
        try:
            request = read_request(data, client.dialect, player.feed.products)
            player.teller.check(request)
            for name in request.channels:
                if request.action == "subscribe" and client.mischief.on_request("refuse", channel=name):
                    self._ledger.event(client.number, "refuse", time.time_ns(), name)
                    raise Refused("Failed to subscribe", f"{name} is refused")
        except Refused as refused:
            client.send(Message("error", "", "", say.error(refused.message, refused.reason)), now_s, stream_s)
            player.flush(client)
            return
        if client.dialect is None:
            client.dialect = request.dialect
        if client.dialect == "advanced" and not client.idle_s:
            least, most = player.limits.idle_s
            client.idle_s = least + (most - least) * client.mischief.draw.rng.random()
        if request.action == "subscribe":
            player.begin()
        for message in player.teller.openings(client, request):
            client.send(message, now_s, stream_s)
        self._ledger.event(client.number, request.action, time.time_ns(), " ".join(request.channels))
        player.flush(client)

    async def _control(self, connection: ServerConnection) -> None:
        try:
            async for data in connection:
                await connection.send(answer(self, data))
        except ConnectionClosed:
            pass  # the caller has gone, nothing is lost
