"""What a client is told when a teacher gave no answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.tasks import TeacherUpstream
from gateway.upstream import UpstreamError, UpstreamResponse, monotonic

FINAL = {"x-should-retry": "false"}
"""The SDKs obey it: our own retries are used up, theirs would multiply them."""
_PASSED_ON = ("retry-after", "retry-after-ms")


def resting(upstreams: Sequence[TeacherUpstream]) -> GatewayError:
    """Nobody may be asked now: say for how long."""
    now = monotonic()
    seconds = max(1, math.ceil(min(u.upstream.rests_s(now) for u in upstreams)))
    headers = {"retry-after": str(seconds)}
    if all(u.upstream.cooling(now) for u in upstreams):
        message = "Every teacher upstream asked for a pause. Try again later."
        return GatewayError("teacher_error", message, status=429, headers=headers)
    return GatewayError(
        "teacher_unavailable",
        "The teacher is not available: its circuit is open after failures. Try again later.",
        headers=headers,
    )


def broken(error: UpstreamError) -> GatewayError:
    """An answer that began and is not whole."""
    return GatewayError(
        "teacher_error",
        f"The teacher gave no whole answer ({error.kind}: {error}). Try again.",
        headers=FINAL,
    )


def unavailable(why: str) -> GatewayError:
    """An upstream that cannot be reached or does not answer in time."""
    return GatewayError(
        "teacher_unavailable",
        f"The teacher is not available: {why}. Try again later.",
        headers=FINAL,
    )


def passed_on(response: UpstreamResponse, raw: bytes, status: int) -> GatewayError:
    """The upstream's own error, as the client gets it."""
    headers = {k: response.headers[k] for k in _PASSED_ON if k in response.headers}
    if status >= 500 or status == 429:
        headers |= FINAL
    return GatewayError(
        "teacher_refused" if status < 500 and status != 429 else "teacher_error",
        f"The teacher answered {response.status}.",
        status=status,
        headers=headers,
        upstream=_openai_error(raw),
    )


def filtered(error: GatewayError) -> bool:
    """Whether an upstream's content filter refused the prompt: no other model is to be asked."""
    code = str((error.upstream or {}).get("code") or "")
    return "content_filter" in code or "content_policy" in code


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that an upstream asks to be left alone; None where it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if value.replace(".", "", 1).isdigit() and value.isascii():
            return float(value) / unit
    return None


def _openai_error(raw: bytes) -> Mapping[str, Any] | None:
    """An upstream's error object, if it is OpenAI's; codes become strings."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    code = error.get("code")
    return {
        "message": error["message"],
        "type": str(error.get("type") or "upstream_error"),
        "param": error.get("param"),
        "code": None if code is None else str(code),
    }
