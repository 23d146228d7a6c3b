"""One request on its way through the gateway: what is known so far."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from gateway.api.request import Api, ApiRequest
from gateway.auth import Principal
from gateway.replays import Sender
from gateway.scrub import end_user_of
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from gateway.tallies import LastingChild
from gateway.tasks import TaskRuntime
from gateway.trace import Trace
from gateway.verdict import Reason, ServedBy, Verdict
from router.confidence import Prefix
from router.judge import Prejudgement
from router.values import value


class Route(StrEnum):
    """Who was asked for."""

    JUDGED = "judged"
    TEACHER = "teacher"
    STUDENT = "student"


@value(frozen=True, slots=True)
class Wishes:
    """What the request's headers ask for."""

    route: Route = Route.JUDGED
    hold: int | Literal["all"] | None = None
    deadline_s: float | None = None
    explain: bool = False
    teacher_key: str | None = field(default=None, repr=False)
    """The client's own key for the teacher; never stored."""
    no_train: bool = False


@value(frozen=True, slots=True)
class Reply:
    """What goes to the HTTP rim; a streamed body is committed to its side already."""

    status: int
    headers: Mapping[str, str]
    body: bytes | AsyncGenerator[bytes]
    begun: Callable[[Sender], None] | None = None
    """Told who takes the body, once its head is sent: parts may go there directly."""


async def send_parts(send: Sender, reply: Reply, body: AsyncGenerator[bytes]) -> None:
    """What is left of a reply's body, to its end; the head is sent."""
    if reply.begun is not None:
        reply.begun(send)
    async for part in body:
        await send.part(part)
    await send.end()


