"""The upstream of the benchmarks: a fixed answer over keep-alive, as cheap as Python allows.

``python -m tests.bench.mock PORT``: ``/v1`` answers as a teacher, ``/student/v1`` as vLLM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

from tests.fakes.answers import completion, vllm_events

_ANSWER = json.dumps(completion("transfer")).encode()
_EVENTS = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in vllm_events(["ap", "r"]))
_EVENTS += b"data: [DONE]\n\n"


def _whole(kind: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


TEACHER = _whole(b"application/json", _ANSWER)
STUDENT = _whole(b"text/event-stream", _EVENTS)


class Mock(asyncio.Protocol):
    """Counts content lengths and answers; nothing else of HTTP."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._transport.write(STUDENT if b"/student/" in head[:80] else TEACHER)
            self._buffer = self._buffer[end + 4 + length :]


async def main(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Mock, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))
