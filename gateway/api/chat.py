"""``POST /v1/chat/completions``: strict about types, lenient about everything else.

Unknown fields pass through untouched. What is wrong gets OpenAI's error object and a sentence
that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.api.fields import (
    INT64,
    IntegerRange,
    Range,
    check_integer,
    check_kind,
    check_model,
    check_number,
    check_stop,
    check_stream,
    check_tools,
    invalid,
    required,
)
from gateway.api.request import Api, ApiRequest, parse_object
from router.template import Message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
RANGES: Mapping[str, Range] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
INTEGERS: Mapping[str, IntegerRange] = {
    "n": (1, 128),
    "max_tokens": (1, INT64 - 1),
    "max_completion_tokens": (1, INT64 - 1),
    "top_logprobs": (0, 20),
    "seed": (-INT64, INT64 - 1),
}
_KINDS: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("logprobs", "store", "parallel_tool_calls"), (bool, "a boolean")),
    **dict.fromkeys(("response_format", "logit_bias", "metadata"), (dict, "an object")),
    "user": (str, "a string"),
}
_CHECKS: Mapping[str, Callable[[Any, str], None]] = {
    **{name: partial(check_number, low=low, high=high) for name, (low, high) in RANGES.items()},
    **{name: partial(check_integer, low=low, high=high) for name, (low, high) in INTEGERS.items()},
    **{name: partial(check_kind, kind=kind, article=a) for name, (kind, a) in _KINDS.items()},
    "stop": check_stop,
}
"""By field, since a body has few of them."""


def parse_chat(raw: bytes) -> ApiRequest:
    """Validate a request body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    return chat_request(parse_object(raw), raw)


def chat_request(body: Mapping[str, Any], raw: bytes = b"") -> ApiRequest:
    """The same for a body that is an object already.

    Raises:
        GatewayError: as ``parse_chat``.
    """
    model = check_model(body)
    messages = _messages(body)
    _check_scalars(body)
    _check_tool_choice(body)
    _check_format(body.get("response_format"))
    stream, include_usage = check_stream(body)
    return ApiRequest(
        Api.CHAT,
        raw,
        body,
        body,
        model,
        messages,
        all(_is_text(m.get("content")) for m in body["messages"]),
        stream,
        include_usage,
        int(body.get("top_logprobs") or 0) if body.get("logprobs") is True else None,
    )


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    raw = required(body, "messages", list, "a list of messages")
    if not raw:
        raise invalid("invalid_value", "messages", "must hold at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(raw))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise invalid("invalid_type", where, "must be an object with 'role' and 'content'")
    role = item.get("role")
    if not isinstance(role, str):
        raise invalid("invalid_type", f"{where}.role", "must be a string")
    if role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise invalid("invalid_value", f"{where}.role", f"is none of {known}")
    content = item.get("content")
    if content is None and role != "assistant":
        raise invalid("missing_required_parameter", f"{where}.content", "is required")
    if content is not None and not isinstance(content, str):
        _check_parts(content, f"{where}.content")
    return Message(role, _text(content))


def _check_parts(content: Any, where: str) -> None:
    if not isinstance(content, list) or not content:
        raise invalid("invalid_type", where, "must be a string or a non-empty list of parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise invalid("invalid_type", f"{where}[{index}]", "must be an object with a 'type'")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise invalid("invalid_type", f"{where}[{index}].text", "must be a string")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part["type"] == "text")
    return content if isinstance(content, str) else ""


def _is_text(content: Any) -> bool:
    return not isinstance(content, list) or all(part["type"] == "text" for part in content)


def _check_scalars(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        check = _CHECKS.get(name)
        if check is not None:
            check(value, name)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise invalid(
            "invalid_value", "max_tokens", "and 'max_completion_tokens' exclude each other"
        )
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        raise invalid("invalid_value", "top_logprobs", "needs 'logprobs': true")


def _check_tool_choice(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    check_tools(tools)
    choice = body.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str) and choice not in {"auto", "none", "required"}:
        raise invalid("invalid_value", "tool_choice", "must be auto, none, required or an object")
    if not isinstance(choice, str | dict):
        raise invalid("invalid_type", "tool_choice", "must be a string or an object")
    if not tools and choice != "none":
        raise invalid("invalid_value", "tool_choice", "is only allowed with 'tools'")
    if isinstance(choice, dict):
        _check_named_tool(choice, tools or [])


def _check_named_tool(choice: Mapping[str, Any], tools: list[Any]) -> None:
    if choice.get("type") != "function":
        if "type" not in choice:
            raise invalid("invalid_value", "tool_choice", "needs a 'type'")
        return
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    known = [t["function"].get("name") for t in tools if isinstance(t.get("function"), dict)]
    if name not in known:
        raise invalid("invalid_value", "tool_choice", f"names tool {name!r}, which 'tools' lacks")


def _check_format(value: Any) -> None:
    if value is None:
        return
    kind = value.get("type")
    if kind not in {"text", "json_object", "json_schema"}:
        raise invalid(
            "invalid_value", "response_format.type", "must be text, json_object or json_schema"
        )
    if kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise invalid(
                "missing_required_parameter", "response_format.json_schema.schema", "is required"
            )
