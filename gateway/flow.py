"""One request, steps 3 to 10 of the design: judge, serve, fall back, capture."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from gateway.books import Books
from gateway.eligibility import unsupported
from gateway.errors import GatewayError
from gateway.refine import Refiner
from gateway.student_side import StudentSide
from gateway.teacher import OpenTeacher, TeacherCall, TeacherDown
from gateway.teacher_side import TeacherSide
from gateway.turn import Reply, Route, Turn
from gateway.verdict import Reason, ServedBy
from router.judge import Prejudgement

_DOWN = frozenset({Reason.STUDENT_ERROR, Reason.STUDENT_TIMEOUT, Reason.CIRCUIT_OPEN})
INLINE_CHARS = 1000
"""Prompts up to here meet the static tier on the event loop (at most 0.3 ms)."""


@dataclass(slots=True)
class Flow:
    """Serves judged requests. One per process; everything that varies is in the ``Turn``."""

    student: StudentSide
    teacher: TeacherSide
    books: Books
    refiner: Refiner
    rng: random.Random

    async def answer(self, turn: Turn) -> Reply:
        """Decide, ask, and reply once committed to a side.

        Raises:
            GatewayError: nobody could answer; the exchange is kept all the same.
        """
        try:
            return await self._answer(turn)
        except GatewayError as error:
            captured = await self.books.failed(turn, error)
            error.headers["x-understudy-captured"] = captured.value
            raise
        except asyncio.CancelledError:
            self.books.gone(turn)
            raise

    async def _answer(self, turn: Turn) -> Reply:
        if turn.wishes.route is Route.STUDENT:
            turn.would_be(Reason.OVERRIDE)
            return await self.student.forced(turn, Reason.OVERRIDE)
        reason, pre = await self._before_student(turn)
        if reason is None and turn.wishes.route is Route.TEACHER:
            reason = Reason.OVERRIDE
        if reason is not None:
            turn.would_be(reason)
            override = turn.wishes.route is Route.TEACHER and reason is not Reason.NO_STUDENT
            return await self._teacher(turn, Reason.OVERRIDE if override else reason)
        assert pre is not None
        router = turn.task.settings.router
        if (
            router is not None
            and router.hedge_from is not None
            and turn.task.settings.on_student_down == "teacher"
            and pre.ood_score >= router.hedge_from
        ):
            return await self._hedged(turn, pre)
        outcome = await self.student.judged(turn, pre)
        if isinstance(outcome, Reply):
            return outcome
        if outcome in _DOWN and turn.task.settings.on_student_down == "error":
            turn.serve(ServedBy.STUDENT, outcome)
            raise GatewayError(
                "student_unavailable",
                f"The student gave no answer ({outcome.value}), and the task keeps the teacher "
                "out of it. Try again later.",
                status=503,
                headers={"retry-after": "1"},
            )
        return await self._teacher(turn, outcome)

    async def _before_student(self, turn: Turn) -> tuple[Reason | None, Prejudgement | None]:
        """Everything that can send a request to the teacher without paying the student."""
        task, judge = turn.task, turn.task.judge
        if task.student is None or judge is None:
            if task.awaits_student and turn.wishes.route is Route.JUDGED:
                self._draw(turn)
            return Reason.NO_STUDENT, None
        turn.feature = unsupported(turn.request, task.settings, judge.profile)
        if turn.feature is not None:
            return Reason.UNSUPPORTED_FEATURE, None
        if turn.wishes.route is Route.JUDGED:
            self._draw(turn)
        pre = await self._prejudge(turn)
        return self._verdict_before(turn, pre), pre

    def _verdict_before(self, turn: Turn, pre: Prejudgement) -> Reason | None:
        if not pre.known_template:
            return Reason.NEW_TEMPLATE
        if pre.out:
            return Reason.OOD
        if turn.task.closed is not None:
            return Reason.GATE_CLOSED
        return Reason.DEADLINE if self.student.budget_s(turn) <= 0 else None

    def _draw(self, turn: Turn) -> None:
        """Before any score is looked at: the probability must not depend on the verdict."""
        turn.draw_p = turn.task.draw_rate
        turn.drawn = self.rng.random() < turn.draw_p

    async def _prejudge(self, turn: Turn) -> Prejudgement:
        judge, request = turn.task.judge, turn.request
        assert judge is not None
        started = time.perf_counter()
        if sum(len(m.content) for m in request.messages) <= INLINE_CHARS:
            pre = judge.prejudge(request.messages, request.tools, request.response_format)
        else:
            pre = await self.refiner.prejudge(turn, judge)
        self.books.spent(turn, "prejudge", started)
        if pre.undecided and pre.known_template:
            pre = await self.refiner.refine(turn, judge, pre)
        # Of the tier that decided before the student, as in the artefact's reference: drift
        # compares the two.
        turn.prejudged(pre)
        self.books.metrics.ood_score.labels(turn.task.name).observe(pre.ood_score)
        return pre

    async def _hedged(self, turn: Turn, pre: Prejudgement) -> Reply:
        """Student and teacher start together; whoever commits first serves."""
        call = self.teacher.call(turn)
        race = asyncio.create_task(self.teacher.opening(turn, call))
        run = asyncio.create_task(self.student.judged(turn, pre))
        try:
            await asyncio.wait({race, run}, return_when=asyncio.FIRST_COMPLETED)
            if race.done() and not run.done() and race.exception() is None:
                await _cancelled(run)
                turn.would_be(Reason.HEDGE_WON)
                return await self.teacher.reply(turn, Reason.HEDGE_WON, call, race.result())
            outcome = await run
            if isinstance(outcome, Reply):
                return outcome
            return await self._begun(turn, outcome, call, race)
        finally:
            await _cancelled(run)
            if turn.verdict.served_by is ServedBy.STUDENT or not race.done():
                await _dropped(race)

    async def _teacher(self, turn: Turn, reason: Reason) -> Reply:
        call = self.teacher.call(turn)
        return await self._begun(turn, reason, call, self.teacher.opening(turn, call))

    async def _begun(
        self, turn: Turn, reason: Reason, call: TeacherCall, opening: Awaitable[OpenTeacher]
    ) -> Reply:
        turn.serve(ServedBy.TEACHER, reason)
        try:
            opened = await opening
        except TeacherDown as down:
            return await self._stand_in(turn, down)
        return await self.teacher.reply(turn, reason, call, opened)

    async def _stand_in(self, turn: Turn, down: TeacherDown) -> Reply:
        """The policy for a dead teacher: its error, or the student if that is allowed."""
        task = turn.task
        allowed = (
            task.settings.on_teacher_down == "student"
            and task.student is not None
            and turn.verdict.reason is not Reason.UNSUPPORTED_FEATURE
            and (task.closed is None or task.settings.even_if_closed)
        )
        if not allowed:
            raise down.error
        try:
            return await self.student.forced(turn, Reason.TEACHER_DOWN)
        except GatewayError:
            raise down.error from None


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel and await; a task that is done already keeps its result."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _dropped(race: asyncio.Future[OpenTeacher]) -> None:
    """Give up a teacher call whose answer nobody wants."""
    await _cancelled(race)
    if not race.cancelled() and race.exception() is None:
        race.result().close()
