"""The teacher's side of a request: its upstreams in order, retried while nothing was served.

An answer that nobody has seen a byte of can be asked for again: a refused connection, a 429 or
5xx, and, where the answer is whole before it goes out (JSON, or a held stream), a cut, a stall, an
in-band error or malformed bytes too. Retries at one upstream are bounded by number and by a
budget; another upstream costs neither.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import refusals
from gateway.clock import within
from gateway.errors import GatewayError
from gateway.events import End, Events
from gateway.http1 import Pool
from gateway.question import Question
from gateway.slots import Priority
from gateway.store.records import Attempt
from gateway.streams.chat import spent_tokens
from gateway.tasks import TeacherRuntime, TeacherUpstream
from gateway.upstream import MALFORMED, UpstreamError, UpstreamResponse, monotonic

RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504})
WRONG_KEY = frozenset({401, 403})
BACKOFF_S = 0.25
LONGEST_WAIT_S = 5.0
CLOSING_S = 0.5
"""Grace for usage and [DONE] after the finish reason: an upstream that forgets them is done."""


@dataclass(slots=True)
class OpenTeacher:
    """A teacher's answer: whole (``body``), held whole (``held``), or begun (``events``)."""

    upstream: TeacherUpstream
    started: float
    usage: Any = None
    body: dict[str, Any] | None = None
    held: list[Mapping[str, Any]] | None = None
    response: UpstreamResponse | None = None
    first: Mapping[str, Any] | None = None
    events: Events | None = None
    leave: Callable[[], None] | None = None

    def close(self) -> None:
        """Free the connection and the slot."""
        if self.response is not None:
            self.response.close()
        if self.leave is not None:
            self.leave()
            self.leave = None


class TeacherDown(Exception):
    """No attempt gave an answer; ``error`` is what the client gets unless the student may stand
    in."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class _Failed(Exception):
    """One attempt gave no answer. After a ``final`` one the same upstream is not asked again, after
    a ``refusal`` of the request no other of the same model either; the breaker counts what is the
    upstream's ``fault``."""

    def __init__(
        self,
        outcome: str,
        status: int | None,
        error: GatewayError,
        *,
        final: bool = False,
        fault: bool = True,
        refusal: bool = False,
    ) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.status = status
        self.error = error
        self.final = final
        self.fault = fault
        self.refusal = refusal


