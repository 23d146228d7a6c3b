"""A lean HTTP/1.1 client: one request at a time on connections that are kept.

RFC 9112; parsing is httptools' (Node's llhttp). There are no cookies, redirects, proxies or hooks,
which cost a general client as much CPU as the rest of a pass-through does (ADR 012).
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
import ssl
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
from aiohappyeyeballs import start_connection

from gateway.clock import within

KEEP_S = 30.0
"""A connection that was idle for longer is not used again."""
MAX_HEAD_BYTES = 64 << 10
BUFFER_BYTES = 1 << 18
"""With more of a body waiting to be read, the socket is left alone."""
INFLATED_BYTES = 1 << 20
"""A compressed body is unpacked in steps of at most this size."""
_EYEBALLS_S = 0.25
_PORTS = {"http": 80, "https": 443}


class BrokenHttp(Exception):
    """The connection ended before its time, or what came is not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart."""

    origin: tuple[str, int, bool]
    """Host, port and whether by TLS."""
    path: str
    authority: str


@functools.lru_cache(maxsize=256)
def _target(url: str) -> _Target:
    parts = urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode()
    port = parts.port or _PORTS[parts.scheme]
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _PORTS[parts.scheme] else f"{shown}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target((host, port, parts.scheme == "https"), path, authority)


Taker = Callable[[bytes], bytes]
"""Looks at a part of a body as it comes, and gives back what it does not keep."""


class Answer:
    """A response whose head is here; its body comes."""

    __slots__ = (
        "_connection", "_due", "_failure", "_idle_s", "_inflate", "_over", "_parts", "_size",
        "_taker", "_time", "_until", "_waiter", "_watch", "headers", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        """Names in lower case."""
        self._connection: Connection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._over = False
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Taker | None = None
        self._idle_s = self._until = self._due = math.inf
        self._watch: asyncio.TimerHandle | None = None
        self._time = asyncio.get_running_loop().time
        self._inflate: Any = None

    async def some(
        self, idle_s: float = math.inf, until: float = math.inf, taker: Taker | None = None
    ) -> bytes:
        """All of the body that has come and was not read; nothing at its end. While it waits,
        ``taker`` is shown what a packet brings, and may keep it: nobody is woken for that.

        Raises:
            BrokenHttp: the body is not whole, after what came of it was read.
            TimeoutError: nothing came for ``idle_s``, or not all by ``until`` (the loop's clock).
        """
        due = math.inf
        while True:
            if not (self._parts or self._over or self._failure is not None):
                if due == math.inf:
                    self._idle_s, self._until = idle_s, until
                    due = min(self._time() + idle_s, until)
                await self._wait(due, taker if self._inflate is None else None)
            elif self._parts:
                data = self._all()
                if self._inflate is not None:
                    data = self._inflated(data)
                if data:
                    return data
            elif self._failure is not None:
                raise BrokenHttp(self._failure)
            elif self._inflate is not None and not self._inflate.eof:
                raise BrokenHttp("the compressed body is not whole")
            else:
                return b""

    def close(self) -> None:
        """A body that was not received to its end takes its connection with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        if self._watch is not None:
            self._watch.cancel()

    async def head(self) -> None:
        """Wait for it.

        Raises:
            BrokenHttp: the connection ended, or what came is not HTTP/1.1.
        """
        while not self.status:
            if self._failure is not None:
                raise BrokenHttp(self._failure)
            await self._wait()
        coding = self.headers.get("content-encoding", "").lower().removeprefix("x-")
        if coding in ("gzip", "deflate"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif coding not in ("", "identity"):
            raise BrokenHttp("the body is compressed in a way that was not asked for")

    def _all(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        if self._size > BUFFER_BYTES and self._connection is not None:
            self._connection.go_on()
        self._size = 0
        return data

    def _inflated(self, data: bytes) -> bytes:
        try:
            found: bytes = self._inflate.decompress(data, INFLATED_BYTES)
        except zlib.error:
            raise BrokenHttp("the compressed body is damaged") from None
        if self._inflate.unconsumed_tail:
            self._parts.insert(0, self._inflate.unconsumed_tail)
        return found

    async def _wait(self, due: float = math.inf, taker: Taker | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter, self._due, self._taker = loop.create_future(), due, taker
        # One timer sees many chunks come: it looks at its time how long ago the last one was.
        if due != math.inf and (self._watch is None or self._watch.when() > due):
            self._look_at(loop)
        try:
            await self._waiter
        finally:
            self._waiter, self._due, self._taker = None, math.inf, None

    def _look_at(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._watch = None
        if self._waiter is None or self._waiter.done() or self._due == math.inf:
            return  # whoever waits next sets it again
        loop = asyncio.get_running_loop()
        if loop.time() < self._due:
            self._look_at(loop)
        else:
            self._waiter.set_exception(TimeoutError())

    def began(self, status: int, headers: Mapping[str, str]) -> None:
        """The head is here."""
        self.status, self.headers = status, headers
        self._wake()

    def came(self, data: bytes) -> bool:
        """What a packet brought of the body; whether enough of it waits to be read."""
        if self._taker is not None and self._waiter is not None and not self._waiter.done():
            data = self._taker(data)
            if not data:
                self._due = min(self._time() + self._idle_s, self._until)
                return False
        self._parts.append(data)
        self._size += len(data)
        self._wake()
        return self._size > BUFFER_BYTES

    def ended(self, failure: str | None = None) -> None:
        """No more comes; without a failure the body is whole."""
        self._connection = None
        self._over, self._failure = failure is None, failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A socket, its parser, and the one answer that it is receiving."""

    def __init__(self, pool: Pool, origin: tuple[str, int, bool]) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.closed = False
        self._pool = pool
        self._transport: asyncio.Transport = cast(Any, None)
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._in_body = False
        self._body: list[bytes] = []
        """What the packet at hand has brought of it."""
        self._paused = False

    def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request."""
        self._answer = Answer(self)
        self._headers, self._head_bytes, self._in_body = {}, 0, False
        self._transport.writelines((head, body))
        return self._answer

    def abort(self) -> None:
        """Cut it: what frees the upstream's slot at once."""
        self.closed = True
        self._transport.abort()

    def go_on(self) -> None:
        """Receive again after a pause."""
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.lost(self)
        # Without a length and without chunks the body ends where the connection does (RFC 9112,
        # section 6.3), unless that was an error.
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        whole = self._in_body and not framed and exc is None
        self._end(None if whole else "the connection was closed")
        self._parser = cast(Any, None)  # it holds this object's methods

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # nobody asked: what follows cannot be told from the next answer
            return
        answer, body = self._answer, self._body
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoilt("what came is not HTTP/1.1")
        if body:
            brought = body[0] if len(body) == 1 else b"".join(body)
            body.clear()
            if answer.came(brought) and self._answer is not None and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        if self._answer is not None and not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._spoilt("the head is too long")

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._answer is None:
            self.abort()  # a second answer to one question

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # trailers
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = {}  # informational: the answer is still to come
        elif self._answer is not None:
            self._in_body = True
            self._answer.began(status, self._headers)

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._in_body:
            return
        keep = self._parser.should_keep_alive() and not self.closed
        self._end(None)
        self.go_on()
        if keep:
            self._pool.keep(self)
        else:
            self.abort()

    def _spoilt(self, why: str) -> None:
        self._end(why)
        self.abort()

    def _end(self, failure: str | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended(failure)


class Pool:
    """The process's connections to upstreams. Nothing carries over from one request to the next
    but the connection, and nothing leaves by a proxy that the environment names."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._idle: defaultdict[tuple[str, int, bool], list[Connection]] = defaultdict(list)
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        """The system's certificate authorities, or ``SSL_CERT_FILE``'s."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cut every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._open:
            self._emptied = asyncio.get_running_loop().create_future()
            for connection in self._open:
                connection.abort()
            await self._emptied

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, connect_s: float
    ) -> Answer:
        """Send a request and wait for the answer's head. It is sent once: what is done about an
        upstream that hangs up is the caller's decision.

        Raises:
            BrokenHttp: the connection ended, or what came is not HTTP/1.1.
            OSError: it cannot be reached, or not trusted (``ssl.SSLError``).
            TimeoutError: no connection within ``connect_s``.
        """
        target = _target(url)
        head = _head(method, target, headers, len(body))
        connection = self._kept(target.origin)
        if connection is None:
            with within(connect_s):
                connection = await self._connected(target.origin)
        answer = connection.ask(head, body)
        try:
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    def opened(self, connection: Connection) -> None:
        """A new one."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)

    def keep(self, connection: Connection) -> None:
        """For the next request."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle[connection.origin].append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(self._keep_s, self._sweep)

    def _kept(self, origin: tuple[str, int, bool]) -> Connection | None:
        """The one that was used last: what a burst needed can grow old."""
        idle = self._idle[origin]
        oldest = asyncio.get_running_loop().time() - self._keep_s
        while idle:
            connection = idle.pop()
            if not connection.closed and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep_s
        for idle in self._idle.values():
            for connection in [c for c in idle if c.idle_since <= oldest]:
                connection.abort()
        left = any(c for idle in self._idle.values() for c in idle if not c.closed)
        self._sweeping = loop.call_later(self._keep_s, self._sweep) if left else None

    async def _connected(self, origin: tuple[str, int, bool]) -> Connection:
        """Addresses of both families race (RFC 8305)."""
        host, port, tls = origin
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = await start_connection(addresses, happy_eyeballs_delay=_EYEBALLS_S, loop=loop)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _, connection = await loop.create_connection(
                lambda: Connection(self, origin), sock=sock,
                ssl=self._trust if tls else None, server_hostname=host if tls else None,
            )  # fmt: skip
        except BaseException:
            sock.close()
            raise
        return connection


def _head(method: str, target: _Target, headers: Mapping[str, str], length: int) -> bytes:
    own = _lines([f"{name}: {value}" for name, value in headers.items()])
    size = b"content-length: %d\r\n" % length if length or method == "POST" else b""
    return b"%b%b%b\r\n" % (_usual(method, target), own, size)


@functools.lru_cache(maxsize=256)
def _usual(method: str, target: _Target) -> bytes:
    """What every head has; kept, since it holds no key."""
    return _lines([
        f"{method} {target.path} HTTP/1.1",
        f"host: {target.authority}",
        "user-agent: understudy",
        "accept: */*",
        "accept-encoding: identity",
    ])  # fmt: skip


def _lines(lines: list[str]) -> bytes:
    text = "".join([f"{line}\r\n" for line in lines])
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        raise ValueError("a header holds a line break")
    return text.encode()
