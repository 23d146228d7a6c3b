"""One error tree. Each error is OpenAI's object with a stable type and code, a status, and a
sentence that says what to do. The table in the HTTP reference is checked against ``CODES``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Code = Literal[
    "invalid_json",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "request_too_large",
    "request_timeout",
    "invalid_api_key",
    "invalid_admin_key",
    "override_not_allowed",
    "task_not_allowed",
    "model_not_found",
    "task_not_found",
    "gate_not_possible",
    "not_promotable",
    "store_unavailable",
    "capture_unavailable",
    "exchange_not_found",
    "unknown_path",
    "method_not_allowed",
    "teacher_unavailable",
    "teacher_error",
    "teacher_refused",
    "student_unavailable",
    "stream_broken",
    "deadline_exceeded",
    "previous_response_not_found",
    "client_key_not_allowed",
    "too_many_requests",
    "rate_limit_exceeded",
    "insufficient_quota",
    "overloaded",
    "shutting_down",
    "internal_error",
]


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means on the wire."""

    status: int
    type: str
    meaning: str


CODES: Mapping[Code, CodeInfo] = {
    "invalid_json": CodeInfo(400, "invalid_request_error", "The body is not a JSON object in UTF-8."),
    "invalid_type": CodeInfo(400, "invalid_request_error", "A field has the wrong JSON type."),
    "invalid_value": CodeInfo(400, "invalid_request_error", "A field is out of range or contradicts another."),
    "missing_required_parameter": CodeInfo(400, "invalid_request_error", "A required field is absent."),
    "request_too_large": CodeInfo(413, "invalid_request_error", "The body exceeds `limits.body_bytes`."),
    "request_timeout": CodeInfo(408, "invalid_request_error", "The head did not arrive within `limits.head_timeout_s`, or the body within `limits.receive_timeout_s`."),
    "invalid_api_key": CodeInfo(401, "authentication_error", "No key was sent, or none that is configured."),
    "invalid_admin_key": CodeInfo(401, "authentication_error", "`/admin` needs the admin key."),
    "override_not_allowed": CodeInfo(403, "permission_error", "The key may not choose who answers."),
    "task_not_allowed": CodeInfo(403, "permission_error", "The key may not use this task."),
    "model_not_found": CodeInfo(404, "invalid_request_error", "No task has or claims this model name."),
    "task_not_found": CodeInfo(404, "invalid_request_error", "`/admin`: there is no such task."),
    "gate_not_possible": CodeInfo(409, "invalid_request_error", "`/admin`: the task has no certified student whose gate could be opened or closed."),
    "not_promotable": CodeInfo(409, "invalid_request_error", "`/admin`: the version has no certificate or is not this task's, or there is none to go back to."),
    "store_unavailable": CodeInfo(503, "server_error", "`/admin` and `/v1/feedback`: the store cannot be read or written now; nothing was changed."),
    "exchange_not_found": CodeInfo(404, "invalid_request_error", "No such exchange is kept for this key (`/v1/feedback`), or at all (`/admin`)."),
    "capture_unavailable": CodeInfo(503, "server_error", "The task says `capture: strict`, and the exchange cannot be stored now; nothing was served."),
    "unknown_path": CodeInfo(404, "invalid_request_error", "The gateway has no such path, and `passthrough_paths` does not list it."),
    "method_not_allowed": CodeInfo(405, "invalid_request_error", "The path exists, with another method."),
    "teacher_unavailable": CodeInfo(503, "upstream_error", "The teacher cannot be reached, or does not answer in time."),
    "teacher_error": CodeInfo(502, "upstream_error", "The teacher answered with an error or with something that is no completion."),
    "teacher_refused": CodeInfo(400, "upstream_error", "The teacher refused the request; its own status and message are passed on."),
    "student_unavailable": CodeInfo(502, "upstream_error", "The student did not answer, and it was asked for by name or `on_student_down` is `error` (503 then)."),
    "stream_broken": CodeInfo(502, "upstream_error", "In-band only: the stream ended before the answer was complete."),
    "deadline_exceeded": CodeInfo(504, "upstream_error", "No answer came within `x-understudy-deadline-ms`."),
    "previous_response_not_found": CodeInfo(400, "invalid_request_error", "`previous_response_id` is one of the gateway's own ids, and no such response is kept for this key."),
    "client_key_not_allowed": CodeInfo(403, "permission_error", "`x-understudy-teacher-key` was sent and the task does not accept it."),
    "too_many_requests": CodeInfo(429, "rate_limit_error", "The key has as many requests in flight as it may have; `Retry-After` says when to come back."),
    "rate_limit_exceeded": CodeInfo(429, "rate_limit_error", "This key used `requests_per_minute` or `tokens_per_minute`; `Retry-After` says when the minute ends."),
    "insufficient_quota": CodeInfo(429, "rate_limit_error", "This key spent its `usd_per_day`; `Retry-After` says when the day ends."),
    "overloaded": CodeInfo(503, "server_error", "The gateway has as much in flight as it may have, or falls behind; what is in flight goes on."),
    "shutting_down": CodeInfo(503, "server_error", "The gateway is draining; ask another replica."),
    "internal_error": CodeInfo(500, "server_error", "A fault of the gateway itself; the request id finds it in the log."),
}  # fmt: skip


class GatewayError(Exception):
    """An error that a client gets to see."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        upstream: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.param = param
        self.status = status or CODES[code].status
        self.headers = dict(headers or {})
        self.upstream = upstream

    def body(self) -> dict[str, Any]:
        """OpenAI's error object; an upstream's own object is passed on as it came."""
        if self.upstream is not None:
            return {"error": dict(self.upstream)}
        return {
            "error": {
                "message": self.message,
                "type": CODES[self.code].type,
                "param": self.param,
                "code": self.code,
            }
        }


class ConfigError(Exception):
    """The configuration cannot be used; one line per mistake, each with file, key and reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(Exception):
    """The store cannot be opened or written."""
