"""A WebSocket server that plays given messages to whoever subscribes: the simplest exchange a client can meet."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Play = Callable[["FeedServer", ServerConnection, dict[str, Any]], Any]


@dataclass
class FeedServer:
    """What was asked of the server, and where it listens."""

    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    sent: int = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


def plays(messages: Sequence[bytes], rate: float | None = None, start: int = 0) -> Play:
    """Send all messages at the first subscription, at ``rate`` a second; then stay open."""

    async def play(server: FeedServer, connection: ServerConnection, request: dict[str, Any]) -> None:
        if request["type"] != "subscribe" or server.sent:
            return
        began = asyncio.get_running_loop().time()
        for i, message in enumerate(messages):
            await connection.send(message, text=True)
            server.sent += 1
            if rate is not None:
                ahead = began + i / rate - asyncio.get_running_loop().time()
                if ahead > 0.002:
                    await asyncio.sleep(ahead)
            elif i % 64 == 0:
                await asyncio.sleep(0)

    return play


@contextmanager
def feed_server(play: Play, port: int = 0, **options: Any) -> Iterator[FeedServer]:
    """Run a server in a thread; ``play`` answers each request of a client."""
    server = FeedServer()
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        server.connections += 1
        tasks = []
        try:
            async for text in connection:
                request = json.loads(text)
                server.requests.append(request)
                tasks.append(asyncio.create_task(play(server, connection, request)))
        except ConnectionClosed:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def main() -> None:
        async with serve(handle, "127.0.0.1", port, compression=None, close_timeout=0.2, **options) as running:
            server.port = running.sockets[0].getsockname()[1]
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
