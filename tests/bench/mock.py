"""The upstream of the benchmarks: fixed answers over keep-alive, as cheap as Python allows.

``python -m tests.bench.mock PORT``: ``/v1`` answers as a teacher, ``/student/v1`` as vLLM, with
what the demo's student said when it was asked (``tests.bench.answers``), log-probabilities
included, and surely 'apr' to anything else. A teacher's stream is ``CHUNKS`` events, one packet
each; a prompt that says LONG gets ``LONG_CHUNKS``, one that says PARK an event and then silence.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from router.rows import StudentAnswer, read_rows
from tests.fakes.answers import (
    USAGE,
    completion,
    teacher_chunk,
    teacher_events,
    vllm_chunk,
    vllm_events,
)

CHUNKS, LONG_CHUNKS = 100, 400
GAP_S = 0.002
"""Between the packets of a stream: a fast model's pace."""
LONG, PARK = "LONG", "PARK"

_ANSWER = json.dumps(completion("transfer")).encode()


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _whole(kind: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TEACHER = _whole(b"application/json", _ANSWER)


def _stream_of(events: Iterable[object]) -> bytes:
    return _whole(b"text/event-stream", b"".join(map(_event, events)) + b"data: [DONE]\n\n")


STUDENT = _stream_of(vllm_events(["ap", "r"]))
MIXED = 400
RECORDED = Path(__file__).parents[1] / "data/heldout/answers.jsonl.gz"


def recorded() -> dict[str, StudentAnswer]:
    """The student's answers by prompt, in the order of the file: the demo's mix first."""
    return {row.text: row.student for row in read_rows(RECORDED) if row.student is not None}


def mixed() -> list[str]:
    """Held-out utterances in the demo's mix, half in-domain."""
    return list(recorded())[:MIXED]


def _events_of(answer: StudentAnswer) -> Iterator[object]:
    yield vllm_chunk({"role": "assistant", "content": ""})
    for number, token in enumerate(answer.tokens):
        last = number == len(answer.tokens) - 1 and answer.finish_reason == "stop"
        top = [{"token": "x", "logprob": value, "bytes": []} for value in token.top]
        said = {"token": token.token, "logprob": token.logprob, "bytes": [], "top_logprobs": top}
        content = "" if last else token.token
        finish = answer.finish_reason if number == len(answer.tokens) - 1 else None
        yield vllm_chunk({"content": content}, {"content": [said]}, finish)
    yield {**vllm_chunk({}), "choices": [], "usage": USAGE}


def _packets(count: int) -> list[bytes]:
    """A teacher's stream of so many events."""
    events = teacher_events([f"word{n} " for n in range(count - 2)], usage=True)
    packets = [_chunk(_event(event)) for event in events]
    packets[0] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        + packets[0]
    )
    packets[-1] += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return packets


STREAM, LONG_STREAM = _packets(CHUNKS), _packets(LONG_CHUNKS)
PARKED = STREAM[0] + _chunk(_event(teacher_chunk({"content": "a"})))


class Mock(asyncio.Protocol):
    """Counts content lengths and answers; nothing else of HTTP."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self._answers = answers
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

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
            self._answer(head, self._buffer[end + 4 : end + 4 + length])
            self._buffer = self._buffer[end + 4 + length :]

    def _answer(self, head: bytes, body: bytes) -> None:
        if b"/student/" in head[:80]:
            asked = json.loads(body)["messages"][-1]["content"]
            self._transport.write(self._answers.get(asked, STUDENT))
        elif b'"stream":true' not in body.replace(b" ", b""):
            self._transport.write(TEACHER)
        elif PARK.encode() in body:
            self._transport.write(PARKED)
        else:
            self._next(LONG_STREAM if LONG.encode() in body else STREAM, 0)

    def _next(self, packets: Sequence[bytes], number: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(packets[number])
        if number + 1 < len(packets):
            self._loop.call_later(GAP_S, self._next, packets, number + 1)


async def main(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    answers = {text: _stream_of(_events_of(answer)) for text, answer in recorded().items()}
    server = await loop.create_server(lambda: Mock(answers), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))
