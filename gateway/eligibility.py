"""Is this request one that the student could answer at all?

Whatever lies outside the student's features or the certificate's decode profile goes to the
teacher: the certificate says nothing about it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.api.request import Api, ApiRequest
from gateway.formats import checkable
from gateway.task_settings import Student, Task
from router.judge import DecodeProfile

BYTES_PER_TOKEN = 3
"""A cautious lower bound for English; a prompt that is longer than the window by this measure is
not worth the student's prefill. vLLM's own check decides the rest."""

_UNSUPPORTED = ("tools", "functions", "function_call", "audio", "prediction", "logit_bias", "stop")
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
_EVERYDAY = frozenset({
    "model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "user", "safety_identifier", "seed", "store", "metadata",
})  # fmt: skip
"""What most bodies hold, and nothing below looks at but the sampling."""


def unsupported(request: ApiRequest, task: Task, profile: DecodeProfile) -> str | None:
    """The first feature that rules the student out, or None."""
    body = request.chat
    if body is None:
        return request.foreign
    if not request.text_only:
        return "content that is not text"
    declared = task.student.features if task.student else ()
    feature = None if body.keys() <= _EVERYDAY else _named(body, declared)
    if feature := feature or _in_messages(request, body):
        return feature
    if request.api is Api.RESPONSES and "responses" not in declared:
        return "responses"
    if task.student is None or _too_long(request, task.student):
        return "prompt longer than the student's context"
    return None if task.pin_sampling else _outside(request, profile)


def _named(body: Mapping[str, Any], declared: Collection[str]) -> str | None:
    """By the fields of the body."""
    for name in _UNSUPPORTED:
        if body.get(name):
            return name
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] != neutral:
            return name
    if body.get("tool_choice") not in (None, "none"):
        return "tool_choice"
    if body.get("web_search_options") is not None:  # an empty object asks for a search too
        return "web_search_options"
    wanted = (body.get("response_format") or {}).get("type", "text")
    if wanted != "text" and not (wanted in declared and checkable(body["response_format"])):
        return "response_format"
    return "modalities" if body.get("modalities") not in (None, ["text"]) else None


def _in_messages(request: ApiRequest, body: Mapping[str, Any]) -> str | None:
    """By what the messages are: traces of tools."""
    roles = {m.role for m in request.messages}
    if "tool" in roles:
        return "tool messages"
    if "function" in roles:
        return "function messages"
    return "tool calls" if any(m.get("tool_calls") for m in body["messages"]) else None


def _too_long(request: ApiRequest, student: Student) -> bool:
    size = sum(len(m.content.encode()) for m in request.messages)
    return size > student.context_tokens * BYTES_PER_TOKEN


def _outside(request: ApiRequest, profile: DecodeProfile) -> str | None:
    """Sampling other than the certificate's; absent means OpenAI's default of 1."""
    body = request.chat or {}
    if (1.0 if body.get("temperature") is None else body["temperature"]) != profile.temperature:
        return "temperature"
    if (1.0 if body.get("top_p") is None else body["top_p"]) != profile.top_p:
        return "top_p"
    bound = request.max_tokens
    return "max_tokens" if bound is not None and bound < profile.max_tokens_min else None
