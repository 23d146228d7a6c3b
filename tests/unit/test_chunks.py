"""A stream joined equals the answer whole, and is clean on its way to the client."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import encode
from gateway.streams.chat import MOULDS, Assembler, ChatStream, Relay
from gateway.streams.mould import Mould
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
            at_once = _at_once(direct, chunk)
            if not at_once:
                direct.learn(chunk)
            assert _parsed(at_once or direct.take(chunk)) == said
            assert chunk == before
        for stream in (short, direct):
            assert stream.answer() == long.answer()
            assert (stream.finished, stream.usage) == (long.finished, long.usage)
            assert stream.close(None) == long.close(None)


def _event(raw: bytes) -> Any:
    return orjson.loads(raw.removeprefix(b"data: "))


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


def _begun() -> ChatStream:
    stream = ChatStream(Relay(HEAD, None, False, False), Assembler())
    stream.learn(BEGUN)
    stream.take(BEGUN)
    return stream


def _raw(chunk: dict[str, Any]) -> bytes:
    return encode(chunk).removesuffix(b"\n\n")


def _at_once(stream: ChatStream, chunk: dict[str, Any]) -> bytes:
    return stream.at_once(_raw(chunk), _event)


def test_text_goes_out_at_once_between_the_beginning_and_the_end() -> None:
    stream = ChatStream(Relay(HEAD, None, False, False), Assembler())
    plain, last = teacher_chunk({"content": "a"}), teacher_chunk({}, "stop")
    assert not _at_once(stream, plain), "the role is still to be said"
    stream = _begun()
    assert _at_once(stream, plain)
    assert not _at_once(stream, {**plain, "error": {"message": "no more"}})
    assert not _at_once(stream, last)
    stream.learn(last)
    stream.take(last)
    assert not _at_once(stream, plain), "the end is held back, and what comes after it"
    assert stream.whole.text == "a"


WRITERS: list[Callable[[Any], bytes]] = [
    orjson.dumps,
    lambda value: json.dumps(value).encode(),
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", '"content": "x"', "understudy: the text", "\n\ndata: [DONE]\n\n", '"},{"']
)
"""What a text could say to be taken for what stands around it."""
PLAIN = st.builds(
    lambda text, index, fields: {
        **teacher_chunk({"content": text}),
        **fields,
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}],
    },
    TEXTS,
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([
        {}, {}, {}, {"service_tier": '"content": "x"'}, {"obfuscation": "abc"},
        {"obfuscation": "xyz12"}, {"obfuscation": ""}, {"obfuscation": '"}'},
        {"system_fingerprint": "other"},
    ]),
)  # fmt: skip


@given(st.lists(PLAIN, max_size=8), st.sampled_from(WRITERS), st.data())
def test_a_chunk_known_by_its_bytes_is_what_parsing_makes_of_it(
    chunks: list[dict[str, Any]], written: Callable[[Any], bytes], data: st.DataObject
) -> None:
    direct, long = _begun(), _begun()
    for chunk in chunks:
        raw = b"data: " + written(chunk)
        cut = data.draw(st.booleans())  # part of a packet with others: it takes the other way
        at_once = b"" if cut else direct.at_once(raw, _event)
        if not at_once:
            direct.learn(chunk)
        long.whole.feed(chunk)
        said = _parsed(long.take(chunk))
        part = at_once or direct.take(chunk)
        assert _parsed(part) == said
        assert part.count(b"\n") == (2 if part else 0)
        assert direct.answer() == long.answer()


@pytest.mark.parametrize("written", WRITERS)
@pytest.mark.parametrize("padded", [False, True], ids=["bare", "padded"])
def test_a_chunk_with_another_text_is_not_parsed(
    written: Callable[[Any], bytes], padded: bool
) -> None:
    stream, said = _begun(), ["a", 'b"\\', "\u00e9\n", "\U0001f600", " "]
    parsed = Mock(side_effect=_event)
    for text in said:
        padding = {"obfuscation": f"pad{len(text)}"} if padded else {}
        raw = b"data: " + written({**teacher_chunk({"content": text}), **padding})
        part = _parsed(stream.at_once(raw, parsed))
        assert part["choices"][0]["delta"] == {"content": text}
        assert part.get("obfuscation") == padding.get("obfuscation")
    parsed.assert_called_once()
    assert stream.whole.text == "".join(said)


@pytest.mark.parametrize(
    "text",
    [
        b'"',
        b"\\",
        b"\x00",
        b"\n",
        b"\xff",
        b"\\ud800",
        b"",
        b'x"}, "finish_reason": "stop", "y": {"z": "',
    ],
)
def test_what_is_no_text_is_not_taken_for_one(text: bytes) -> None:
    stream = _begun()
    raw = _raw(teacher_chunk({"content": "TEXT"}))
    assert stream.at_once(raw, _event)
    assert not stream.at_once(raw.replace(b"TEXT", text), lambda _: None)
    assert stream.whole.text == "TEXT"


def test_moulds_that_never_fit_are_made_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock(side_effect=Mould.of)
    monkeypatch.setattr(Mould, "of", made)
    stream = _begun()
    for number in range(20):
        chunk = {**teacher_chunk({"content": "a"}), "sequence_number": number}
        assert _at_once(stream, chunk)
    assert made.call_count == MOULDS
    assert stream.whole.text == "a" * 20


def test_no_mould_of_a_chunk_whose_text_is_not_told_by_its_bytes() -> None:
    stream = _begun()
    event = teacher_chunk({"content": "a"})
    twice = _raw(event).replace(b'"content":"a"', b'"content":"b","content":"a"')
    elsewhere = _raw({"metadata": {"content": "b"}, **event})
    escaped = _raw(event).replace(b'"content"', b'"c\\u006fntent"')
    for raw in (twice, elsewhere, escaped):
        assert _event(raw)["choices"] == event["choices"]
        assert Mould.of(raw, _event(raw), encode) is None
        assert stream.at_once(raw, _event)
    assert stream.whole.text == "aaa"
