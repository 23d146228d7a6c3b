"""What is kept of a request. Plain, frozen, and free of key material."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gateway.api.request import Api
from router.values import value


class Status(StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    """Cut: the client left, or an upstream died mid-answer. Never trained on."""
    ERROR = "error"


class Captured(StrEnum):
    """What ``x-understudy-captured`` says of an exchange."""

    YES = "yes"
    PARTIAL = "partial"
    """Stored without request and answer: what a student served, when room is short."""
    NO = "no"


class DrawState(StrEnum):
    """How far the second half of a draw is."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    """Given up after its retries; an audit counts it as a disagreement."""
    ALONE = "alone"
    """There was no student yet: the teacher's answer is all there is. It calibrates the first."""


_NO_FAULT = frozenset({"ok", "abandoned", "not_confident"})


@value(frozen=True, slots=True)
class Attempt:
    """One call to an upstream. Durations in milliseconds, cost in USD."""

    upstream: str
    role: str
    outcome: str
    status_code: int | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    duration_ms: float

    @property
    def fault(self) -> bool:
        """Whether the upstream failed; giving a call up, or finding the student unsure, is none."""
        return self.outcome not in _NO_FAULT

    @classmethod
    def unanswered(cls, upstream: str, role: str, outcome: str) -> Attempt:
        """A call that got no answer to measure."""
        return cls(upstream, role, outcome, None, 0, 0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Draw:
    """The second answer to a drawn request: asked for after the fact, whoever served.

    ``score`` is P(disagree) of a student answer that was asked for after the fact.
    """

    p: float
    wants: str
    state: DrawState = DrawState.PENDING
    tries: int = 0
    answer: Mapping[str, Any] | None = None
    agrees: bool | None = None
    score: float | None = None


@value(frozen=True, slots=True)
class Exchange:
    """One request with its verdict, answer, attempts and timings.

    ``created_at`` is Unix seconds; ``total_ms`` runs to the commit. ``request`` is the client's
    body as sent; ``answer`` the whole completion served, or what there was of it.
    ``prefix`` holds the student's gated prefix (text, tokens, log-probabilities). ``end_user`` is a
    digest of who the application says asked (``end_user_digest``). Without ``bodies``, request,
    answer and prefix were left out for want of room. With ``no_train`` it never reaches a training
    file: the key's owner, the request or an operator said so.
    """

    id: str
    created_at: float
    task: str
    principal: str
    model: str
    stream: bool
    status: Status
    served_by: str
    reason: str
    would_be_reason: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    score: float | None = None
    threshold: float | None = None
    ood_score: float | None = None
    template: str | None = None
    student: str | None = None
    router: str | None = None
    arm: str = "incumbent"
    api: Api = Api.CHAT
    error: str | None = None
    prefix: Mapping[str, Any] | None = None
    draw_p: float | None = None
    draw: Draw | None = None
    attempts: tuple[Attempt, ...] = ()
    overhead_ms: float = 0.0
    total_ms: float = 0.0
    end_user: str | None = None
    bodies: bool = True
    no_train: bool = False

    def without_bodies(self) -> Exchange:
        """What is kept where there is no room for all: verdict, scores, versions, attempts."""
        return replace(self, request={}, answer=None, prefix=None, bodies=False)

    @property
    def droppable(self) -> bool:
        """Whether its bodies may go when room is short: what the student served undrawn is no
        training data and no label of the audit."""
        return self.served_by == "student" and self.draw is None

    @property
    def fallback(self) -> bool:
        """Whether the teacher served because the student might not: training data."""
        return (
            self.status is Status.COMPLETE
            and self.served_by == "teacher"
            and self.reason not in {"override", "no_student"}
        )


@dataclass(frozen=True, slots=True)
class PendingDraw:
    """A draw whose second answer is still to be asked for."""

    exchange_id: str
    task: str
    wants: str
    tries: int
    created_at: float
    request: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    router: str | None
    api: Api = Api.CHAT


@dataclass(frozen=True, slots=True)
class Filter:
    """Which exchanges to read; None means any. Times are Unix seconds; ``text`` is looked for in
    request and answer as they are stored; ``after`` is the (time, id) of the last one seen."""

    task: str | None = None
    principal: str | None = None
    served_by: str | None = None
    reason: str | None = None
    status: str | None = None
    since: float | None = None
    fallbacks: bool = False
    drawn: bool = False
    limit: int | None = None
    newest_first: bool = False
    until: float | None = None
    text: str | None = None
    after: tuple[float, str] | None = None
    ids: tuple[str, ...] = field(default=())
