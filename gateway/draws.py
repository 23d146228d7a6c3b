"""The second half of each draw: a durable job, off the request path, after live traffic."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.api.request import ApiRequest
from gateway.asking import ask_teacher
from gateway.books import Books
from gateway.equivalence import Equivalence
from gateway.errors import GatewayError
from gateway.halves import Halves
from gateway.http1 import Pool
from gateway.judging import Judge
from gateway.logs import log
from gateway.metrics import DRAW_OUTCOMES
from gateway.offload import Offload
from gateway.question import Asked
from gateway.store.records import Draw, DrawState, PendingDraw
from gateway.streams.whole import answer_text, request_of
from gateway.student import StudentAnswer, StudentFault, ask_student, student_body
from gateway.tasks import TaskRuntime, Tasks
from gateway.teacher import TeacherDown
from gateway.upstream import UpstreamError, monotonic
from router.confidence import TOP_LOGPROBS, Prefix

IDLE_S = 5.0
LONGEST_PAUSE_S = 60.0
BATCH = 16
ENDLESS_TRIES = 3
PARALLEL = 4
"""Second answers asked for at once: enough for an audit to get on, few beside live traffic."""


@dataclass(frozen=True, slots=True)
class _Second:
    """The other side's completion; ``score`` is P(disagree) of a student's."""

    answer: Mapping[str, Any]
    score: float | None = None


@dataclass(slots=True)
class DrawWorker:
    """Works off pending draws, a few at a time, whenever the process is up."""

    tasks: Tasks
    halves: Halves
    pool: Pool
    books: Books
    equivalence: Equivalence
    offload: Offload
    sleep: Callable[[float], Any] = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled. A job that was cut by a kill is still pending at the next start."""
        while True:
            self.books.wake_draws.clear()
            jobs = await self.halves.claim(BATCH)
            async with asyncio.TaskGroup() as group:
                slots = asyncio.Semaphore(PARALLEL)
                for job in jobs:
                    group.create_task(self._within(slots, job))
            if not jobs:
                try:
                    async with asyncio.timeout(IDLE_S):
                        await self.books.wake_draws.wait()
                except TimeoutError:
                    continue

    async def _within(self, slots: asyncio.Semaphore, job: PendingDraw) -> None:
        async with slots:
            await self._work(job)

    async def _work(self, job: PendingDraw) -> None:
        draw = await self._second(job)
        if not await self.halves.finish(job.exchange_id, draw, time.time()):
            await self.sleep(IDLE_S)  # the disk is full: asking again would only cost money
        elif draw.state is DrawState.PENDING:
            await self.sleep(min(2.0**draw.tries, LONGEST_PAUSE_S))
        else:
            outcome = DRAW_OUTCOMES[draw.agrees]
            served_by = "student" if job.wants == "teacher" else "teacher"
            self.books.metrics.draws.labels(job.task, served_by, outcome).inc()
            self.books.wake_audit.set()

    async def _second(self, job: PendingDraw) -> Draw:
        """Ask the other side; an outage leaves the draw pending until it is too old: from then on
        the audit counts it as a disagreement."""
        task, tries = self.tasks.judged_by(job.task, job.router), job.tries + 1
        if task is None:
            return Draw(0.0, job.wants, DrawState.FAILED, tries)
        overdue = time.time() - job.created_at > task.settings.risk.audit_timeout_s
        state = DrawState.FAILED if overdue else DrawState.PENDING
        second: _Second | None = None
        agrees: bool | None = None
        try:
            ask = self._teacher if job.wants == "teacher" else self._student
            second = await ask(task, job)
            if second is not None:  # as the first answer is stored: like is compared with like
                answer = task.scrubber.second_answer(job.request, second.answer)
                second = replace(second, answer=answer)
                agrees = await self._agree(task, job, answer)
        except GatewayError as error:  # the teacher refuses this request, and always will
            log("draw_refused", id=job.exchange_id, error=error.code)
            state = DrawState.FAILED
        except (TeacherDown, StudentFault, UpstreamError, TimeoutError) as error:
            why = error.error.code if isinstance(error, TeacherDown) else str(error)
            log("draw_failed", id=job.exchange_id, wants=job.wants, error=why)
            # An answer that never ends in time would not be served either; asking for it again
            # for hours only holds a slot.
            endless = isinstance(error, TimeoutError) and job.wants == "student"
            if endless and tries >= ENDLESS_TRIES:
                state = DrawState.FAILED
        if second is None or agrees is None:
            return Draw(0.0, job.wants, state, tries)
        return Draw(0.0, job.wants, DrawState.DONE, tries, second.answer, agrees, second.score)

    async def _teacher(self, task: TaskRuntime, job: PendingDraw) -> _Second | None:
        plain = {k: v for k, v in job.request.items() if k not in {"stream", "stream_options"}}
        question = Asked(request_of(job.api, plain))
        body = await ask_teacher(task, self.pool, self.books, question)
        return _Second(body) if body is not None else None

    async def _student(self, task: TaskRuntime, job: PendingDraw) -> _Second | None:
        """The student's whole answer, whatever the judge says of it."""
        if task.student is None or task.judge is None:
            return None
        upstream = task.student.pick(monotonic())
        if upstream is None:
            return None
        settings = task.student.settings
        request = request_of(job.api, job.request)
        body = student_body(request, settings, task.judge.profile)
        answer = await ask_student(
            self.pool,
            upstream,
            body,
            gate_tokens=task.judge.gate_tokens,
            hold="all",
            timeout_s=settings.timeout_s,
        )
        try:
            async with asyncio.timeout(settings.timeout_s):
                await answer.until_ended()
        except StudentFault:
            # Whole but not servable (say, of finish reason 'length'): asking again gives the same.
            if not answer.gate.answer.finished:
                raise
        finally:
            answer.response.close()
        head = {"id": f"chatcmpl-{job.exchange_id}", "created": 0, "model": settings.model}
        body = answer.gate.answer.completion(head, TOP_LOGPROBS)
        return _Second(body, await self._score(task.judge, job, request, answer))

    async def _score(
        self, judge: Judge, job: PendingDraw, request: ApiRequest, answer: StudentAnswer
    ) -> float | None:
        """P(disagree), where the version that saw the request still judges and the answer could
        have been served: under a closed gate the audit goes on with it."""
        if judge.version != job.router or answer.gate.fault is not None:
            return None
        prefix = answer.gate.prefix
        return await self.offload.run(_settled, judge, request, prefix)

    async def _agree(
        self, task: TaskRuntime, job: PendingDraw, answer: Mapping[str, Any]
    ) -> bool | None:
        first, second = answer_text(job.answer or {}), answer_text(answer)
        student, teacher = (first, second) if job.wants == "teacher" else (second, first)
        return await self.equivalence.agrees(task, job.request, student, teacher)


def _settled(judge: Judge, request: ApiRequest, prefix: Prefix) -> float | None:
    _, score = judge.resolve(
        judge.prejudge(request.messages, request.tools, request.response_format), prefix
    )
    return score if math.isfinite(score) else None
