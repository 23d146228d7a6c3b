"""Events come whole and in order, whether they are pulled or taken on their way."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.books import ClientStream
from gateway.events import End, Events
from gateway.sse import encode
from gateway.streams.chat import Assembler, ChatStream, Relay
from tests.fakes.answers import USAGE, teacher_chunk

HEAD = {"id": "chatcmpl-1", "created": 7, "model": "asked-for"}
CHUNKS = [
    teacher_chunk({"role": "assistant", "content": ""}),
    *(teacher_chunk({"content": text}) for text in ["a", '"b"', "", "\n\n", "é", "data: "]),
    teacher_chunk({}, "stop"),
    {**teacher_chunk({}), "choices": [], "usage": USAGE},
]
ENDS = st.sampled_from([b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n: a comment\n\n"])


class Pieces:
    """A response whose body comes in these pieces, each when it is waited for."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = deque(pieces)

    async def some(self, taker: Callable[[bytes], bytes]) -> bytes:
        """As ``UpstreamResponse``."""
        while self._pieces:
            if rest := taker(self._pieces.popleft()):
                return rest
        return b""


class Client:
    """Keeps what is put, in the order in which it goes out."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def takes(self) -> bool:
        """Always."""
        return True

    def put(self, data: bytes) -> None:
        """As ``Sender``."""
        self.parts.append(data)


@given(
    st.lists(ENDS, min_size=len(CHUNKS) + 1, max_size=len(CHUNKS) + 1),
    st.sets(st.integers(1, len(CHUNKS)), min_size=3),
    st.lists(st.integers(0, 2500), max_size=2),
)
def test_however_a_stream_is_cut_the_client_gets_the_same_events(
    ends: list[bytes], between: set[int], within: list[int]
) -> None:
    lines = [b"data: " + orjson.dumps(chunk) for chunk in CHUNKS] + [b"data: [DONE]"]
    whole = [line + end for line, end in zip(lines, ends, strict=True)]
    script, starts = b"".join(whole), [0, *itertools.accumulate(map(len, whole))]
    cuts = {starts[number] for number in between} | {cut for cut in within if cut < len(script)}
    places = sorted({0, len(script), *cuts})
    pieces = [script[a:b] for a, b in itertools.pairwise(places)]
    relay, client = Relay(HEAD, None, True, strict=False), Client()
    stream = ChatStream(relay, Assembler())
    out = ClientStream(cast(Any, None), stream, cast(Any, None), _sent=True)
    out.begun(cast(Any, client))
    events = Events(cast(Any, Pieces(pieces)))
    events.direct = out.passed

    async def served() -> None:
        while not isinstance(event := await events.next(), End):
            stream.learn(event)
            out.take(event)
            if not events.waiting and (part := out.taken()):
                client.put(part)
        client.put(out.taken())
        assert event is End.DONE

    asyncio.run(served())
    expected = ChatStream(Relay(HEAD, None, True, strict=False), Assembler())
    said = b""
    for chunk in CHUNKS:
        expected.whole.feed(chunk)
        said += expected.take(chunk)
    assert _events(b"".join(client.parts)) == _events(said)
    assert stream.answer() == expected.answer()
    assert stream.close(None) == expected.close(None)


def _events(parts: bytes) -> list[Any]:
    assert parts.endswith(b"\n\n")
    return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-2].split(b"\n\n")]


def test_an_event_that_was_not_taken_is_parsed_once() -> None:
    shown: list[Any] = []

    def direct(events: list[bytes], parsed: Callable[[bytes], Any]) -> int:
        shown.extend(map(parsed, events))
        return 0

    events = Events(cast(Any, Pieces([encode(chunk) for chunk in CHUNKS])))
    events.direct = direct
    for chunk in CHUNKS:
        event = asyncio.run(events.next())
        assert event == chunk
        assert event is shown[-1]
