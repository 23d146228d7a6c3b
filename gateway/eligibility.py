"""Is this request one that the student could answer at all?

Whatever lies outside the student's features or the certificate's decode profile goes to the
teacher: the certificate says nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.schema import ChatRequest
from gateway.settings import Student, Task
from router.judge import DecodeProfile

BYTES_PER_TOKEN = 3
"""A cautious lower bound for English; a prompt that is longer than the window by this measure is
not worth the student's prefill. vLLM's own check decides the rest."""

_UNSUPPORTED = ("tools", "functions", "function_call", "audio", "prediction", "logit_bias", "stop")
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "tool_choice": "none",
}


def unsupported(request: ChatRequest, task: Task, profile: DecodeProfile) -> str | None:
    """The first feature that rules the student out, or None."""
    body = request.body
    if not request.text_only:
        return "content that is not text"
    for name in _UNSUPPORTED:
        if body.get(name):
            return name
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] != neutral:
            return name
    if (body.get("response_format") or {}).get("type", "text") != "text":
        return "response_format"
    if body.get("modalities") not in (None, ["text"]):
        return "modalities"
    if any(m.role in {"tool", "function"} for m in request.messages):
        return "tool messages"
    if any(m.get("tool_calls") for m in body["messages"]):
        return "tool calls"
    if task.student is None or _too_long(request, task.student):
        return "prompt longer than the student's context"
    return None if task.pin_sampling else _outside(request, profile)


def _too_long(request: ChatRequest, student: Student) -> bool:
    size = sum(len(m.content.encode()) for m in request.messages)
    return size > student.context_tokens * BYTES_PER_TOKEN


def _outside(request: ChatRequest, profile: DecodeProfile) -> str | None:
    """Sampling other than the certificate's; absent means OpenAI's default of 1."""
    body = request.body
    if (1.0 if body.get("temperature") is None else body["temperature"]) != profile.temperature:
        return "temperature"
    if (1.0 if body.get("top_p") is None else body["top_p"]) != profile.top_p:
        return "top_p"
    bound = request.max_tokens
    return "max_tokens" if bound is not None and bound < profile.max_tokens_min else None
