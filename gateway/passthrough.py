"""Other ``/v1`` paths, handed to the default upstream as they are: unjudged, uncaptured, and only
those that the configuration lists."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.auth import Principal
from gateway.books import Books
from gateway.errors import GatewayError
from gateway.http1 import Pool
from gateway.ids import new_id
from gateway.question import Plain
from gateway.tasks import TaskRuntime
from gateway.teacher import TeacherCall, TeacherDown
from gateway.turn import Reply
from gateway.upstream import UpstreamError, UpstreamResponse, monotonic
from gateway.verdict import Reason, ServedBy

_PASSED_ON = ("content-type", "retry-after", "retry-after-ms")
PREFIX = "/v1"


@dataclass(frozen=True, slots=True)
class Passthrough:
    """The upstream behind the listed paths; the routes are made from the list."""

    pool: Pool
    default: TaskRuntime | None
    books: Books

    async def forward(self, path: str, body: bytes, content_type: str) -> Reply:
        """Send a body on and stream the answer back, status and all.

        Raises:
            GatewayError: ``teacher_unavailable``.
        """
        assert self.default is not None
        teacher = self.default.teacher
        upstream = teacher.upstream
        if not upstream.ready(monotonic()):
            raise self._unavailable("its circuit is open after failures")
        try:
            response = await upstream.post(
                self.pool, path.removeprefix(PREFIX), body, teacher.timeouts, content_type
            )
        except UpstreamError as error:
            upstream.breaker.failed(monotonic())
            raise self._unavailable(str(error)) from error
        except BaseException:
            upstream.breaker.abandoned()
            raise
        upstream.breaker.succeeded()
        headers = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        return Reply(response.status, {**headers, **self._told()}, _relayed(response))

    async def embeddings(
        self, task: TaskRuntime, principal: Principal, body: Mapping[str, Any]
    ) -> Reply:
        """Ask for embeddings, retried as a teacher is; the client's model name is the upstream's.

        Raises:
            GatewayError: the upstream refuses, or cannot be reached.
        """
        name = task.name
        call = TeacherCall(
            task.teacher, self.pool, functools.partial(self.books.book_call, principal)
        )
        try:
            opened = await call.open(Plain("/embeddings", body, named=True))
        except TeacherDown as down:
            self.books.count_plain(name, down.error.status)
            raise down.error from None
        except GatewayError as error:
            self.books.count_plain(name, error.status)
            raise
        self.books.count_plain(name, 200)
        return Reply(200, self._told(), orjson.dumps(opened.body))

    @staticmethod
    def _told() -> dict[str, str]:
        return {
            "x-request-id": new_id(),
            "x-understudy-served-by": ServedBy.TEACHER,
            "x-understudy-reason": Reason.NO_STUDENT,
            "x-understudy-captured": "no",
        }

    @staticmethod
    def _unavailable(why: str) -> GatewayError:
        return GatewayError(
            "teacher_unavailable", f"The upstream is not available: {why}. Try again later."
        )


async def _relayed(response: UpstreamResponse) -> AsyncGenerator[bytes]:
    """The bytes as they arrive; an answer that is cut ends the connection, not the body."""
    async with response:
        while chunk := await response.some():
            yield chunk
