"""A small real HTTP server that does exactly what it is told, down to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Handler = Callable[["Received", "Wire"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any

    @property
    def text(self) -> str:
        """The last message's content."""
        return str(self.body["messages"][-1]["content"])


@dataclass(slots=True)
class Wire:
    """The open connection of one request."""

    writer: asyncio.StreamWriter
    chunked: bool = False

    async def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """A whole JSON answer."""
        raw = json.dumps(body).encode()
        await self.head(
            status,
            {"content-type": "application/json", "content-length": str(len(raw))} | (headers or {}),
        )
        await self.raw(raw)

    async def head(self, status: int, headers: dict[str, str]) -> None:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        await self.raw("\r\n".join(lines).encode())

    async def stream(self) -> None:
        """Begin a chunked event stream."""
        self.chunked = True
        await self.head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})

    async def send(self, data: bytes) -> None:
        """One chunk of a stream."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, body: Any) -> None:
        """One event."""
        await self.send(b"data: " + json.dumps(body).encode() + b"\n\n")

    async def done(self) -> None:
        """``[DONE]`` and the regular end."""
        await self.send(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """The regular end of a chunked body."""
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Cut the connection at once."""
        self.writer.transport.abort()


@dataclass(slots=True)
class FakeUpstream:
    """Serves ``handler``; counts requests and remembers disconnects."""

    handler: Handler
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    gone: int = 0
    open: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Base URL ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeUpstream]:
        """Listen on a free port, or again on the former one."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (received := await _receive(reader)) is not None:
                self.requests.append(received)
                await self._handle(received, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _handle(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Run the handler, and stop it when the peer closes its end."""
        self.open += 1
        work = asyncio.ensure_future(self.handler(received, Wire(writer)))
        closed = asyncio.ensure_future(_closed(reader))
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.gone += 1
                raise ConnectionResetError
            work.result()
        finally:
            self.open -= 1
            for task in (work, closed):
                task.cancel()
            await asyncio.gather(work, closed, return_exceptions=True)


async def _closed(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():
        await asyncio.sleep(0.002)


async def _receive(reader: asyncio.StreamReader) -> Received | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split(" ")[1], headers, json.loads(body) if body else None)
