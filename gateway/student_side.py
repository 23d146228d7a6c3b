"""Serve a request from the student, or say why the teacher has to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from gateway.api.request import Api
from gateway.api.responses import ID_PREFIX
from gateway.books import Books, ClientStream
from gateway.errors import GatewayError
from gateway.formats import fitting
from gateway.http1 import Pool
from gateway.refine import Refiner
from gateway.store.records import Attempt
from gateway.streams.chat import Assembler, ChatStream, Relay
from gateway.streams.responses_writer import ResponsesWriter
from gateway.streams.shape import AnswerStream
from gateway.student import NotConfident, StudentAnswer, StudentFault, ask_student, student_body
from gateway.tasks import StudentRuntime
from gateway.turn import Reply, Turn
from gateway.upstream import Upstream, monotonic
from gateway.verdict import Reason, ServedBy
from router.confidence import Prefix
from router.judge import Prejudgement


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a student call ended: an answer to serve, or a reason and the call's outcome."""

    answer: StudentAnswer | None
    reason: Reason
    outcome: str


@dataclass(slots=True)
class StudentSide:
    """Asks the student and serves its answer."""

    pool: Pool
    books: Books
    refiner: Refiner

    def budget_s(self, turn: Turn) -> float:
        """Seconds the student may take: its own limit, or what a deadline leaves after keeping
        the teacher's usual time back."""
        assert turn.task.student is not None
        limit = turn.task.student.settings.timeout_s
        if turn.wishes.deadline_s is None:
            return limit
        left = turn.wishes.deadline_s - (monotonic() - turn.started)
        return min(limit, left - turn.task.teacher.latency_s)

    async def judged(self, turn: Turn, pre: Prejudgement) -> Reply | Reason:
        """Ask and judge; a Reason means that the teacher has to answer."""
        student = turn.task.student
        assert student is not None
        upstream = student.pick(monotonic())
        if upstream is None:
            turn.would_be(Reason.CIRCUIT_OPEN)
            return Reason.CIRCUIT_OPEN
        budget = self.budget_s(turn)
        end = await self._call(
            turn, student, upstream, budget, lambda prefix: self._confident(turn, pre, prefix)
        )
        turn.would_be(end.reason)
        if end.answer is None:
            return end.reason
        return await self._reply(turn, end.answer, Reason.IN_DISTRIBUTION)

    async def forced(self, turn: Turn, reason: Reason) -> Reply:
        """The student answers unjudged: asked for by name, or standing in for a dead teacher.

        Raises:
            GatewayError: ``student_unavailable``.
        """
        student, name = turn.task.student, turn.task.name
        upstream = student.pick(monotonic()) if student else None
        if student is None or upstream is None or turn.task.judge is None:
            raise GatewayError(
                "student_unavailable",
                f"Task '{name}' has no student that can answer now; ask '{name}'.",
            )
        limit = student.settings.timeout_s
        end = await self._call(turn, student, upstream, limit, _accepted)
        if end.answer is None:
            raise GatewayError(
                "student_unavailable",
                f"The student gave no complete answer ({end.outcome}); ask '{name}'.",
            )
        return await self._reply(turn, end.answer, reason)

    async def _call(
        self,
        turn: Turn,
        student: StudentRuntime,
        upstream: Upstream,
        budget_s: float,
        accept: Callable[[Prefix], Awaitable[bool]],
    ) -> _Outcome:
        answer: StudentAnswer | None = None
        end = _Outcome(None, Reason.STUDENT_ERROR, "abandoned")
        try:
            async with asyncio.timeout(budget_s):
                answer = await self._open(turn, student, upstream)
                await answer.until_released(accept)
            end = _Outcome(answer, Reason.IN_DISTRIBUTION, "ok")
        except TimeoutError:
            shortened = budget_s < student.settings.timeout_s
            late = Reason.DEADLINE if shortened else Reason.STUDENT_TIMEOUT
            end = _Outcome(None, late, "timeout")
        except StudentFault as fault:
            why = Reason.STUDENT_TIMEOUT if fault.timeout else Reason.STUDENT_ERROR
            end = _Outcome(None, why, fault.outcome)
        except NotConfident:
            end = _Outcome(None, Reason.LOW_CONFIDENCE, "not_confident")
        finally:
            self._settle(turn, student, upstream, answer, end.outcome)
        return end

    async def _open(self, turn: Turn, student: StudentRuntime, upstream: Upstream) -> StudentAnswer:
        judge, router = turn.task.judge, turn.task.settings.router
        assert judge is not None
        assert router is not None
        hold = turn.wishes.hold or router.hold
        body = student_body(turn.request, student.settings, judge.profile)
        return await ask_student(
            self.pool,
            upstream,
            body,
            gate_tokens=judge.gate_tokens,
            # JSON that turns out not to fit cannot be called back.
            hold=hold if turn.request.stream and not turn.request.response_format else "all",
            timeout_s=student.settings.timeout_s,
            fits=fitting(turn.request.response_format),
            trace=turn.trace.parent if turn.trace else None,
        )

    async def _confident(self, turn: Turn, pre: Prejudgement, prefix: Prefix) -> bool:
        judge = turn.task.judge
        assert judge is not None
        assert judge.threshold is not None
        started = time.perf_counter()
        turn.prefix = prefix
        score = judge.score(pre, prefix)
        self.books.spent(turn, "score", started)
        if not score.settled:
            pre = await self.refiner.refine(turn, judge, pre)
            score = judge.score(pre, prefix)
        turn.scored(score.value)
        self.books.metrics.disagree_score.labels(turn.task.name).observe(score.value)
        return not pre.out and score.value < judge.threshold

    def _settle(
        self,
        turn: Turn,
        student: StudentRuntime,
        upstream: Upstream,
        answer: StudentAnswer | None,
        outcome: str,
    ) -> None:
        """Book the call, tell the breaker, and free the slot unless the answer goes on."""
        now = monotonic()
        if outcome != "abandoned":
            student.calls += 1
            student.failures += outcome not in {"ok", "not_confident"}
        if outcome in {"ok", "not_confident"}:
            upstream.breaker.succeeded()
        elif outcome == "abandoned":
            upstream.breaker.abandoned()
        else:
            if outcome == "http_404":  # a replica that restarted has forgotten its adapters
                student.lost(upstream)
            upstream.breaker.failed(now)
        metrics = self.books.metrics
        metrics.breaker(upstream.name, not upstream.breaker.closed)
        metrics.cost.labels(turn.task.name, "student").inc(student.rent_usd(now))
        if answer is None:
            self.books.book(turn, Attempt.unanswered(upstream.name, "student", outcome))
            return
        self.books.book(turn, answer.attempt(outcome, now))
        if outcome != "ok":
            answer.response.close()

    async def _reply(self, turn: Turn, answer: StudentAnswer, reason: Reason) -> Reply:
        turn.serve(ServedBy.STUDENT, reason)
        if turn.request.stream:
            out = ClientStream(turn, student_stream(turn, answer.gate.answer), self.books)
            return self.books.streamed(out, self._stream(out, answer))
        answer.response.close()
        turn.prefix = answer.gate.whole
        return await self.books.whole(turn, student_stream(turn, answer.gate.answer).answer())

    @staticmethod
    async def _stream(out: ClientStream, answer: StudentAnswer) -> AsyncGenerator[bytes]:
        try:
            while (raw := await answer.next()) is not None:
                out.take(raw)
                if not answer.waiting and (part := out.taken()):
                    yield part
            out.turn.prefix = answer.gate.whole
            if part := out.taken():
                yield part
            yield await out.close()
        except StudentFault as fault:
            if part := out.taken():
                yield part
            yield await out.fail(f"student_{fault.outcome}")
        finally:
            out.leave(answer.response.close)


def student_stream(turn: Turn, whole: Assembler) -> AnswerStream:
    """How a student's chat chunks reach the client of a turn."""
    request = turn.request
    if request.api is Api.RESPONSES:
        ids = f"{ID_PREFIX}{turn.id}", f"msg_us{turn.id}"
        return ResponsesWriter(*ids, int(turn.created_at), request.body, whole)
    relay = Relay(turn.head, request.logprobs, request.include_usage, strict=True)
    return ChatStream(relay, whole)


async def _accepted(prefix: Prefix) -> bool:
    """Nobody judges: the client, or a dead teacher, left no choice."""
    return True
