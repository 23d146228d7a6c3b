"""The student's side of a request: ask vLLM, hold the answer at the gate, let the judge decide."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.api.request import ApiRequest
from gateway.events import End, Event, Events
from gateway.formats import Fits, anything
from gateway.gate import Gate, Signal
from gateway.http1 import Pool
from gateway.store.records import Attempt
from gateway.streams.chat import usage_tokens
from gateway.task_settings import Student
from gateway.teacher import CLOSING_S
from gateway.upstream import (
    MALFORMED,
    Timeouts,
    Upstream,
    UpstreamError,
    UpstreamResponse,
    monotonic,
)
from router.confidence import TOP_LOGPROBS, Prefix
from router.judge import DecodeProfile


class StudentFault(Exception):
    """The student gave no answer that may be served. ``timeout`` tells slow from wrong."""

    def __init__(self, outcome: str, *, timeout: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.timeout = timeout


class NotConfident(Exception):
    """The judge refused the answer."""


def student_body(request: ApiRequest, settings: Student, profile: DecodeProfile) -> dict[str, Any]:
    """What vLLM is asked: the client's messages under the certificate's decode profile, streamed,
    with log-probabilities."""
    body: dict[str, Any] = {
        "model": settings.served_model,
        "messages": [
            {"role": "system" if m.role == "developer" else m.role, "content": m.content}
            for m in request.messages
        ],
        "temperature": profile.temperature,
        "top_p": profile.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": max(TOP_LOGPROBS, request.logprobs or 0),
    }
    if request.max_tokens is not None:
        body["max_tokens"] = int(request.max_tokens)
    if request.response_format is not None:
        body["response_format"] = request.response_format
    return body


@dataclass(slots=True)
class StudentAnswer:
    """One call in progress. ``held`` are the events that wait for release."""

    response: UpstreamResponse
    events: Events
    gate: Gate
    upstream: Upstream
    started: float
    held: deque[dict[str, Any]] = field(default_factory=deque)

    @property
    def waiting(self) -> bool:
        """Whether more of the answer is here already."""
        return bool(self.held) or self.events.waiting

    async def until_released(self, judge: Callable[[Prefix], Awaitable[bool]]) -> None:
        """Read until the answer may go out.

        Raises:
            NotConfident: ``judge`` said no to the gated prefix.
            StudentFault: the answer cannot be served.
        """
        while not self.gate.released:
            await self._step(judge)

    async def until_ended(self) -> None:
        """Read the whole answer, unjudged.

        Raises:
            StudentFault: there is none, or it was cut or not complete.
        """
        while not self.gate.ended:
            await self._step(None)

    async def next(self) -> dict[str, Any] | None:
        """The next chunk after release; None after the last.

        Raises:
            StudentFault: the stream broke after commitment.
        """
        while not self.held and not self.gate.ended:
            await self._step(None)
        return self.held.popleft() if self.held else None

    async def _step(self, judge: Callable[[Prefix], Awaitable[bool]] | None) -> None:
        try:
            event = await self._event()
        except UpstreamError as error:
            raise StudentFault(error.kind, timeout=error.kind == "timeout") from error
        if isinstance(event, End):
            signals = self.gate.end()
        else:
            signals = self._fed(event)
            self.held.append(dict(event))
        for signal in signals:
            if signal is Signal.FAULT:
                raise StudentFault(self.gate.fault or "fault")
            if signal is Signal.JUDGE and judge is not None:
                if not await judge(self.gate.prefix):
                    raise NotConfident
                self.gate.accept()

    def _fed(self, event: Mapping[str, Any]) -> list[Signal]:
        try:
            return self.gate.feed(event)
        except MALFORMED as error:
            raise StudentFault("malformed") from error

    async def _event(self) -> Event:
        if self.gate.answer.finished:
            return await self.events.next_within(CLOSING_S)
        return await self.events.next()

    def attempt(self, outcome: str, now: float) -> Attempt:
        """The record of this call."""
        usage = self.gate.answer.usage or {}
        return Attempt(
            self.upstream.name,
            "student",
            outcome,
            self.response.status,
            usage_tokens(usage, "prompt_tokens"),
            usage_tokens(usage, "completion_tokens") or len(self.gate.tokens),
            0.0,
            round((now - self.started) * 1000, 3),
        )


async def ask_student(
    pool: Pool,
    upstream: Upstream,
    body: dict[str, Any],
    *,
    gate_tokens: int,
    hold: int | Literal["all"],
    timeout_s: float,
    fits: Fits = anything,
    trace: str | None = None,
) -> StudentAnswer:
    """Open the call.

    Raises:
        StudentFault: vLLM cannot be reached or refuses; its 4xx is the teacher's business.
    """
    started = monotonic()
    timeouts = Timeouts(min(5.0, timeout_s), timeout_s, timeout_s)
    try:
        response = await upstream.post(
            pool, "/chat/completions", orjson.dumps(body), timeouts, trace=trace
        )
    except UpstreamError as error:
        raise StudentFault(error.kind, timeout=error.kind == "timeout") from error
    if response.status != 200:
        response.close()
        raise StudentFault(f"http_{response.status}")
    return StudentAnswer(
        response, Events(response), Gate(gate_tokens, hold, fits), upstream, started
    )
