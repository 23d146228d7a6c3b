"""``POST /v1/responses``, and the same question as a chat completion where a chat can ask it.

Reference: platform.openai.com/docs/api-reference/responses. A student serves what is plain text in
and out; whatever needs the teacher's own state or tools (``previous_response_id`` of a response
that the teacher holds, ``conversation``, ``background``, built-in tools, reasoning, …) is named in
``foreign`` and goes to the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.chat import ROLES
from gateway.api.fields import (
    INT64,
    check_integer,
    check_kinds,
    check_model,
    check_number,
    check_stream,
    check_tools,
    invalid,
)
from gateway.api.request import Api, ApiRequest, parse_object
from router.template import Message

ID_PREFIX = "resp_us"
"""Ids of responses that the gateway answered itself, by its student: the teacher has none of
these."""
_TEXTS = frozenset({"input_text", "output_text", "text"})
_FOREIGN = (
    "tools", "tool_choice", "previous_response_id", "conversation", "prompt", "background",
    "reasoning", "include", "max_tool_calls", "top_logprobs", "service_tier", "context_management",
)  # fmt: skip
_NEUTRAL: Mapping[str, Any] = {"truncation": "disabled", "tool_choice": "auto", "background": False}
_COPIED = ("temperature", "top_p", "user")


def parse_responses(raw: bytes) -> ApiRequest:
    """Validate a request body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    return responses_request(parse_object(raw), raw)


def responses_request(body: Mapping[str, Any], raw: bytes = b"") -> ApiRequest:
    """The same for a body that is an object already.

    Raises:
        GatewayError: as ``parse_responses``.
    """
    model = check_model(body)
    items = _items(body)
    _check_scalars(body)
    stream, _ = check_stream({k: v for k, v in body.items() if k != "stream_options"})
    messages = _instructions(body) + tuple(
        _message(item, f"input[{index}]") for index, item in enumerate(items) if _is_message(item)
    )
    foreign = _foreign(body, items)
    return ApiRequest(
        Api.RESPONSES,
        raw,
        body,
        None if foreign else _chat(body, messages),
        model,
        messages,
        foreign is None,
        stream,
        False,
        foreign=foreign,
    )


def expanded(body: Mapping[str, Any], asked: Any, answered: Any) -> dict[str, Any]:
    """A body whose ``previous_response_id`` is replaced by what that response holds.

    ``asked`` is the ``input`` of the former exchange (itself expanded), ``answered`` its
    ``output``.
    """
    history = [*_as_items(asked), {"role": "assistant", "content": output_text(answered)}]
    whole = {**body, "input": [*history, *_as_items(body.get("input"))]}
    whole.pop("previous_response_id", None)
    return whole


def output_text(output: Any) -> str:
    """The text of a response's output items, joined."""
    parts = [
        part.get("text")
        for item in output or ()
        if isinstance(item, Mapping) and item.get("type") == "message"
        for part in item.get("content") or ()
        if isinstance(part, Mapping) and part.get("type") == "output_text"
    ]
    return "".join(part for part in parts if isinstance(part, str))


def _as_items(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return list(given or ())


def _items(body: Mapping[str, Any]) -> list[Any]:
    given = body.get("input")
    if given is None and (body.get("prompt") or body.get("previous_response_id")):
        return []
    if given is None:
        raise invalid("missing_required_parameter", "input", "is required; add it to the body")
    if not isinstance(given, str | list):
        raise invalid("invalid_type", "input", "must be a string or a list of items")
    if given == []:
        raise invalid("invalid_value", "input", "must hold at least one item")
    items = _as_items(given)
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise invalid("invalid_type", f"input[{index}]", "must be an object")
    return items


def _is_message(item: Mapping[str, Any]) -> bool:
    return bool(item.get("type", "message") == "message")


def _message(item: Mapping[str, Any], where: str) -> Message:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid("invalid_value", f"{where}.role", f"is none of {', '.join(sorted(ROLES))}")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise invalid("invalid_type", f"{where}.content", "must be a string or a list of parts")
    if not all(isinstance(part.get("type"), str) for part in content):
        raise invalid("invalid_type", f"{where}.content", "has a part whose 'type' is no string")
    texts = [part.get("text") for part in content if part.get("type") in _TEXTS]
    if not all(isinstance(text, str) for text in texts):
        raise invalid("invalid_type", f"{where}.content", "has a text part without a text")
    return Message(role, "\n".join(text for text in texts if isinstance(text, str)))


def _instructions(body: Mapping[str, Any]) -> tuple[Message, ...]:
    text = body.get("instructions")
    return (Message("system", text),) if isinstance(text, str) and text else ()


def _check_scalars(body: Mapping[str, Any]) -> None:
    check_number(body.get("temperature"), "temperature", 0.0, 2.0)
    check_number(body.get("top_p"), "top_p", 0.0, 1.0)
    check_integer(body.get("max_output_tokens"), "max_output_tokens", 1, INT64 - 1)
    check_integer(body.get("top_logprobs"), "top_logprobs", 0, 20)
    check_kinds(body, ("store", "background", "parallel_tool_calls"), bool, "a boolean")
    check_kinds(body, ("metadata", "text", "reasoning", "stream_options"), dict, "an object")
    check_kinds(body, ("instructions", "previous_response_id", "user"), str, "a string")
    check_kinds(body, ("include",), list, "a list")
    check_tools(body.get("tools"))
    wanted = (body.get("text") or {}).get("format")
    if wanted is not None and (
        not isinstance(wanted, dict) or not isinstance(wanted.get("type"), str)
    ):
        raise invalid("invalid_type", "text.format", "must be an object with a 'type'")


def _foreign(body: Mapping[str, Any], items: list[Any]) -> str | None:
    """The first feature that a chat completion has no form for."""
    for name in _FOREIGN:
        if body.get(name) and body[name] != _NEUTRAL.get(name):
            return name
    if body.get("truncation") not in (None, "disabled"):
        return "truncation"
    for item in items:
        if not _is_message(item):
            return str(item.get("type"))
        content = item.get("content")
        if isinstance(content, list) and any(part.get("type") not in _TEXTS for part in content):
            return "content that is not text"
    text = body.get("text") or {}
    return "text.verbosity" if text.get("verbosity") not in (None, "medium") else None


def _chat(body: Mapping[str, Any], messages: tuple[Message, ...]) -> dict[str, Any]:
    chat: dict[str, Any] = {
        "model": body["model"],
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        **{name: body[name] for name in _COPIED if body.get(name) is not None},
    }
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    wanted = (body.get("text") or {}).get("format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        schema = {k: v for k, v in wanted.items() if k != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted["type"] != "text":
        chat["response_format"] = wanted
    return chat
