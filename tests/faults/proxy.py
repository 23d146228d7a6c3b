"""A proxy between the gateway and a real upstream that spoils answers down to the byte.

One request per connection: the upstream is asked to close, so that the answer's end is the
connection's. Bodies are taken out of their chunks and framed anew, since most faults lie at the
border of an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

RECORDED = Path(__file__).resolve().parents[1] / "data/recorded"
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Passing:
    """One request on its way: what was asked, and the way back to the gateway."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    upstream: tuple[str, int]
    asked: list[asyncio.StreamWriter] = field(default_factory=list)
    """Connections to the upstream; closed with the request, however it ends."""

    @property
    def streamed(self) -> bool:
        """Whether the upstream is asked for a stream; students always are."""
        return bool(json.loads(self.body).get("stream"))

    async def send(self, raw: bytes) -> None:
        """Bytes to the gateway, as they are."""
        self.writer.write(raw)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """A chunk of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def plain(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole JSON answer of the proxy's own."""
        told = {
            "content-type": "application/json", "content-length": str(len(body)), **(headers or {})
        }  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)

    def reset(self) -> None:
        """RST: what a killed process or a middlebox does to a connection."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.writer.transport.abort()

    async def ask(self) -> Answer:
        """The upstream's real answer."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        self.asked.append(writer)
        lines = [line for line in self.head.split(b"\r\n") if line]
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        writer.write(b"\r\n".join([*kept, b"connection: close", b"", b""]) + self.body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        return Answer(head, reader, writer)


@dataclass(slots=True)
class Answer:
    """An upstream's answer: its head, and the pieces of its body."""

    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def pieces(self) -> AsyncIterator[bytes]:
        """Events of a stream one by one, blank line included; a JSON body in two halves."""
        if b"transfer-encoding: chunked" not in self.head.lower():
            body = await self.reader.read(-1)
            middle = len(body) // 2
            yield body[:middle]
            yield body[middle:]
            return
        buffer = b""
        while size := int(await self.reader.readline(), 16):
            buffer += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            while (end := buffer.find(b"\n\n")) >= 0:
                yield buffer[: end + 2]
                buffer = buffer[end + 2 :]
        if buffer:
            yield buffer

    def close(self) -> None:
        """Leave the upstream."""
        self.writer.close()


Fault = Callable[[Passing], Awaitable[None]]


async def nothing(passing: Passing) -> None:
    """No fault: bytes pass."""
    await _relay(passing, lambda pieces: pieces)


async def _relay(
    passing: Passing, change: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
) -> None:
    """Pass an answer on, its pieces changed; framed as the upstream did."""
    answer = await passing.ask()
    chunked = b"transfer-encoding: chunked" in answer.head.lower()
    try:
        await passing.send(answer.head)
        async for piece in change(answer.pieces()):
            await (passing.chunk(piece) if chunked else passing.send(piece))
        if chunked:
            await passing.send(b"0\r\n\r\n")
    finally:
        answer.close()


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    """An error instead of an answer."""

    async def fault(passing: Passing) -> None:
        error = {"message": "no", "type": "t", "param": None, "code": None}
        await passing.plain(code, json.dumps({"error": error}).encode(), headers)

    return fault


def recorded(name: str) -> Fault:
    """A recorded answer instead of the upstream's."""

    async def fault(passing: Passing) -> None:
        await passing.send((RECORDED / name).read_bytes())

    return fault


async def slow_headers(passing: Passing) -> None:
    """A head that comes by the byte, too slowly to wait for."""
    answer = await passing.ask()
    answer.close()
    for place in range(len(answer.head)):
        await passing.send(answer.head[place : place + 1])
        await asyncio.sleep(0.2)


async def hang(passing: Passing) -> None:
    """The request is taken, and nothing comes."""
    await asyncio.sleep(3600)


async def reset(passing: Passing) -> None:
    """The request is taken, and the connection cut."""
    passing.reset()


def _half(then: Callable[[Passing], Awaitable[None]]) -> Fault:
    """Two pieces of a stream, or half of a JSON body, and a part of the next."""

    async def fault(passing: Passing) -> None:
        answer = await passing.ask()
        chunked = b"transfer-encoding: chunked" in answer.head.lower()
        await passing.send(answer.head)
        left = 2 if chunked else 1
        async for piece in answer.pieces():
            part = piece if left else piece[: len(piece) // 2]
            await (passing.chunk(part) if chunked else passing.send(part))
            if not left:
                break
            left -= 1
        answer.close()
        await then(passing)

    return fault


async def _cut(passing: Passing) -> None:
    passing.reset()


async def _stalled(passing: Passing) -> None:
    await asyncio.sleep(3600)


def in_place(number: int, instead: bytes, *, last: bool) -> Fault:
    """Replaces a stream's piece by other bytes; ``last`` ends the stream with them."""

    async def changed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        count = 0
        async for piece in pieces:
            count += 1
            yield instead if count == number else piece
            if last and count == number:
                return

    async def fault(passing: Passing) -> None:
        if passing.streamed:
            await _relay(passing, changed)
        else:
            await passing.plain(200, instead.removeprefix(b"data: ").split(b"\n")[0])

    return fault


def without(marker: re.Pattern[bytes], *, onwards: bool) -> Fault:
    """Drops the piece that holds ``marker`` and, ``onwards``, all that follow; the body ends
    properly. Of a JSON answer only a beginning comes then."""

    async def changed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            if not marker.search(piece):
                yield piece
            elif onwards:
                return

    async def fault(passing: Passing) -> None:
        if passing.streamed or not onwards:
            await _relay(passing, changed)
        else:
            await passing.plain(200, b'{"choices": [')

    return fault


async def content_filter(passing: Passing) -> None:
    """The upstream's own verdict instead of a finish reason."""
    answer = await passing.ask()
    whole = b"".join([piece async for piece in answer.pieces()])
    body = _FINISH.sub(b'"finish_reason":"content_filter"', whole)
    kind = "text/event-stream" if passing.streamed else "application/json"
    await passing.plain(200, body, {"content-type": kind})
    answer.close()


_FINISH = re.compile(rb'"finish_reason": ?"stop"')
IN_BAND = b'data: {"error":{"message":"boom","type":"InternalServerError","code":500}}\n\n'
FAULTS: Mapping[str, Fault] = {
    "429": status(429),
    "429, Retry-After": status(429, {"retry-after": "30"}),
    "500": status(500),
    "503": status(503),
    "slow headers": slow_headers,
    "hang": hang,
    "reset": reset,
    "cut mid-answer": _half(_cut),
    "stall mid-answer": _half(_stalled),
    "in-band error, then [DONE]": in_place(3, IN_BAND + b"data: [DONE]\n\n", last=True),
    "malformed SSE or JSON": in_place(3, b"data: {oops\n\n", last=False),
    "missing [DONE]": without(re.compile(rb"\[DONE\]"), onwards=False),
    "ends before its finish": without(_FINISH, onwards=True),
    "context overflow": recorded("vllm-context-overflow.http"),
    "prefill rejected": recorded("vllm-prefill-rejected.http"),
    "content filter": content_filter,
}
"""By name. "Connection refused" is a proxy that does not listen, and a burst is many requests."""


@dataclass(slots=True)
class FaultProxy:
    """Listens before one upstream and does to every answer what ``fault`` says."""

    upstream_url: str
    fault: Fault = nothing
    port: int = 0
    calls: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Base URL ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        asked = list[asyncio.StreamWriter]()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(size)
            self.calls += 1
            place = urlsplit(self.upstream_url)
            assert place.hostname is not None and place.port is not None
            await self.fault(Passing(head, body, writer, (place.hostname, place.port), asked))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, *asked):
                each.close()
