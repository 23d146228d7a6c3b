"""Whole answers of each endpoint: what counts as one, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.api.chat import chat_request
from gateway.api.completions import completions_request
from gateway.api.request import Api, ApiRequest
from gateway.api.responses import output_text, responses_request
from gateway.streams.chat import Assembler, ChatStream, Relay
from gateway.streams.completions import CompletionStream
from gateway.streams.responses import ResponsesStream
from gateway.streams.shape import AnswerStream
from router.comparator import calls_text


def request_of(api: Api, body: Mapping[str, Any]) -> ApiRequest:
    """A stored body, read again.

    Raises:
        GatewayError: it is not a request of that endpoint.
    """
    if api is Api.CHAT:
        return chat_request(body)
    if api is Api.RESPONSES:
        return responses_request(body)
    return completions_request(body)


def teacher_stream(request: ApiRequest, head: Mapping[str, Any]) -> AnswerStream:
    """The stream of a teacher's answer."""
    if request.api is Api.RESPONSES:
        return ResponsesStream(request.model)
    if request.api is Api.COMPLETIONS:
        return CompletionStream(head, request.include_usage)
    relay = Relay(head, request.logprobs, request.include_usage, strict=False)
    return ChatStream(relay, Assembler())


def whole_answer(api: Api, raw: bytes) -> dict[str, Any] | None:
    """A JSON body, if it is a whole answer of the endpoint."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or body.get("error") is not None:
        return None
    if api is Api.RESPONSES:
        whole = isinstance(body.get("output"), list) and body.get("status") != "failed"
        return body if whole else None
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    part, kind = ("message", dict) if api is Api.CHAT else ("text", str)
    whole = all(isinstance(c, dict) and isinstance(c.get(part), kind) for c in choices)
    return body if whole else None


def answer_text(answer: Mapping[str, Any]) -> str:
    """What comparators see of an answer: the first choice's tool calls where it has any, its
    text otherwise."""
    if "output" in answer:
        return output_text(answer["output"])
    first = (answer.get("choices") or [{}])[0]
    message = first.get("message") or {}
    if message.get("tool_calls"):
        return calls_text(message["tool_calls"])
    content = message.get("content", first.get("text"))
    return content if isinstance(content, str) else ""


def is_whole(answer: Mapping[str, Any]) -> bool:
    """Whether an answer ended by itself, and is no fragment of one."""
    if "output" in answer:
        return answer.get("status") == "completed"
    choices = answer.get("choices") or []
    return bool(choices) and all(
        c.get("finish_reason") in {"stop", "tool_calls", "function_call"} for c in choices
    )
