"""A stream joined equals the answer whole, and is clean on its way to the client."""

from __future__ import annotations

import copy
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.chat import Assembler, ChatStream, Relay
from tests.fakes.answers import USAGE, teacher_chunk, vllm_events

HEAD = {"id": "chatcmpl-1", "created": 7, "model": "asked-for"}


def test_deltas_join_to_the_completion() -> None:
    whole = Assembler()
    for event in vllm_events(["pay", "_", "bill"]):
        whole.feed(event)
    body = whole.completion(HEAD, None)
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "pay_bill",
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"] == USAGE
    assert body["model"] == "asked-for"


def test_tool_call_pieces_join_by_index() -> None:
    whole = Assembler()
    calls = [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [
            {
                "index": 1,
                "id": "c2",
                "type": "function",
                "function": {"name": "g", "arguments": "{}"},
            }
        ],
        [{"index": 0, "function": {"arguments": ":1}"}}],
    ]
    for call in calls:
        whole.feed(teacher_chunk({"tool_calls": call}))
    whole.feed(teacher_chunk({}, "tool_calls"))
    message = whole.completion(HEAD, None)["choices"][0]["message"]
    assert [c["function"]["arguments"] for c in message["tool_calls"]] == ['{"a":1}', "{}"]
    assert [c["id"] for c in message["tool_calls"]] == ["c1", "c2"]


def test_student_chunks_lose_what_nobody_asked_for() -> None:
    relay = Relay(HEAD, None, False, strict=True)
    chunks = [c for e in vllm_events(["a", "b"]) if (c := relay.chunk(e)) is not None]
    for chunk in chunks:
        assert set(chunk) == {"id", "created", "model", "object", "choices", "system_fingerprint"}
        assert set(chunk["choices"][0]) == {"index", "delta", "finish_reason", "logprobs"}
        assert chunk["choices"][0]["logprobs"] is None
    assert sum("role" in c["choices"][0]["delta"] for c in chunks) == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]


def test_asked_for_logprobs_come_with_as_many_alternatives_as_asked() -> None:
    for alternatives in (0, 1):
        relay = Relay(HEAD, alternatives, False, strict=True)
        chunk = relay.chunk(vllm_events(["a"])[1])
        assert chunk is not None
        token = chunk["choices"][0]["logprobs"]["content"][0]
        assert len(token["top_logprobs"]) == alternatives


def test_a_second_role_is_dropped() -> None:
    relay = Relay(HEAD, None, False, strict=False)
    first = relay.chunk(teacher_chunk({"role": "assistant", "content": "a"}))
    second = relay.chunk(teacher_chunk({"role": "assistant", "content": "b"}))
    assert first is not None
    assert second is not None
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert second["choices"][0]["delta"] == {"content": "b"}


def test_usage_appears_only_where_it_was_asked_for() -> None:
    raw = {**teacher_chunk({"content": "a"}), "usage": USAGE}
    without = Relay(HEAD, None, False, strict=False)
    chunk = without.chunk(raw)
    assert chunk is not None
    assert "usage" not in chunk
    assert without.usage(USAGE) is None
    wanted = Relay(HEAD, None, True, strict=False)
    chunk = wanted.chunk(raw)
    assert chunk is not None
    assert chunk["usage"] is None
    closing = wanted.usage(USAGE)
    assert closing is not None
    assert closing["choices"] == []
    assert closing["usage"] == USAGE


DELTAS = st.dictionaries(
    st.sampled_from(["content", "content", "role", "refusal"]),
    st.sampled_from(["a", "", None, "\u00e9b"]),
    max_size=2,
)
CHOICES = st.fixed_dictionaries(
    {"index": st.sampled_from([0, 0, 0, 1, True]), "delta": DELTAS},
    optional={
        "finish_reason": st.sampled_from([None, None, "stop"]),
        "logprobs": st.sampled_from([None, {"content": [{"token": "a", "logprob": -0.1}]}]),
    },
)
CHUNKS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, min_size=0, max_size=2)},
    optional={
        "id": st.just("theirs"),
        "model": st.sampled_from(["m", "m", "n", None]),
        "object": st.just("chat.completion.chunk"),
        "system_fingerprint": st.sampled_from(["fp", "fp", None]),
        "usage": st.sampled_from([None, None, {}, USAGE]),
        "service_tier": st.just("default"),
    },
)
BEGUN = teacher_chunk({"role": "assistant", "content": ""})


@given(st.lists(st.just(BEGUN) | st.just(teacher_chunk({"content": "x"})) | CHUNKS, max_size=8))
def test_plain_chunks_are_what_the_long_way_makes_of_them(chunks: list[dict[str, Any]]) -> None:
    for wanted in (False, True):
        short, long, direct = (
            ChatStream(Relay(HEAD, None, wanted, False), Assembler()) for _ in "abc"
        )
        for chunk in chunks:
            before = copy.deepcopy(chunk)
            short.learn(chunk)
            long.whole.feed(chunk)
            said = _parsed(long.take(chunk))
            assert _parsed(short.take(chunk)) == said
            at_once = direct.at_once(chunk)
            if not at_once:
                direct.learn(chunk)
            assert _parsed(at_once or direct.take(chunk)) == said
            assert chunk == before
        for stream in (short, direct):
            assert stream.answer() == long.answer()
            assert (stream.finished, stream.usage) == (long.finished, long.usage)
            assert stream.close(None) == long.close(None)


def _parsed(part: bytes) -> Any:
    return orjson.loads(part.removeprefix(b"data: ")) if part else None


def test_a_plain_chunk_takes_the_short_way() -> None:
    relay = Relay(HEAD, None, False, strict=False)
    plain = teacher_chunk({"content": "a"})
    assert not relay.plain(plain)
    relay.chunk(BEGUN)
    assert not relay.plain(BEGUN)
    relay.chunk(teacher_chunk({"role": "assistant", "content": "a"}))
    assert relay.plain(plain)
    assert relay.named(plain) == relay.chunk(plain)


def test_text_goes_out_at_once_between_the_beginning_and_the_end() -> None:
    stream = ChatStream(Relay(HEAD, None, False, False), Assembler())
    plain, last = teacher_chunk({"content": "a"}), teacher_chunk({}, "stop")
    assert not stream.at_once(plain), "the role is still to be said"
    stream.learn(BEGUN)
    stream.take(BEGUN)
    assert stream.at_once(plain)
    assert not stream.at_once({**plain, "error": {"message": "no more"}})
    assert not stream.at_once(last)
    stream.learn(last)
    stream.take(last)
    assert not stream.at_once(plain), "the end is held back, and what comes after it"
    assert stream.whole.text == "a"
