"""Bad bodies get OpenAI's error with a stable code, a param and a sentence; good ones pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.chat import parse_chat
from gateway.errors import GatewayError

USER = [{"role": "user", "content": "hi"}]


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "m", "messages": USER, **changes}).encode()


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"text"', "invalid_json", None),
        (b"null", "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'{"model": NaN}', "invalid_json", None),
        (b'{"model": "m", "temperature": 1e999}', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": "m"}', "missing_required_parameter", "messages"),
        (body(model=3), "invalid_type", "model"),
        (body(model=""), "invalid_value", "model"),
        (body(model="x" * 300), "invalid_value", "model"),
        (body(messages="hi"), "invalid_type", "messages"),
        (body(messages=[]), "invalid_value", "messages"),
        (body(messages=["hi"]), "invalid_type", "messages[0]"),
        (body(messages=[{"content": "hi"}]), "invalid_type", "messages[0].role"),
        (body(messages=[{"role": "king", "content": "hi"}]), "invalid_value", "messages[0].role"),
        (body(messages=[{"role": "user"}]), "missing_required_parameter", "messages[0].content"),
        (body(messages=[{"role": "user", "content": 3}]), "invalid_type", "messages[0].content"),
        (body(messages=[{"role": "user", "content": []}]), "invalid_type", "messages[0].content"),
        (body(messages=[{"role": "user", "content": ["a"]}]), "invalid_type",
         "messages[0].content[0]"),
        (body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "invalid_type",
         "messages[0].content[0].text"),
        (body(temperature="hot"), "invalid_type", "temperature"),
        (body(temperature=True), "invalid_type", "temperature"),
        (body(temperature=3), "invalid_value", "temperature"),
        (body(top_p=-1), "invalid_value", "top_p"),
        (body(n=0), "invalid_value", "n"),
        (body(n=10**30), "invalid_value", "n"),
        (body(max_tokens=1.5), "invalid_value", "max_tokens"),
        (body(max_tokens=1, max_completion_tokens=1), "invalid_value", "max_tokens"),
        (body(seed=2**63), "invalid_value", "seed"),
        (body(stream="yes"), "invalid_type", "stream"),
        (body(stream=1), "invalid_type", "stream"),
        (body(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (body(stream=True, stream_options={"include_usage": 3}), "invalid_type",
         "stream_options.include_usage"),
        (body(top_logprobs=2), "invalid_value", "top_logprobs"),
        (body(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (body(stop=3), "invalid_type", "stop"),
        (body(tools="hammer"), "invalid_type", "tools"),
        (body(tool_choice="auto"), "invalid_value", "tool_choice"),
        (body(tools=[{}], tool_choice={}), "invalid_value", "tool_choice"),
        (body(tools=[{"type": "function", "function": {"name": "f"}}],
              tool_choice={"type": "function", "function": {"name": "g"}}), "invalid_value",
         "tool_choice"),
        (body(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
        (body(response_format={"type": "json_schema"}), "missing_required_parameter",
         "response_format.json_schema.schema"),
        (body(metadata=[]), "invalid_type", "metadata"),
        (body(user=3), "invalid_type", "user"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(raw: bytes, code: str, param: str | None) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_chat(raw)
    error = caught.value.body()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"
    assert caught.value.status == 400
    assert error["message"].endswith(".")


def test_unknown_fields_pass_through_untouched() -> None:
    request = parse_chat(body(service_tier="flex", verbosity="low", x={"y": [1]}))
    assert request.body["x"] == {"y": [1]}
    assert request.body["service_tier"] == "flex"


def test_parts_join_to_text_and_images_are_noticed() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    assert (
        parse_chat(body(messages=[{"role": "user", "content": parts}])).messages[0].content
        == "a\nb"
    )
    assert parse_chat(body(messages=[{"role": "user", "content": parts}])).text_only
    assert not parse_chat(body(messages=[{"role": "user", "content": [*parts, image]}])).text_only


@pytest.mark.parametrize("arguments", ["", "{}"])
def test_a_tool_without_arguments_is_accepted_in_history(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    history = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "c", "content": "42"}]  # fmt: skip
    assert len(parse_chat(body(messages=history)).messages) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "stream_options", "n", "temperature", "stop", "tools", "user",
     "tool_choice", "response_format", "logprobs", "top_logprobs", "max_tokens", "seed", "metadata"]
)  # fmt: skip


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_any_json_is_parsed_or_refused_with_a_sentence(changes: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", "messages": USER, **changes}).encode("utf-8", "surrogatepass")
    try:
        parse_chat(raw)
    except GatewayError as error:
        assert error.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_sentence(raw: bytes) -> None:
    with pytest.raises(GatewayError):
        parse_chat(raw)
