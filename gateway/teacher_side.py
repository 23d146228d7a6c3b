"""Serve a request from the teacher."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.books import Books, ClientStream
from gateway.chunks import Assembler
from gateway.errors import GatewayError
from gateway.events import End, Events
from gateway.student import CLOSING_S
from gateway.teacher import OpenTeacher, TeacherCall, teacher_body
from gateway.turn import Reply, Turn
from gateway.upstream import MALFORMED, UpstreamError, monotonic
from gateway.verdict import Reason, ServedBy


@dataclass(slots=True)
class TeacherSide:
    """Asks the teacher and serves its answer."""

    session: aiohttp.ClientSession
    books: Books
    rng: random.Random

    def call(self, turn: Turn) -> TeacherCall:
        """The attempts of one turn."""
        return TeacherCall(
            turn.task.teacher,
            self.session,
            lambda attempt: self.books.book(turn, attempt),
            self.rng,
        )

    def opening(self, turn: Turn, call: TeacherCall) -> Coroutine[Any, Any, OpenTeacher]:
        """Ask until an answer begins; see ``TeacherCall.open``."""
        model = None if turn.task.passthrough else turn.task.teacher.settings.model
        return call.open(teacher_body(turn.request, model), turn.request.stream)

    async def reply(
        self, turn: Turn, reason: Reason, call: TeacherCall, opened: OpenTeacher
    ) -> Reply:
        """Serve what was opened.

        Raises:
            GatewayError: ``teacher_error`` where the body is no completion.
        """
        turn.serve(ServedBy.TEACHER, reason)
        if turn.request.stream:
            return self.books.streamed(turn, self._stream(turn, call, opened))
        return await self._whole(turn, call, opened)

    async def _whole(self, turn: Turn, call: TeacherCall, opened: OpenTeacher) -> Reply:
        outcome: str = "abandoned"
        body: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(call.settings.total_timeout_s):
                body = completion(await opened.response.read())
            outcome = "ok" if body is not None else "malformed"
        except TimeoutError:
            outcome = "timeout"
        except UpstreamError as error:
            outcome = error.kind
        finally:
            opened.response.close()
            self._settle(turn, call, opened, outcome, (body or {}).get("usage"))
        if body is None:
            raise GatewayError(
                "teacher_error",
                f"The teacher's answer was not a completion ({outcome}). Try again.",
                headers={"x-should-retry": "false"},
            )
        return await self.books.whole(turn, {**body, **turn.head})

    async def _stream(
        self, turn: Turn, call: TeacherCall, opened: OpenTeacher
    ) -> AsyncGenerator[bytes]:
        assert opened.events is not None
        assert opened.first is not None
        whole = Assembler()
        out = ClientStream.of(turn, whole, self.books, strict=False)
        outcome = "abandoned"
        event: Mapping[str, Any] | End = opened.first
        deadline = opened.started + call.settings.total_timeout_s
        try:
            while not isinstance(event, End):
                if part := _taken(event, whole, out):
                    yield part
                event = await _next(opened.events, whole, deadline)
            if not whole.finished:
                raise UpstreamError("cut", "the teacher's stream ended early")
            outcome = self._settle(turn, call, opened, "ok", whole.usage)
            yield await out.close()
        except UpstreamError as error:
            outcome = self._settle(turn, call, opened, error.kind, whole.usage)
            yield await out.fail(f"teacher_{error.kind}")
        finally:
            if outcome == "abandoned":
                self._settle(turn, call, opened, outcome, whole.usage)
            out.leave(opened.response)

    def _settle(
        self,
        turn: Turn,
        call: TeacherCall,
        opened: OpenTeacher,
        outcome: str,
        usage: Mapping[str, Any] | None,
    ) -> str:
        teacher = turn.task.teacher
        breaker = teacher.upstream.breaker
        if outcome == "ok":
            breaker.succeeded()
            teacher.took(monotonic() - opened.started)
        elif outcome == "abandoned":
            breaker.abandoned()
        else:
            breaker.failed(monotonic())
        self.books.metrics.circuit_open.labels(teacher.upstream.name).set(not breaker.closed)
        record = call.record(outcome, opened.response.status, opened.started, usage)
        self.books.book(turn, record)
        return outcome


def completion(raw: bytes) -> dict[str, Any] | None:
    """A JSON body, if it is a chat completion."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or body.get("error") is not None:
        return None
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    whole = all(isinstance(c, dict) and isinstance(c.get("message"), dict) for c in choices)
    return body if whole else None


def _taken(event: Mapping[str, Any], whole: Assembler, out: ClientStream) -> bytes:
    """Merge one chunk and give what may go out of it.

    Raises:
        UpstreamError: ``in_band_error`` (an error seen makes a later [DONE] void) or
            ``malformed``.
    """
    if event.get("error") is not None:
        raise UpstreamError("in_band_error", "the teacher reported an error")
    try:
        whole.feed(event)
        return out.take(event)
    except MALFORMED as error:
        raise UpstreamError("malformed", "a chunk has another shape than the API's") from error


async def _next(events: Events, whole: Assembler, deadline: float) -> Mapping[str, Any] | End:
    if whole.finished:
        return await events.next_within(CLOSING_S)
    try:
        async with asyncio.timeout(deadline - monotonic()):
            return await events.next()
    except TimeoutError:
        raise UpstreamError("timeout", "the answer took too long") from None
