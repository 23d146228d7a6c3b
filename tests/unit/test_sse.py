"""The event parser gives the same events however the bytes are cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import MAX_EVENT_BYTES, EventParser, EventTooLarge, alone

LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data: ",
        b"",
        b": comment",
        b"event: x",
        b"data:  two",
        b"id: 1",
        b"data",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
SCRIPT = st.lists(st.tuples(LINES, ENDS), max_size=12).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


def oracle(script: bytes) -> list[bytes]:
    """WHATWG's rules, over the whole text at once."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\r|\n", script)[:-1]:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events


def _single(piece: bytes) -> bytes | None:
    event, *rest = piece.split(b"\n\n")
    return alone(event) if rest == [b""] else None


@given(SCRIPT, st.lists(st.integers(0, 200), max_size=8))
def test_any_cut_gives_the_same_events(script: bytes, cuts: list[int]) -> None:
    parser = EventParser()
    places = sorted({0, len(script), *(cut for cut in cuts if cut < len(script))})
    pieces = [script[a:b] for a, b in itertools.pairwise(places)]
    events: list[bytes] = []
    for piece in pieces:
        single = None if parser.within else _single(piece)
        events += parser.feed(piece) if single is None else [single]
    # A carriage return at the very end may be half of a pair: the oracle cannot know either.
    assert events == oracle(script)


def test_every_single_cut_of_a_real_stream() -> None:
    script = b'data: {"a":1}\r\n\r\n: ping\n\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\n'
    expected = [b'{"a":1}', b'{"b":\n2}', b"[DONE]"]
    for cut in range(len(script) + 1):
        parser = EventParser()
        assert parser.feed(script[:cut]) + parser.feed(script[cut:]) == expected
    parser = EventParser()
    assert [e for byte in script for e in parser.feed(bytes([byte]))] == expected


def test_an_event_that_comes_alone_need_not_be_fed() -> None:
    parser = EventParser()
    assert not EventParser().within
    assert alone(b"data: a") == b"a"
    assert alone(b": a") is None
    assert alone(b"data: a\rdata: b") is None
    assert alone(b"data: a\ndata: b") is None
    parser.feed(b"data: a\n")
    assert parser.within
    assert parser.feed(b"data: b\n\n") == [b"a\nb"]


def test_an_endless_event_is_refused() -> None:
    parser = EventParser()
    with pytest.raises(EventTooLarge):
        for _ in range(MAX_EVENT_BYTES // 65536 + 2):
            parser.feed(b"x" * 65536)