@dataclass(slots=True)
class TeacherCall:
    """The attempts of one request. ``note`` is told of each one that ended; ``deadline`` is
    monotonic seconds."""

    runtime: TeacherRuntime
    pool: Pool
    note: Callable[[Attempt], None]
    rng: random.Random = field(default_factory=random.Random)
    priority: Priority = Priority.LIVE
    client_key: str | None = None
    trace: str | None = None
    """``traceparent`` of the calls."""

    async def open(self, question: Question, deadline: float | None = None) -> OpenTeacher:
        """Ask until an answer begins, or where it has to be whole, until it is.

        Raises:
            TeacherDown: no upstream gave one within attempts, budget and time.
            GatewayError: ``teacher_refused`` with the teacher's own 4xx.
        """
        try:
            with within(None if deadline is None else deadline - monotonic()):
                return await self._open(question)
        except TimeoutError:
            raise TeacherDown(
                GatewayError("deadline_exceeded", "No answer within the request's deadline.")
            ) from None

    async def _open(self, question: Question) -> OpenTeacher:
        """Within a slot of the quota, which an answer that is still being read keeps."""
        leave = await self._slot()
        self.runtime.budget.asked()
        opened = None
        try:
            opened = await self._attempts(question)
        finally:
            if opened is None or opened.response is None:
                leave()
        if opened.response is not None:
            opened.leave = leave
        return opened

    async def _attempts(self, question: Question) -> OpenTeacher:
        """Every upstream in turn, then, as the budget allows, from the first again."""
        upstreams = self.runtime.upstreams if question.anywhere else self.runtime.upstreams[:1]
        limit = monotonic() + self.runtime.settings.total_timeout_s
        waiting = list(upstreams)
        error: GatewayError | None = None
        refusal: GatewayError | None = None
        for number in range(self.runtime.settings.retries + 1):
            tried = False
            for upstream in list(waiting):
                if upstream not in waiting or monotonic() >= limit:
                    continue
                if not upstream.upstream.ready(monotonic()):
                    continue
                tried = True
                try:
                    return await self._attempt(upstream, question, limit)
                except _Failed as failed:
                    error = failed.error
                    if failed.refusal:
                        refusal = refusal or failed.error
                        waiting = [u for u in waiting if u.model != upstream.model]
                    elif failed.final:
                        waiting.remove(upstream)
            # Nobody to ask now is an answer, and a fast one: a queue of waiters helps no upstream.
            last = number == self.runtime.settings.retries
            if last or not tried or not await self._again(waiting, number):
                break
        if refusal is not None:
            raise refusal
        raise TeacherDown(error or refusals.resting(upstreams))

    async def _again(self, upstreams: Sequence[TeacherUpstream], number: int) -> bool:
        """Pause before the next round; False where there is no use in one."""
        rest = min((u.upstream.rests_s(monotonic()) for u in upstreams), default=math.inf)
        if rest > LONGEST_WAIT_S or not self.runtime.budget.take():
            return False
        pause: float = BACKOFF_S * 2**number * self.rng.uniform(0.5, 1.5)
        await asyncio.sleep(min(max(pause, rest), LONGEST_WAIT_S))
        return True

    async def _attempt(
        self, upstream: TeacherUpstream, question: Question, limit: float
    ) -> OpenTeacher:
        started = monotonic()
        outcome: str = "abandoned"
        status: int | None = None
        opened: OpenTeacher | None = None
        breaker = upstream.upstream.breaker
        try:
            opened = await self._asked(upstream, question, started, limit)
        except _Failed as failed:
            outcome, status = failed.outcome, failed.status
            if failed.fault:
                breaker.failed(monotonic())
            else:
                breaker.succeeded()
            raise
        except GatewayError as refused:
            outcome, status = f"http_{refused.status}", refused.status
            breaker.succeeded()
            raise
        finally:
            if opened is None:
                if outcome == "abandoned":  # by a faster student or by the client: it may cost
                    breaker.abandoned()
                self._noted(upstream, outcome, status, started, None)
        if opened.response is None:
            self.settle(opened, "ok", opened.usage)
        return opened

    async def _asked(
        self, upstream: TeacherUpstream, question: Question, started: float, until: float
    ) -> OpenTeacher:
        limits = self.runtime.timeouts
        payload = question.payload(upstream.model)
        key = self.client_key if upstream is self.runtime.upstreams[0] else None
        try:
            response = await upstream.upstream.post(
                self.pool,
                question.path,
                payload,
                limits,
                key=key,
                until=until,
                trace=self.trace,
            )
        except UpstreamError as error:
            raise _Failed(error.kind, None, refusals.unavailable(str(error))) from error
        kept = False
        try:
            if response.status != 200:
                raise await self._refused(upstream, response)
            opened = await self._answered(upstream, question, response, started)
            kept = opened.response is not None
            return opened
        except UpstreamError as error:
            raise _Failed(error.kind, 200, refusals.broken(error)) from error
        finally:
            if not kept:
                response.close()

    async def _answered(
        self,
        upstream: TeacherUpstream,
        question: Question,
        response: UpstreamResponse,
        started: float,
    ) -> OpenTeacher:
        if not question.stream:
            body = question.whole(await response.read())
            if body is None:
                raise UpstreamError("malformed", "its answer is none that this endpoint gives")
            return OpenTeacher(upstream, started, body.get("usage"), body=body)
        events = Events(response)
        if question.held:
            held, usage = await _collected(question, events)
            return OpenTeacher(upstream, started, usage, held=held)
        first = await events.next()
        if isinstance(first, End):
            raise UpstreamError("empty", "its stream held nothing")
        if question.reader().failed(first):
            raise UpstreamError("in_band_error", "its stream began with an error")
        return OpenTeacher(upstream, started, response=response, first=first, events=events)

    async def _refused(self, upstream: TeacherUpstream, response: UpstreamResponse) -> Exception:
        """What an answer other than 200 means for the request."""
        raw = await response.read()
        status = response.status
        if status in RETRYABLE or status >= 500:
            upstream.upstream.cool(refusals.retry_after_s(response.headers), monotonic())
            shown = 429 if status == 429 else 502
            return _Failed(f"http_{status}", status, refusals.passed_on(response, raw, shown))
        if 400 <= status < 500 and status not in WRONG_KEY:
            refused = refusals.passed_on(response, raw, status)
            if refusals.filtered(refused):
                return refused
            # Another model may have the longer context, or the feature that this one lacks.
            return _Failed(f"http_{status}", status, refused, fault=False, refusal=True)
        if status in WRONG_KEY and self.client_key is not None:
            return refusals.passed_on(response, raw, status)
        return _Failed(
            f"http_{status}",
            status,
            GatewayError(
                "teacher_error",
                f"The teacher answered {status}; its key or address may be wrong.",
                headers=refusals.FINAL,
            ),
            final=True,
            fault=False,
        )

    async def _slot(self) -> Callable[[], None]:
        slots = self.runtime.slots
        if slots.take(self.priority):
            return slots.release
        patience = self.runtime.settings.first_byte_timeout_s
        try:
            with within(patience if self.priority is Priority.LIVE else None):
                await slots.acquire(self.priority)
        except TimeoutError:
            raise TeacherDown(
                GatewayError(
                    "teacher_unavailable",
                    "The teacher's quota of calls at once is used up. Try again later.",
                    headers={"retry-after": "1"},
                )
            ) from None
        return slots.release

    def settle(self, opened: OpenTeacher, outcome: str, usage: Any) -> str:
        """Tell the breaker how an answer ended, and book it."""
        runtime, upstream = self.runtime, opened.upstream
        if outcome == "ok":
            upstream.upstream.breaker.succeeded()
            runtime.took(monotonic() - opened.started)
        elif outcome == "abandoned":
            upstream.upstream.breaker.abandoned()
        else:
            upstream.upstream.breaker.failed(monotonic())
        self._noted(upstream, outcome, 200, opened.started, usage)
        return outcome

    def _noted(
        self,
        upstream: TeacherUpstream,
        outcome: str,
        status: int | None,
        started: float,
        usage: Any,
    ) -> None:
        self.note(self.record(upstream, outcome, status, started, usage))

    @staticmethod
    def record(
        upstream: TeacherUpstream,
        outcome: str,
        status: int | None,
        started: float,
        usage: Mapping[str, Any] | None = None,
    ) -> Attempt:
        """The record of one attempt, priced by its usage."""
        prompt, completion = spent_tokens(usage)
        return Attempt(
            upstream.upstream.name,
            "teacher",
            outcome,
            status,
            prompt,
            completion,
            upstream.cost_usd(prompt, completion),
            round((monotonic() - started) * 1000, 3),
        )


async def _collected(
    question: Question, events: Events
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """Every event of a stream that has to be whole before any of it goes out.

    Raises:
        UpstreamError: it is not.
    """
    reader, held = question.reader(), list[Mapping[str, Any]]()
    while True:
        event = await (events.next_within(CLOSING_S) if reader.finished else events.next())
        if isinstance(event, End):
            break
        if reader.failed(event):
            raise UpstreamError("in_band_error", "its stream reported an error")
        try:
            reader.learn(event)
        except MALFORMED as error:
            raise UpstreamError("malformed", "an event has another shape") from error
        held.append(event)
    if not reader.finished:
        raise UpstreamError("cut" if held else "empty", "its stream ended early")
    return held, reader.usage
