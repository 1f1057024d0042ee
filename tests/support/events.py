"""What a server sends to an open editor: a websocket that listens beside a test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.hosts import HostServer


@dataclass
class Heard:
    """(seconds, data) of every event, by its type."""

    events: dict[str, list[tuple[float, Any]]] = field(default_factory=dict)

    def data(self, kind: str) -> list[Any]:
        return [data for _, data in list(self.events.get(kind, ()))]

    def wait(self, kind: str, count: int = 1) -> list[Any]:
        self.until(lambda: len(self.data(kind)) >= count, kind)
        return self.data(kind)

    def until(self, heard: Callable[[], object], what: str, timeout: float = 60) -> None:
        """A server answers before its last events have all arrived."""
        end = time.monotonic() + timeout
        while not heard():
            assert time.monotonic() < end, (what, {name: len(events) for name, events in self.events.items()})
            time.sleep(0.02)


@contextmanager
def listening(server: HostServer) -> Iterator[Heard]:
    heard, connected, loop = Heard(), threading.Event(), asyncio.new_event_loop()

    async def listen() -> None:
        address = f"http://127.0.0.1:{server.port}/ws?clientId=listener"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            connected.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    event = message.json()
                    heard.events.setdefault(event["type"], []).append((time.monotonic(), event["data"]))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    task = loop.create_task(listen())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert connected.wait(30)
        yield heard
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
