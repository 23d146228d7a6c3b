"""The server's side of a connection, beyond what uvicorn gives: who left is known at once, a head
that does not come to its end in time is not waited for, and a whole answer goes out in one piece.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, ClassVar

import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.clock import within
from gateway.errors import GatewayError
from gateway.logs import log

_CLIENT = "understudy.client"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header may hold (RFC 9110, section 5.5)."""

_BODILESS = (204, 304)


class TooSlow(Exception):
    """The client does not take what it is sent."""


class Client:
    """Whoever sent a request: takes the answer, whole or in parts, without ASGI's messages, which
    for a stream cost as much as the sending itself.

    What is sent to a client that left is dropped. ``begin``, ``part`` and ``whole`` raise
    ``TooSlow`` after ``patience_s`` of waiting for a client that reads no further: it must not hold
    an upstream.
    """

    __slots__ = ("_chunked", "_cycle", "gone", "patience_s")

    def __init__(self, cycle: RequestResponseCycle, gone: set[Callable[[], None]]) -> None:
        self._cycle = cycle
        self._chunked = True
        self.patience_s: float | None = None
        self.gone = gone
        """Called when the connection is lost."""

    @staticmethod
    def of(scope: Scope) -> Client:
        """Taken out of an ASGI request that ``GatewayProtocol`` received: kept there it would be a
        reference in a circle, and fifteen objects of every request would wait for the collector."""
        client: Client = scope["extensions"].pop(_CLIENT)
        return client

    @property
    def said_all(self) -> bool:
        """Whether the request's body is here to its end."""
        return not self._cycle.more_body

    async def begin(self, status: int, headers: Mapping[str, str], part: bytes) -> None:
        """Send the head of an answer that comes in parts, and the first of them; ``end`` ends it.

        Raises:
            RuntimeError: a header cannot be sent, or an answer has begun already.
        """
        cycle = self._cycle
        lines = _lines(headers)
        # HTTP/1.0 knows no chunks: the body ends with the connection (RFC 9112, section 6).
        bodiless = status in _BODILESS
        self._chunked = not bodiless and cycle.scope["http_version"] != "1.0"
        if self._chunked:
            lines.append("transfer-encoding: chunked")
        elif not bodiless:
            cycle.keep_alive = False
        if cycle.flow.write_paused:
            await self._ready()
        head = self._head(status, lines)
        if not cycle.disconnected:
            cycle.transport.write(head)
            await self.part(part)

    async def part(self, data: bytes) -> None:
        """Send a part of the body."""
        cycle = self._cycle
        if cycle.flow.write_paused:
            await self._ready()
        if data and not cycle.disconnected:  # a chunk of nothing would end the body
            self.put(data)

    def takes(self) -> bool:
        """Whether a part can be ``put``: the client is there and reads."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected)

    def put(self, data: bytes) -> None:
        """Send a part of the body, at least a byte, without waiting."""
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        self._cycle.transport.write(framed)

    async def end(self) -> None:
        """The body is whole."""
        cycle = self._cycle
        if not cycle.disconnected:
            if self._chunked:
                cycle.transport.write(b"0\r\n\r\n")
            self._over()

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send an answer: head and body in one system call, where ASGI's two messages take two.

        Raises:
            RuntimeError: a header cannot be sent, or an answer has begun already.
        """
        cycle = self._cycle
        lines = _lines(headers)
        lines.append(f"content-length: {len(body)}")
        if cycle.flow.write_paused:
            await self._ready()
        head = self._head(status, lines)
        if not cycle.disconnected:
            cycle.transport.write(head + body)
            self._over()

    def _head(self, status: int, lines: list[str]) -> bytes:
        cycle = self._cycle
        if cycle.response_started:
            raise RuntimeError("an answer has begun already")
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if not cycle.keep_alive:
            lines.append("connection: close")
        usual = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
        said = "\r\n".join(lines).encode("latin-1", "replace")
        return b"%b%b%b\r\n\r\n" % (STATUS_LINE[status], usual, said)

    def _over(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def _ready(self) -> None:
        """Until the connection takes more, or is lost."""
        try:
            with within(self.patience_s):
                await self._cycle.flow.drain()
        except TimeoutError:
            log("client_too_slow", seconds=self.patience_s)
            raise TooSlow from None


def _lines(headers: Mapping[str, str]) -> list[str]:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if any(map(_CONTROL.search, lines)):
        raise RuntimeError("a header holds a control character")
    return lines


class _Phase(Enum):
    """What a connection is about."""

    NEW = auto()
    """Nothing was said yet."""
    HEAD = auto()
    BUSY = auto()
    IDLE = auto()


class GatewayProtocol(HttpToolsProtocol):
    """One connection. A task that is cancelled on disconnect costs nothing while nobody leaves;
    ASGI's own way, a second task that waits for ``http.disconnect``, costs 20 µs per request. And
    one timer looks at what the connection waits for now and then, where two per request would have
    to be set and cancelled."""

    head_timeout_s: ClassVar[float] = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gone = set[Callable[[], None]]()
        self._watch: asyncio.TimerHandle | None = None
        self._phase, self._since = _Phase.NEW, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client that connects and says nothing is not waited for either."""
        super().connection_made(transport)
        self._now(_Phase.NEW)
        self._look_again(self.head_timeout_s)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._now(_Phase.HEAD)

    def on_headers_complete(self) -> None:
        """The head is here; the body has a limit of its own."""
        self._phase = _Phase.BUSY
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope:
            extensions: dict[str, Any] = {_CLIENT: Client(cycle, self._gone)}
            self.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        """As uvicorn's, without its timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase is _Phase.BUSY:
            self._now(_Phase.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever works for this client."""
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()
        for leave in list(self._gone):
            leave()

    def _now(self, phase: _Phase) -> None:
        self._phase, self._since = phase, self.loop.time()

    def _look_again(self, after_s: float) -> None:
        """At a limit, or sooner, since another phase may have begun by then: a limit is exceeded by
        a quarter of a head's at most."""
        tick = min(after_s, self.head_timeout_s / 4)
        self._watch = self.loop.call_later(tick, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        if self._phase is _Phase.BUSY:
            self._look_again(self.head_timeout_s)
            return
        idle = self._phase is _Phase.IDLE
        limit = self.timeout_keep_alive if idle else self.head_timeout_s
        left = self._since + limit - self.loop.time()
        if left > 0:
            self._look_again(left)
            return
        if self._phase is _Phase.HEAD:
            log("head_too_slow", seconds=self.head_timeout_s)
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_late_answer())
        # An idle connection that a pool opened early is closed without a word: an answer that
        # nobody asked for would be taken for the next request's.
        self.transport.close()


def _late_answer() -> bytes:
    error = GatewayError("request_timeout", "The head did not arrive in time; send it again.")
    body = orjson.dumps(error.body())
    head = (
        "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
