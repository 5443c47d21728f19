"""The WebSocket connection: opened, subscribed, read, found dead, opened again.

The reader stamps and enqueues, and does nothing else: what takes time happens behind the inbox.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import ssl
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from feature_repo.errors import InputError
from ingestion.feed.dialects import BOOK, HEARTBEAT, Feed, requests
from ingestion.feed.inbox import Closed, Inbox, Opened, Received

MAX_SIZE: Final = 16 << 20
"""Longest message: a snapshot of 46,000 levels has 5 MB, and the library's own bound is 1."""
START_S: Final = 6.0
"""How long a first connection is tried: whoever mistyped an address reads so within ten seconds."""
QUIET_HEARTBEAT_S: Final = 5.0
QUIET_S: Final = 60.0
"""Silence after which a connection is given up: half-open sockets look alive for hours; heartbeats come each second."""
_LONGEST_PAUSE_S: Final = 30.0
_GOOD_S: Final = 10.0
"""A connection that lasted this long starts the pauses anew."""
_WORDS: Final = re.compile(r"[A-Za-z0-9._-]+")
_RETRIED_STATUS: Final = {408, 425, 429, 500, 502, 503, 504}


class Client:
    """Keeps one connection to a feed until it is told to stop.

    Parameters
    ----------
    feed, products, channels
        What to connect to and to subscribe.
    inbox
        Where messages go.
    start_s
        How long a first connection is tried before that is an error; None for START_S.
    quiet_s
        Silence after which the connection is given up; None for what the channels promise.
    """

    def __init__(
        self,
        feed: Feed,
        products: Sequence[str],
        channels: Sequence[str],
        inbox: Inbox,
        *,
        start_s: float | None = None,
        quiet_s: float | None = None,
    ) -> None:
        self.feed, self.products, self.channels = feed, list(products), tuple(channels)
        self._inbox, self._start_s = inbox, START_S if start_s is None else start_s
        self._quiet_s = quiet_s or (QUIET_HEARTBEAT_S if HEARTBEAT in channels else QUIET_S)
        self._log = structlog.get_logger("ingest")
        self._stop = asyncio.Event()
        self._error: InputError | None = None
        self._connection: ClientConnection | None = None
        self._last = 0.0
        self._unknown: set[str] = set()

    async def run(self) -> None:
        """Connect, read, and connect again until :meth:`stop`.

        Raises
        ------
        InputError
            If there was no way to a first connection, or the exchange refuses the subscription.
        """
        began = time.monotonic()
        connected, reason = False, ""
        pauses = _pauses()
        while not self._stop.is_set():
            opened = time.monotonic()
            try:
                reason = await self._once()
                connected = True
            except (OSError, InvalidHandshake, InvalidURI, TimeoutError, EOFError) as error:
                reason = _told(error, self.feed.url)
                if not connected and (not _may_pass(error) or time.monotonic() - began > self._start_s):
                    raise InputError(reason) from error
            if self._error is not None:
                raise self._error
            if self._stop.is_set():
                break
            if time.monotonic() - opened > _GOOD_S:
                pauses = _pauses()
            pause = next(pauses)
            if not connected:
                pause = min(pause, max(0.1, began + self._start_s - time.monotonic()))
            self._log.warning("not connected", feed=self.feed.url, reason=reason, again_in_s=round(pause, 2))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
        if self._error is not None:
            raise self._error
        if reason and not connected:
            raise InputError(reason)

    def stop(self) -> None:
        """End: close the connection; what was received is in the inbox."""
        self._stop.set()

    def fail(self, error: InputError) -> None:
        """End with an error."""
        self._error = self._error or error
        self._stop.set()

    def resubscribe(self, product_id: str) -> None:
        """Ask for a new snapshot of one product's book; nothing else changes."""
        if self._connection is not None and product_id in self.products:
            texts = requests(self.feed.dialect, "unsubscribe", [product_id], [BOOK])
            texts += requests(self.feed.dialect, "subscribe", [product_id], [BOOK])
            _background(self._send(self._connection, texts))

    def refused(self, complaint: str, heard: frozenset[str]) -> None:
        """Take that the exchange complained: go on without the product that it names, if there are others.

        Parameters
        ----------
        complaint
            What it said.
        heard
            Products that had messages: whatever it says, they are known.
        """
        words = set(_WORDS.findall(complaint))
        if words & self._unknown:
            return  # one complaint a channel, about a product that is given up already
        named = [p for p in self.products if p in words and p not in heard]
        if named and len(named) < len(self.products):
            self._unknown.update(named)
            self.products = [p for p in self.products if p not in named]
            self._log.warning("the exchange refused products; going on without", products=named, said=complaint)
            if self._connection is not None:
                subscribe = requests(self.feed.dialect, "subscribe", self.products, self.channels)
                _background(self._send(self._connection, subscribe))
        elif heard:
            self._log.warning("the exchange complained", said=complaint)
        else:
            what = f"pair {','.join(named)}" if named else f"{','.join(self.products)} with {','.join(self.channels)}"
            told = f"{self.feed.url} refused to subscribe {what}: {complaint[:300]}; correct --pair or --channels"
            # at once: queued behind what else the worker has to say, this would not be the reason given
            Client.fail(self, InputError(told))

    async def _once(self) -> str:
        """Live through one connection; return why it ended."""
        async with connect(
            self.feed.url,
            compression=None,
            max_size=MAX_SIZE,
            open_timeout=min(5.0, self._start_s),
            ping_interval=10,
            ping_timeout=10,
            close_timeout=1,
            user_agent_header="volspike",
        ) as connection:
            self._connection = connection
            opened = Opened(secrets.token_hex(8), _now_ns(), self.feed.dialect, tuple(self.products), self.channels)
            self._inbox.put(opened)
            self._last = time.monotonic()
            keeper = asyncio.create_task(self._keep(connection))
            reason = ""
            try:
                subscribe = requests(self.feed.dialect, "subscribe", self.products, self.channels)
                await self._send(connection, subscribe)
                await self._read(connection)
            except ConnectionClosed as closed:
                frame = closed.rcvd
                reason = f"closed by the exchange ({frame.code} {frame.reason})" if frame else "connection lost"
            finally:
                self._connection = None
                if self._stop.is_set():
                    reason = "stopped"
                elif keeper.done():
                    reason = keeper.result()
                keeper.cancel()
                self._inbox.put(Closed(reason))
            return reason

    async def _read(self, connection: ClientConnection) -> None:
        """Stamp and enqueue until the connection ends."""
        inbox, recv, now_ns = self._inbox, connection.recv, time.time_ns
        while True:
            raw = await recv(decode=False)
            inbox.put(Received(now_ns() // 1000 * 1000, raw))
            self._last = time.monotonic()
            while inbox.full:
                await asyncio.sleep(0.005)

    async def _keep(self, connection: ClientConnection) -> str:
        """End the connection when told to, or when it has been silent for too long; return why."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(0.5, self._quiet_s / 4))
            if self._stop.is_set():
                await connection.close()
                return ""
            if time.monotonic() - self._last > self._quiet_s:
                connection.transport.abort()
                return f"silent for {self._quiet_s:g} s"

    async def _send(self, connection: ClientConnection, texts: Sequence[str]) -> None:
        with suppress(ConnectionClosed):  # the reader sees it too, and connects again
            for text in texts:
                await connection.send(text)


_TASKS: set[asyncio.Task[None]] = set()


def _background(work: Coroutine[Any, Any, None]) -> None:
    """Start a task and hold it until it ends: the loop itself keeps weak references only."""
    task = asyncio.ensure_future(work)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def _now_ns() -> int:
    return time.time_ns() // 1000 * 1000


def _pauses() -> Iterator[float]:
    """Yield pauses between connections: doubling from 0.2 s, with full jitter above a tenth."""
    longest = 0.2
    while True:
        yield random.uniform(0.1, longest)  # noqa: S311  # jitter is no secret
        longest = min(2 * longest, _LONGEST_PAUSE_S)


def _may_pass(error: Exception) -> bool:
    """Tell whether trying again can help at all."""
    if isinstance(error, InvalidStatus):
        return error.response.status_code in _RETRIED_STATUS
    if isinstance(error, InvalidURI | InvalidMessage | ssl.SSLError):
        return False
    return True


def _told(error: Exception, url: str) -> str:
    """Say what went wrong in one line: what was expected, and what to do."""
    if isinstance(error, InvalidURI):
        return f"{url} is no WebSocket address ({error.msg}); set --feed to exchange, advanced or ws://host:port"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{url}: TLS failed, untrusted certificate ({error.verify_message}); check the address and clock"
    if isinstance(error, ssl.SSLError):
        return f"{url}: TLS failed ({error.reason or error}); does the server speak TLS there? ws:// is without"
    if isinstance(error, InvalidStatus):
        return (
            f"{url} answered HTTP {error.response.status_code} instead of opening a WebSocket; check address and path"
        )
    if isinstance(error, InvalidMessage):
        return f"{url} doesn't answer as a WebSocket server ({error.__cause__ or error}); check scheme, host and port"
    if isinstance(error, InvalidHandshake):
        return f"{url} answered HTTP instead of opening a WebSocket ({error}); check address and path"
    if isinstance(error, TimeoutError):
        return f"{url} didn't answer in time; check address and network"
    if isinstance(error, ConnectionError) and not error.strerror and url.startswith("wss:"):
        return f"{url}: TLS failed, the server hung up; does it speak TLS there? ws:// is without"
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        return f"{url} can't be reached: {why}; check address and network"
    return f"{url}: {error}"
