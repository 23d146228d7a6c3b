"""The teacher's side of a request: one call, retried before its first byte only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from gateway.chunks import usage_tokens
from gateway.errors import GatewayError
from gateway.events import Events
from gateway.schema import ChatRequest
from gateway.settings import Teacher
from gateway.store.records import Attempt
from gateway.tasks import TeacherRuntime
from gateway.upstream import UpstreamError, UpstreamResponse, monotonic

RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504})
BACKOFF_S = 0.25
LONGEST_WAIT_S = 5.0
_PASSED_ON = ("retry-after", "retry-after-ms")
_FINAL = {"x-should-retry": "false"}
"""The SDKs obey it: our own retries are used up, theirs would multiply them."""


@dataclass(slots=True)
class OpenTeacher:
    """A teacher's answer whose head arrived with status 200."""

    response: UpstreamResponse
    started: float
    first: Mapping[str, Any] | None = None
    events: Events | None = None


class TeacherDown(Exception):
    """No attempt gave an answer; ``error`` is what the client gets unless the student may stand
    in."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


def teacher_body(request: ChatRequest, model: str | None) -> dict[str, Any]:
    """The client's body with the upstream's model name; usage is always asked for in streams,
    because cost is counted. ``model`` None keeps the client's (pass-through)."""
    body = dict(request.body)
    if model is not None:
        body["model"] = model
    if request.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return body


@dataclass(slots=True)
class TeacherCall:
    """The attempts of one request. ``note`` is told of each failed one."""

    runtime: TeacherRuntime
    session: aiohttp.ClientSession
    note: Callable[[Attempt], None]
    rng: random.Random = field(default_factory=random.Random)

    async def open(self, body: dict[str, Any], stream: bool) -> OpenTeacher:
        """Ask until an answer begins.

        Raises:
            TeacherDown: it cannot be reached, or answers 429 or 5xx on every attempt.
            GatewayError: ``teacher_refused`` with the teacher's own 4xx.
        """
        payload = orjson.dumps(body)
        error: GatewayError | None = None
        for number in range(self.settings.retries + 1):
            if not self.runtime.upstream.breaker.allow(monotonic()):
                break
            answer = await self._attempt(payload, stream)
            if isinstance(answer, OpenTeacher):
                return answer
            error = answer
            if number < self.settings.retries:
                await asyncio.sleep(self._pause(number, error))
        raise TeacherDown(error or self._unavailable("its circuit is open after failures"))

    @property
    def settings(self) -> Teacher:
        """The teacher's configuration."""
        return self.runtime.settings

    async def _attempt(self, payload: bytes, stream: bool) -> OpenTeacher | GatewayError:
        started = monotonic()
        upstream, settled = self.runtime.upstream, False
        timeouts = self.runtime.timeouts
        try:
            response = await upstream.post(self.session, "/chat/completions", payload, timeouts)
            try:
                result = await self._judge_head(response, started, stream)
            except BaseException:
                response.close()
                raise
            settled = True
        except UpstreamError as error:
            settled = True
            return self._failed(error.kind, None, started, self._explained(error))
        except asyncio.CancelledError:
            # Given up for a faster student or by the client: it may have been paid for.
            self.note(self.record("abandoned", None, started))
            raise
        finally:
            if not settled:
                upstream.breaker.abandoned()
        return result

    async def _judge_head(
        self, response: UpstreamResponse, started: float, stream: bool
    ) -> OpenTeacher | GatewayError:
        if response.status == 200:
            return await self._begun(response, started, stream)
        raw = await response.read()
        response.close()
        if response.status in RETRYABLE:
            status = 429 if response.status == 429 else 502
            return self._failed(
                f"http_{response.status}", response.status, started,
                self._passed_on(response, raw, status),
            )  # fmt: skip
        self.runtime.upstream.breaker.succeeded()
        self.note(self.record(f"http_{response.status}", response.status, started))
        if 400 <= response.status < 500 and response.status not in {401, 403}:
            raise self._passed_on(response, raw, response.status)
        raise TeacherDown(
            GatewayError(
                "teacher_error",
                f"The teacher answered {response.status}; its key or address may be wrong.",
                headers=_FINAL,
            )
        )

    async def _begun(
        self, response: UpstreamResponse, started: float, stream: bool
    ) -> OpenTeacher | GatewayError:
        if not stream:
            return OpenTeacher(response, started)
        events = Events(response)
        first = await events.next()
        if isinstance(first, Mapping) and first.get("error") is None:
            return OpenTeacher(response, started, first, events)
        response.close()
        return self._failed(
            "in_band_error" if isinstance(first, Mapping) else "empty", 200, started,
            GatewayError(
                "teacher_error", "The teacher's stream began with an error.", headers=_FINAL
            ),
        )  # fmt: skip

    def _failed(
        self, outcome: str, status: int | None, started: float, error: GatewayError
    ) -> GatewayError:
        self.runtime.upstream.breaker.failed(monotonic())
        self.note(self.record(outcome, status, started))
        return error

    def record(
        self,
        outcome: str,
        status: int | None,
        started: float,
        usage: Mapping[str, Any] | None = None,
    ) -> Attempt:
        """The record of one attempt, priced by its usage."""
        prompt = usage_tokens(usage, "prompt_tokens")
        completion = usage_tokens(usage, "completion_tokens")
        return Attempt(
            self.runtime.upstream.name,
            "teacher",
            outcome,
            status,
            prompt,
            completion,
            teacher_cost_usd(self.settings, prompt, completion),
            round((monotonic() - started) * 1000, 3),
        )

    def _pause(self, number: int, error: GatewayError) -> float:
        wait: float = BACKOFF_S * 2**number * self.rng.uniform(0.5, 1.5)
        asked = error.headers.get("retry-after", "")
        if asked.replace(".", "", 1).isdigit():
            wait = max(wait, float(asked))
        return min(wait, LONGEST_WAIT_S)

    def _explained(self, error: UpstreamError) -> GatewayError:
        if error.kind != "malformed":
            return self._unavailable(str(error))
        return GatewayError(
            "teacher_error",
            f"The teacher's stream began with something else: {error}.",
            headers=_FINAL,
        )

    def _unavailable(self, why: str) -> GatewayError:
        return GatewayError(
            "teacher_unavailable",
            f"The teacher is not available: {why}. Try again later.",
            headers=_FINAL,
        )

    def _passed_on(self, response: UpstreamResponse, raw: bytes, status: int) -> GatewayError:
        headers = {k: response.headers[k] for k in _PASSED_ON if k in response.headers}
        if status >= 500 or status == 429:
            headers |= _FINAL
        return GatewayError(
            "teacher_refused" if status < 500 and status != 429 else "teacher_error",
            f"The teacher answered {response.status}.",
            status=status,
            headers=headers,
            upstream=_openai_error(raw),
        )


def teacher_cost_usd(settings: Teacher, prompt_tokens: int, completion_tokens: int) -> float:
    """What the teacher charges for a call."""
    price = settings.price
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6


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
