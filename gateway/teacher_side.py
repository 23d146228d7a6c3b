"""Serve a request from the teacher."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.request import Api
from gateway.books import Books, ClientStream
from gateway.events import End, Event, Events
from gateway.http1 import Pool
from gateway.question import Asked
from gateway.store.records import Attempt
from gateway.streams.shape import AnswerStream
from gateway.streams.whole import teacher_stream
from gateway.teacher import CLOSING_S, OpenTeacher, TeacherCall
from gateway.turn import Reply, Turn
from gateway.upstream import MALFORMED, UpstreamError
from gateway.verdict import Reason, ServedBy


@dataclass(slots=True)
class TeacherSide:
    """Asks the teacher and serves its answer."""

    pool: Pool
    books: Books
    rng: random.Random

    def call(self, turn: Turn) -> TeacherCall:
        """The attempts of one turn."""

        def note(attempt: Attempt) -> None:
            self.books.book(turn, attempt)
            for place in turn.task.teacher.upstreams:
                upstream = place.upstream
                self.books.metrics.breaker(upstream.name, not upstream.breaker.closed)

        return TeacherCall(
            turn.task.teacher,
            self.pool,
            note,
            self.rng,
            client_key=turn.wishes.teacher_key,
            trace=turn.trace.parent if turn.trace else None,
        )

    def opening(self, turn: Turn, call: TeacherCall) -> Coroutine[Any, Any, OpenTeacher]:
        """Ask until an answer begins; see ``TeacherCall.open``."""
        asked = Asked(turn.request, turn.held_whole, turn.task.passthrough)
        return call.open(asked, turn.deadline)

    async def reply(
        self, turn: Turn, reason: Reason, call: TeacherCall, opened: OpenTeacher
    ) -> Reply:
        """Serve what was opened."""
        turn.serve(ServedBy.TEACHER, reason)
        if opened.body is not None:
            named = turn.request.api is Api.RESPONSES
            head = {"model": turn.request.model} if named else turn.head
            return await self.books.whole(turn, {**opened.body, **head})
        out = ClientStream(turn, teacher_stream(turn.request, turn.head), self.books)
        if opened.held is not None:
            return self.books.streamed(out, _held(out, opened.held))
        return self.books.streamed(out, self._stream(out, call, opened))

    async def _stream(
        self, out: ClientStream, call: TeacherCall, opened: OpenTeacher
    ) -> AsyncGenerator[bytes]:
        assert opened.events is not None
        assert opened.first is not None
        stream = out.stream
        outcome = "abandoned"
        events = opened.events
        events.direct = out.passed
        event: Event = opened.first
        try:
            while not isinstance(event, End):
                _take(event, out)
                if events.waiting:
                    event = events.now()
                    continue
                if part := out.taken():
                    yield part
                event = await _next(events, stream)
            if not stream.finished:
                raise UpstreamError("cut", "the teacher's stream ended early")
            outcome = call.settle(opened, "ok", stream.usage)
            if part := out.taken():
                yield part
            yield await out.close()
        except UpstreamError as error:
            outcome = call.settle(opened, error.kind, stream.usage)
            if part := out.taken():
                yield part
            yield await out.fail(f"teacher_{error.kind}")
        finally:
            if outcome == "abandoned":
                call.settle(opened, outcome, stream.usage)
            out.leave(opened.close)


async def _held(out: ClientStream, events: list[Mapping[str, Any]]) -> AsyncGenerator[bytes]:
    """A stream that was read to its end before anything of it goes out."""
    try:
        for event in events:
            _take(event, out)
        if part := out.taken():
            yield part
        yield await out.close()
    finally:
        out.leave(lambda: None)


def _take(event: Mapping[str, Any], out: ClientStream) -> None:
    """Merge one event, and take what may go out of it.

    Raises:
        UpstreamError: ``in_band_error`` (an error seen makes a later [DONE] void) or
            ``malformed``.
    """
    if out.stream.failed(event):
        raise UpstreamError("in_band_error", "the teacher reported an error")
    try:
        out.stream.learn(event)
        out.take(event)
    except MALFORMED as error:
        raise UpstreamError("malformed", "a chunk has another shape than the API's") from error


async def _next(events: Events, stream: AnswerStream) -> Event:
    return await (events.next_within(CLOSING_S) if stream.finished else events.next())
