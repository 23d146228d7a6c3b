"""The upstream client, byte by byte: what is whole, what is not, and which connections are kept."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import ssl
import string
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway import http1
from gateway.http1 import Answer, BrokenHttp, Connection, Pool

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
"""Gets each connection with its number."""


class Wire(asyncio.Transport):
    """What a connection does to its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def length(body: bytes, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n%bContent-Length: %d\r\n\r\n"
    return head % (extra, len(body)) + body


def chunked(body: bytes, size: int = 3) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + framed + b"0\r\nx-trailer: 1\r\n\r\n"


def until_closed(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\n\r\n" + body


FRAMED: dict[str, Callable[[bytes], bytes]] = {
    "length": length,
    "chunked": chunked,
    "until_closed": until_closed,
}


def opened() -> tuple[Connection, Wire, Answer]:
    """A connection that was asked."""
    connection, wire = Connection(Pool(), ("host", 80, False)), Wire()
    connection.connection_made(wire)
    return connection, wire, connection.ask(b"head", b"")


async def received(pieces: list[bytes], lost: Exception | None = None) -> bytes:
    """The body of an answer that comes in these pieces and then ends."""
    connection, _, answer = opened()
    for piece in pieces:
        connection.data_received(piece)
    connection.connection_lost(lost)
    await answer.head()
    assert answer.status == 200
    assert answer.headers["content-type"] == "a/b"
    body = b""
    while part := await answer.some():
        body += part
    return body


@given(
    st.sampled_from(sorted(FRAMED)), st.binary(max_size=40), st.lists(st.integers(0, 200)),
    st.integers(0, 2),
)  # fmt: skip
def test_any_split_gives_the_same_answer(
    framing: str, body: bytes, cuts: list[int], early: int
) -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * early + FRAMED[framing](body)
    at = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(at)]
    assert asyncio.run(received([piece for piece in pieces if piece])) == body


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_answer_cut_at_any_byte_is_never_whole(framing: str) -> None:
    raw = FRAMED[framing](b"twelve bytes")
    for cut in range(len(raw)):
        with pytest.raises(BrokenHttp, match="closed"):
            await received([raw[:cut]] if cut else [])


async def test_a_reset_ends_no_body() -> None:
    """A body that ends with its connection is whole only where that ended in peace."""
    with pytest.raises(BrokenHttp, match="closed"):
        await received([until_closed(b"part")], ConnectionResetError())


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_and_cut(raw: bytes) -> None:
    connection, wire, answer = opened()
    connection.data_received(raw)
    with pytest.raises(BrokenHttp, match="not HTTP"):
        await answer.head()
    assert wire.aborted


async def test_a_head_without_end_is_cut() -> None:
    connection, wire, answer = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\n")
    while not wire.aborted:
        connection.data_received(b"x-more: " + b"y" * 1000 + b"\r\n")
    with pytest.raises(BrokenHttp, match="too long"):
        await answer.head()


@contextlib.asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A raw server; its URL."""
    count = 0
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer, count)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://localhost:{listening.sockets[0].getsockname()[1]}/v1"
    finally:
        listening.close()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def asked(reader: asyncio.StreamReader) -> bytes:
    """A request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(size)


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers every request of a connection by its number, and remembers them."""

    answer: Callable[[int], bytes]
    seen: list[tuple[int, bytes]] = field(default_factory=list)

    async def __call__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while True:
            self.seen.append((number, await asked(reader)))
            writer.write(self.answer(number))


def numbered(number: int) -> bytes:
    return length(b"%d" % number)


async def get(pool: Pool, url: str, body: bytes = b"{}") -> tuple[int, bytes]:
    answer = await pool.request("POST", url + "/x", {"content-type": "a/b"}, body, 5.0)
    try:
        found = b""
        while part := await answer.some():
            found += part
        return answer.status, found
    finally:
        answer.close()


async def test_the_request_and_the_connection_that_is_kept() -> None:
    answers = Answering(numbered)
    async with server(answers) as url, Pool() as pool:
        big = b"x" * (http1.BUFFER_BYTES + 1)
        assert [await get(pool, url, body) for body in (b"{}", big)] == [(200, b"1")] * 2
        port = url.rpartition(":")[2].removesuffix("/v1").encode()
        lines = (
            b"POST /v1/x HTTP/1.1", b"host: localhost:" + port, b"user-agent: understudy",
            b"accept: */*", b"accept-encoding: identity", b"content-type: a/b",
            b"content-length: 2", b"", b"{}",
        )  # fmt: skip
        assert answers.seen[0][1] == b"\r\n".join(lines)
        assert answers.seen[1][1].endswith(big)


@pytest.mark.parametrize(
    "raw",
    [
        length(b"ok", b"connection: close\r\n"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        length(b"ok") + length(b"poison"),
        length(b"ok") + b"junk",
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(raw: bytes) -> None:
    """Else what comes too much would be the answer to the next question."""
    answers = Answering(lambda number: raw)
    async with server(answers) as url, Pool() as pool:
        for _ in range(3):
            assert await get(pool, url) == (200, b"ok")
    assert [number for number, _ in answers.seen] == [1, 2, 3]


async def test_what_comes_unasked_closes_an_idle_connection() -> None:
    numbers: list[int] = []

    async def answers(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while True:
            await asked(reader)
            numbers.append(number)
            writer.write(length(b"ok"))
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(length(b"poison"))

    async with server(answers) as url, Pool() as pool:
        for _ in range(2):
            assert await get(pool, url) == (200, b"ok")
            await asyncio.sleep(0.1)
    assert numbers == [1, 2]


async def test_a_body_that_is_not_read_takes_its_connection_with_it() -> None:
    gone = asyncio.Event()

    async def endless(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()
        gone.set()

    async with server(endless) as url, Pool() as pool:
        answer = await pool.request("POST", url, {}, b"{}", 5.0)
        assert await answer.some() == b"a"
        answer.close()
        async with asyncio.timeout(1):
            await gone.wait()


async def test_silence_is_bounded_and_a_trickle_is_not() -> None:
    """One timer sees all parts of a body: it must neither count from the first one, nor miss that
    the last was the last, nor outlive a shorter limit that comes later."""
    connection, _, answer = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await answer.head()
    loop = asyncio.get_running_loop()
    for number in range(12):  # more than twice the limit
        loop.call_later(0.05, connection.data_received, b"1\r\n%x\r\n" % number)
        assert await answer.some(0.3) == b"%x" % number
    began = loop.time()
    with pytest.raises(TimeoutError):
        await answer.some(0.3)
    assert loop.time() - began >= 0.3
    loop.call_later(0.05, connection.data_received, b"1\r\na\r\n")
    assert await answer.some(60) == b"a"
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await answer.some(0.05)
    connection.data_received(b"1\r\nb\r\n")
    assert await answer.some(0) == b"b", "what is there is given, however late"
    connection.abort()


async def test_what_a_taker_keeps_wakes_nobody() -> None:
    """It counts as a sign of life, is shown packet by packet, and the rest comes in order."""
    connection, _, answer = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await answer.head()
    loop = asyncio.get_running_loop()
    shown: list[bytes] = []

    def keeps(data: bytes) -> bytes:
        shown.append(data)
        return data.lstrip(string.ascii_lowercase.encode())

    pieces = [b"1\r\na\r\n", b"1\r\nb\r\n", b"1\r\nc\r\n2\r\nDd\r\n", b"1\r\ne\r\n", b"1\r\nF\r\n"]
    for number, piece in enumerate(pieces):
        loop.call_later(0.2 * (number + 1), connection.data_received, piece)
    assert await answer.some(0.5, taker=keeps) == b"Dd", "from what it did not keep on"
    assert shown == [b"a", b"b", b"cDd"]
    assert await answer.some(0.5, taker=keeps) == b"F"
    assert shown == [b"a", b"b", b"cDd", b"e", b"F"]
    connection.data_received(b"1\r\ng\r\n")
    assert await answer.some(0.5, taker=keeps) == b"g", "what nobody waited for is not shown"
    loop.call_later(0.1, connection.data_received, b"1\r\nh\r\n")
    began = loop.time()
    with pytest.raises(TimeoutError):
        await answer.some(0.3, taker=keeps)
    assert loop.time() - began >= 0.4, "the silence began after the last part"
    for number in range(6):
        loop.call_later(0.1 * number, connection.data_received, b"1\r\ni\r\n")
    with pytest.raises(TimeoutError):
        await answer.some(60, loop.time() + 0.2, keeps)
    await asyncio.sleep(0.7)  # what still came of the six
    assert set(await answer.some()) <= set(b"i")
    loop.call_later(0.1, connection.data_received, b"1\r\nj\r\n0\r\n\r\n")
    assert await answer.some(60, taker=keeps) == b"j", "the end came with it"
    assert await answer.some() == b""


async def test_a_request_that_is_given_up_frees_the_upstream() -> None:
    gone = asyncio.Event()

    async def silent(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        await asked(reader)
        await reader.read()
        gone.set()

    async with server(silent) as url, Pool() as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.request("POST", url, {}, b"{}", 5.0)
        async with asyncio.timeout(1):
            await gone.wait()


async def test_old_connections_are_closed() -> None:
    gone: list[int] = []

    async def answers(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        await asked(reader)
        writer.write(length(b"%d" % number))
        await reader.read()
        gone.append(number)

    async with server(answers) as url, Pool(keep_s=0.05) as pool:
        assert await get(pool, url) == (200, b"1")
        async with asyncio.timeout(2):
            while gone != [1]:
                await asyncio.sleep(0.01)
        assert await get(pool, url) == (200, b"2")


async def test_a_body_waits_in_the_socket_while_nobody_reads_it() -> None:
    total = 64 << 20
    sent = 0

    async def floods(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        nonlocal sent
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * (1 << 16))
            sent += 1 << 16
            await writer.drain()
        await asked(reader)
        writer.write(length(b"again"))

    async with server(floods) as url, Pool() as pool:
        answer = await pool.request("POST", url, {}, b"{}", 5.0)
        await asyncio.sleep(0.3)
        assert sent < total / 2
        size = 0
        while part := await answer.some():
            size += len(part)
        assert size == total
        assert await get(pool, url) == (200, b"again"), "and the connection is sound"


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate"])
async def test_a_body_that_was_compressed_all_the_same(coding: str) -> None:
    text = b"abc" * 2_000_000
    packed = gzip.compress(text) if "gzip" in coding else zlib.compress(text)

    async def answers(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        for part in (packed, packed[:-20], b"junk"):
            await asked(reader)
            writer.write(length(part, b"content-encoding: %b\r\n" % coding.encode()))

    async with server(answers) as url, Pool() as pool:
        answer = await pool.request("POST", url, {}, b"{}", 5.0)
        parts = []
        while part := await answer.some():
            parts.append(part)
        assert b"".join(parts) == text
        assert max(map(len, parts)) <= http1.INFLATED_BYTES
        with pytest.raises(BrokenHttp, match="not whole"):
            await get(pool, url)
        with pytest.raises(BrokenHttp, match="damaged"):
            await get(pool, url)


async def test_a_coding_that_nobody_knows_is_refused() -> None:
    async def answers(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        await asked(reader)
        writer.write(length(b"??", b"content-encoding: br\r\n"))
        await reader.read()

    async with server(answers) as url, Pool() as pool:
        with pytest.raises(BrokenHttp, match="compressed"):
            await get(pool, url)


async def test_tls_is_trusted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async with server(Answering(numbered), context) as url:
        async with Pool() as pool:
            with pytest.raises(ssl.SSLError):
                await get(pool, url)
        with authority.cert_pem.tempfile() as pem:
            monkeypatch.setenv("SSL_CERT_FILE", pem)
            async with Pool() as pool:
                assert await get(pool, url) == (200, b"1")
                assert await get(pool, url) == (200, b"1")
                with pytest.raises(ssl.SSLError):
                    await get(pool, url.replace("localhost", "127.0.0.1"))


async def test_nobody_there() -> None:
    async with server(lambda *_: asyncio.sleep(0)) as url:
        pass
    async with Pool() as pool:
        with pytest.raises(ConnectionRefusedError):
            await get(pool, url)


async def test_a_line_break_in_a_header_goes_nowhere() -> None:
    async with Pool() as pool:
        with pytest.raises(ValueError, match="line break"):
            await pool.request("POST", "http://127.0.0.1:9/", {"a": "b\r\nc: d"}, b"", 1.0)
