"""Upstreams that send JSON of any shape: never a 500 of ours, never a hang, never a false end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.streams.chat import Assembler, ChatStream, Relay
from gateway.streams.completions import CompletionStream
from gateway.streams.responses import ResponsesStream
from gateway.streams.responses_writer import ResponsesWriter
from gateway.upstream import MALFORMED
from tests.fakes.answers import completion, teacher_events, vllm_events
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, rig
from tests.fakes.upstream import Received, Wire
from tests.wire.test_streams import encoded, scripted

ODD: list[Any] = [None, 3, -1.5, True, "text", "", [], {}, [None], [{}], {"a": 1}, 10**30, [[1]]]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one part, somewhere, replaced by something odd or left out."""
    copy = json.loads(json.dumps(value))
    place, key = copy, None
    parents: list[tuple[Any, Any]] = []
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        parents.append((place, key))
        place = place[key]
        if rng.random() < 0.3:
            break
    holder, key = rng.choice(parents)
    if isinstance(holder, dict) and rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return copy


@pytest.mark.parametrize("seed", range(4))
async def test_odd_teachers(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.never_break()
        for number in range(60):
            whole = mutated(completion("teacher says"), rng)
            events = mutated(teacher_events(["a", "b"], usage=True), rng)

            async def odd(
                received: Received, wire: Wire, whole: Any = whole, events: Any = events
            ) -> None:
                if received.body.get("stream"):
                    await scripted(encoded(events))(received, wire)
                else:
                    await wire.json(200, whole)

            r.teacher.handler = odd
            response = await r.ask(FAR, stream=bool(number % 2))
            assert response.status_code in {200, 502}, (events, response.text)
            assert "internal_error" not in response.text, (whole, events)
            if number % 2 and response.status_code == 200:
                ended = response.text.endswith("data: [DONE]\n\n")
                assert ended != ("stream_broken" in response.text), events
            rows = r.stored()
            assert len(rows) == number + 1


@pytest.mark.parametrize("seed", range(4))
async def test_odd_students_are_rescued(tmp_path: Path, seed: int) -> None:
    rng = random.Random(100 + seed)
    async with rig(tmp_path, student={"timeout_s": 5}) as r:
        r.never_break()
        for number in range(60):
            events = mutated(vllm_events(ANSWER), rng)
            r.student.handler = scripted(encoded([e for e in events if isinstance(e, dict)]))
            response = await r.ask(IN_DOMAIN, stream=bool(number % 2))
            assert response.status_code == 200, (events, response.text)
            assert "internal_error" not in response.text, events
            if number % 2:
                assert response.text.endswith("data: [DONE]\n\n"), events


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=6,
)
CHUNKS = st.dictionaries(
    st.sampled_from(["id", "choices", "usage", "error", "object", "system_fingerprint", "model"]),
    JSON | st.lists(st.dictionaries(
        st.sampled_from(["index", "delta", "finish_reason", "logprobs", "x"]), JSON, max_size=4
    ), max_size=2),
    max_size=5,
)  # fmt: skip


@given(st.lists(CHUNKS, max_size=4))
def test_any_chunk_is_merged_or_malformed(chunks: list[dict[str, Any]]) -> None:
    whole, gate = Assembler(), Gate(4, "all")
    relay = Relay({"id": "x", "created": 1, "model": "m"}, None, True, strict=True)
    for chunk in chunks:
        for use in (whole.feed, gate.feed, relay.chunk):
            try:
                use(chunk)
            except MALFORMED:
                continue


TYPED = st.dictionaries(
    st.sampled_from(["type", "response", "delta", "output_index", "sequence_number", "item"]),
    JSON | st.sampled_from(["response.created", "response.output_text.delta",
                            "response.output_text.done", "response.completed"]),
    max_size=5,
)  # fmt: skip
STREAMS: dict[str, Any] = {
    "chat": lambda: ChatStream(Relay({"id": "x"}, None, True, strict=False), Assembler()),
    "completions": lambda: CompletionStream({"id": "x"}, True),
    "responses": lambda: ResponsesStream("m"),
    "responses_of_a_student": lambda: ResponsesWriter("r", "m", 1, {"model": "m"}, Assembler()),
}


@pytest.mark.parametrize("name", STREAMS)
@given(events=st.lists(CHUNKS | TYPED, max_size=5))
def test_any_event_goes_through_or_is_malformed(name: str, events: list[dict[str, Any]]) -> None:
    """Whatever was sent so far, an answer can be made of it, and an honest end."""
    stream = STREAMS[name]()
    for event in events:
        try:
            if stream.failed(event):
                break
            stream.learn(event)
            assert b"[DONE]" not in stream.take(event)
        except MALFORMED:
            break
    assert isinstance(stream.answer(), dict)
    end = stream.fail(GatewayError("stream_broken", "x"))
    assert b"stream_broken" in end
    assert b"[DONE]" not in end