@dataclass(slots=True)
class Turn:
    """Mutable state of one exchange. ``started`` is monotonic, ``created_at`` Unix seconds."""

    id: str
    created_at: float
    started: float
    principal: Principal
    task: TaskRuntime
    request: ApiRequest
    wishes: Wishes
    verdict: Verdict = field(init=False)
    attempts: list[Attempt] = field(default_factory=list)
    prefix: Prefix | None = None
    draw_p: float | None = None
    drawn: bool = False
    overhead_s: float = 0.0
    finished: bool = False
    """Whether its exchange was handed to the store already."""
    complete: bool = False
    """Whether that was a whole answer."""
    trace: Trace | None = None
    feature: str | None = None
    """What the student does not do, of what was asked."""
    counted_as: int | None = None
    """The status that its exchange took along to the store's totals."""
    counted: Sequence[tuple[LastingChild, float]] = ()
    """What that adds to which counter."""

    def __post_init__(self) -> None:
        judge = self.task.judge
        self.verdict = Verdict(
            ServedBy.TEACHER,
            Reason.NO_STUDENT,
            Reason.NO_STUDENT,
            threshold=judge.threshold if judge else None,
            student=self.task.settings.student.model if self.task.settings.student else None,
            router=judge.version if judge else None,
            arm=self.task.arm,
        )

    def would_be(self, reason: Reason) -> None:
        """Note what the judge, or the student's fault, said."""
        self.verdict.would_be_reason = reason

    def serve(self, by: ServedBy, reason: Reason) -> None:
        """Commit to a side."""
        self.verdict.served_by, self.verdict.reason = by, reason

    def prejudged(self, pre: Prejudgement) -> None:
        """Note what the prompt alone said."""
        self.verdict.ood_score, self.verdict.template = pre.ood_score, pre.template

    def scored(self, score: float) -> None:
        """Note P(disagree)."""
        self.verdict.score = score

    @property
    def held_whole(self) -> bool:
        """Whether a stream is to be whole before anything of it goes out: then every fault of it,
        the teacher's too, can still be answered by another attempt."""
        router = self.task.settings.router
        return (self.wishes.hold or (router.hold if router else None)) == "all"

    @property
    def strict(self) -> bool:
        """Whether an answer that cannot be stored is not to be served."""
        return self.task.settings.capture == "strict"

    @property
    def deadline(self) -> float | None:
        """When the client stops waiting, in monotonic seconds."""
        return None if self.wishes.deadline_s is None else self.started + self.wishes.deadline_s

    @property
    def head(self) -> dict[str, Any]:
        """id, created and model of the answer: ours, and the name the client asked for."""
        prefix = "cmpl" if self.request.api is Api.COMPLETIONS else "chatcmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "created": int(self.created_at),
            "model": self.request.model,
        }

    def headers(self, captured: str) -> dict[str, str]:
        """Response headers that say who answered and why."""
        verdict = self.verdict
        values = {
            "x-request-id": self.id,
            "x-understudy-served-by": verdict.served_by.value,
            "x-understudy-reason": verdict.reason.value,
            "x-understudy-score": _number(verdict.score),
            "x-understudy-threshold": _number(verdict.threshold),
            "x-understudy-student": verdict.student,
            "x-understudy-router": verdict.router,
            "x-understudy-captured": captured,
        }
        return {name: value for name, value in values.items() if value is not None}

    def explanation(self, captured: str) -> dict[str, Any]:
        """The ``understudy`` object of an explained answer."""
        verdict = self.verdict
        return {
            "id": self.id,
            "task": self.task.name,
            "served_by": verdict.served_by,
            "reason": verdict.reason,
            "would_be_reason": verdict.would_be_reason,
            "unsupported": self.feature,
            "score": verdict.score,
            "threshold": verdict.threshold,
            "ood_score": verdict.ood_score,
            "template": verdict.template,
            "student": verdict.student,
            "router": verdict.router,
            "drawn": self.drawn,
            "captured": captured,
        }

    def exchange(
        self,
        status: Status,
        answer: Mapping[str, Any] | None,
        now: float,
        error: str | None = None,
        raw_answer: bytes = b"",
    ) -> Exchange:
        """The record of this turn; ``now`` is monotonic seconds, ``raw_answer`` the answer as JSON
        where it was written out already."""
        verdict = self.verdict
        asked = self.request
        kept = self.task.scrubber.scrubbed(
            asked.model, asked.body, answer, _prefix_json(self.prefix), asked.raw, raw_answer
        )
        return Exchange(
            id=self.id,
            created_at=self.created_at,
            task=self.task.name,
            principal=self.principal.name,
            model=kept.model,
            stream=asked.stream,
            status=status,
            served_by=verdict.served_by.value,
            reason=verdict.reason.value,
            would_be_reason=verdict.would_be_reason.value,
            score=verdict.score,
            threshold=verdict.threshold,
            ood_score=verdict.ood_score,
            template=verdict.template,
            student=verdict.student,
            router=verdict.router,
            arm=verdict.arm,
            error=error,
            request=kept.request,
            api=asked.api,
            answer=kept.answer,
            prefix=kept.prefix,
            draw_p=self.draw_p,
            draw=self._draw(status),
            attempts=tuple(self.attempts),
            overhead_ms=round(self.overhead_s * 1000, 4),
            total_ms=round((now - self.started) * 1000, 3),
            end_user=end_user_of(asked.body),
            no_train=self.wishes.no_train or not self.principal.may_train,
        )

    def _draw(self, status: Status) -> Draw | None:
        """The second half that a drawn exchange waits for. An exchange outside the certificate's
        scope (an outage, an override) is no draw, and without a whole first answer there is
        nothing to compare with."""
        outside = {Reason.OVERRIDE, Reason.TEACHER_DOWN, Reason.UNSUPPORTED_FEATURE}
        if not self.drawn or self.draw_p is None or status is not Status.COMPLETE:
            return None
        if self.verdict.reason in outside:
            return None
        if self.verdict.reason is Reason.NO_STUDENT:
            return Draw(self.draw_p, "student", DrawState.ALONE)
        other = "teacher" if self.verdict.served_by is ServedBy.STUDENT else "student"
        return Draw(self.draw_p, other)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _prefix_json(prefix: Prefix | None) -> dict[str, Any] | None:
    if prefix is None:
        return None
    return {
        "text": prefix.text,
        "finished": prefix.finished,
        "tokens": [[t.token, t.logprob, list(t.top)] for t in prefix.tokens],
    }
