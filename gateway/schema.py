"""Parse a chat completion request: strict about types, lenient about everything else.

Unknown fields pass through untouched. What is wrong gets OpenAI's error object and a sentence
that says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import Code, GatewayError
from router.template import Message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
INT64 = 2**63
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INTEGERS = {
    "n": (1, 128),
    "max_tokens": (1, INT64 - 1),
    "max_completion_tokens": (1, INT64 - 1),
    "top_logprobs": (0, 20),
    "seed": (-INT64, INT64 - 1),
}
_FLAGS = ("stream", "logprobs", "store", "parallel_tool_calls")
_OBJECTS = ("stream_options", "response_format", "logit_bias", "metadata")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A validated request; ``body`` is what the client sent, unknown fields included."""

    body: Mapping[str, Any]
    model: str
    messages: tuple[Message, ...]
    text_only: bool
    stream: bool
    include_usage: bool
    logprobs: int | None
    """Alternatives per token that the client asked for; None: no log-probabilities."""

    @property
    def max_tokens(self) -> int | None:
        """The client's bound on the answer, under either name."""
        value: int | None = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return value


def parse_chat(raw: bytes) -> ChatRequest:
    """Validate a request body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    body = _object(raw)
    model = _required(body, "model", str, "a string")
    if not model or len(model) > 256:
        raise _invalid("invalid_value", "model", "must be 1 to 256 characters long")
    messages = _messages(body)
    _check_scalars(body)
    _check_tools(body)
    _check_format(body.get("response_format"))
    stream = body.get("stream") is True
    options = body.get("stream_options") or {}
    if options and not stream:
        raise _invalid("invalid_value", "stream_options", "is only allowed with 'stream': true")
    if options.get("include_usage") not in (None, True, False):
        raise _invalid("invalid_type", "stream_options.include_usage", "must be a boolean")
    return ChatRequest(
        body,
        model,
        messages,
        all(_is_text(m.get("content")) for m in body["messages"]),
        stream,
        options.get("include_usage") is True,
        int(body.get("top_logprobs") or 0) if body.get("logprobs") is True else None,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise GatewayError(
            "invalid_json", f"The body is not valid JSON in UTF-8 ({error}); send a JSON object."
        ) from None
    if not isinstance(body, dict):
        raise GatewayError("invalid_json", "The body must be a JSON object; send {...}.")
    return body


def _required(body: Mapping[str, Any], name: str, kind: type, article: str) -> Any:
    if body.get(name) is None:
        raise _invalid("missing_required_parameter", name, "is required; add it to the body")
    if not isinstance(body[name], kind):
        raise _invalid("invalid_type", name, f"must be {article}")
    return body[name]


def _invalid(code: Code, param: str, what: str) -> GatewayError:
    return GatewayError(code, f"'{param}' {what}.", param=param)


def _messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    raw = _required(body, "messages", list, "a list of messages")
    if not raw:
        raise _invalid("invalid_value", "messages", "must hold at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(raw))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise _invalid("invalid_type", where, "must be an object with 'role' and 'content'")
    role = item.get("role")
    if not isinstance(role, str):
        raise _invalid("invalid_type", f"{where}.role", "must be a string")
    if role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise _invalid("invalid_value", f"{where}.role", f"is none of {known}")
    content = item.get("content")
    if content is None and role != "assistant":
        raise _invalid("missing_required_parameter", f"{where}.content", "is required")
    if content is not None and not isinstance(content, str):
        _check_parts(content, f"{where}.content")
    return Message(role, _text(content))


def _check_parts(content: Any, where: str) -> None:
    if not isinstance(content, list) or not content:
        raise _invalid("invalid_type", where, "must be a string or a non-empty list of parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _invalid("invalid_type", f"{where}[{index}]", "must be an object with a 'type'")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise _invalid("invalid_type", f"{where}[{index}].text", "must be a string")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part["type"] == "text")
    return content if isinstance(content, str) else ""


def _is_text(content: Any) -> bool:
    return not isinstance(content, list) or all(part["type"] == "text" for part in content)


def _check_scalars(body: Mapping[str, Any]) -> None:
    for name, (low, high) in _RANGES.items():
        _check_number(body.get(name), name, low, high)
    for name, bounds in _INTEGERS.items():
        _check_integer(body.get(name), name, *bounds)
    for name in _FLAGS:
        if body.get(name) is not None and not isinstance(body[name], bool):
            raise _invalid("invalid_type", name, "must be a boolean")
    for name in _OBJECTS:
        if body.get(name) is not None and not isinstance(body[name], dict):
            raise _invalid("invalid_type", name, "must be an object")
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise _invalid(
            "invalid_value", "max_tokens", "and 'max_completion_tokens' exclude each other"
        )
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        raise _invalid("invalid_value", "top_logprobs", "needs 'logprobs': true")
    if body.get("user") is not None and not isinstance(body["user"], str):
        raise _invalid("invalid_type", "user", "must be a string")
    _check_stop(body.get("stop"))


def _check_number(value: Any, name: str, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid("invalid_type", name, "must be a number")
    if not math.isfinite(value) or not low <= value <= high:
        raise _invalid("invalid_value", name, f"must be between {low:g} and {high:g}")


def _check_integer(value: Any, name: str, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid("invalid_type", name, "must be an integer")
    if isinstance(value, float) and not value.is_integer():
        raise _invalid("invalid_value", name, "must be an integer")
    if not low <= value <= high:
        raise _invalid("invalid_value", name, f"must be between {low} and {high}")


def _check_stop(stop: Any) -> None:
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        raise _invalid("invalid_type", "stop", "must be a string or a list of strings")


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and (
        not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)
    ):
        raise _invalid("invalid_type", "tools", "must be a list of objects")
    choice = body.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str) and choice not in {"auto", "none", "required"}:
        raise _invalid("invalid_value", "tool_choice", "must be auto, none, required or an object")
    if not isinstance(choice, str | dict):
        raise _invalid("invalid_type", "tool_choice", "must be a string or an object")
    if not tools and choice != "none":
        raise _invalid("invalid_value", "tool_choice", "is only allowed with 'tools'")
    if isinstance(choice, dict):
        _check_named_tool(choice, tools or [])


def _check_named_tool(choice: Mapping[str, Any], tools: list[Any]) -> None:
    if choice.get("type") != "function":
        if "type" not in choice:
            raise _invalid("invalid_value", "tool_choice", "needs a 'type'")
        return
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    known = [t["function"].get("name") for t in tools if isinstance(t.get("function"), dict)]
    if name not in known:
        raise _invalid("invalid_value", "tool_choice", f"names tool {name!r}, which 'tools' lacks")


def _check_format(value: Any) -> None:
    if value is None:
        return
    kind = value.get("type")
    if kind not in {"text", "json_object", "json_schema"}:
        raise _invalid(
            "invalid_value", "response_format.type", "must be text, json_object or json_schema"
        )
    if kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise _invalid(
                "missing_required_parameter", "response_format.json_schema.schema", "is required"
            )
