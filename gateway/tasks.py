"""The tasks in service, and which of them a request is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import GatewayError
from gateway.judging import Judge
from gateway.retry_budget import RetryBudget
from gateway.scrub import Scrubber
from gateway.settings import Config
from gateway.slots import Slots
from gateway.standing import Noise, Standing
from gateway.task_settings import Price, Student, Task, Teacher
from gateway.upstream import Timeouts, Upstream
from router.rows import Row
from router.template import Message, fingerprint

DEFAULT_TASK = "default"
"""Task name under which unjudged pass-through is captured and counted."""


@dataclass(frozen=True, slots=True)
class TeacherUpstream:
    """One place to ask: its own model name and price."""

    upstream: Upstream
    model: str
    price: Price

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What it charges for a call."""
        return self.price.cost_usd(prompt_tokens, completion_tokens)


@dataclass(slots=True)
class TeacherRuntime:
    """The teacher's upstreams, in the order in which they are asked. ``latency_s`` is a moving
    average, for deadlines."""

    settings: Teacher
    upstreams: Sequence[TeacherUpstream]
    budget: RetryBudget
    slots: Slots
    latency_s: float = 1.0

    @property
    def upstream(self) -> Upstream:
        """The first."""
        return self.upstreams[0].upstream

    @property
    def timeouts(self) -> Timeouts:
        """The configured limits of one call."""
        limits = self.settings
        return Timeouts(
            limits.connect_timeout_s, limits.first_byte_timeout_s, limits.idle_timeout_s
        )

    def took(self, seconds: float) -> None:
        """Learn from one answer."""
        self.latency_s += 0.2 * (seconds - self.latency_s)


@dataclass(slots=True)
class StudentRuntime:
    """The student's replicas. ``folder`` is where a registered version lies: its replicas are
    used while they list it and answered a probe (``ready``); None where nobody looks."""

    settings: Student
    upstreams: Sequence[Upstream]
    paid_until: float | None = None
    folder: Path | None = None
    ready: set[str] = field(default_factory=set)
    calls: int = 0
    failures: int = 0

    def pick(self, now: float) -> Upstream | None:
        """The least busy replica whose breaker lets a call through; None when all are open."""
        for upstream in sorted(self.upstreams, key=lambda u: u.in_flight):
            known = self.folder is None or upstream.name in self.ready
            if known and upstream.breaker.allow(now):
                return upstream
        return None

    def lost(self, upstream: Upstream) -> None:
        """A replica no longer has the version: nobody is sent there until it was loaded again."""
        self.ready.discard(upstream.name)

    def rent_usd(self, now: float) -> float:
        """Machine cost since it was last asked for: a rented machine costs idle or busy."""
        since, self.paid_until = self.paid_until, now
        return 0.0 if since is None else (now - since) / 3600 * self.settings.price_per_hour


@dataclass(slots=True)
class TaskRuntime:
    """One task, bound to its judge and upstreams.

    ``uncertified`` says why the certificate does not cover the configured budget; ``standing`` is
    what the live audit last said, None before its first word. A ``canary`` is the same task with
    another version, for ``canary_share`` of the conversations; ``revision`` counts the registry's
    changes.
    """

    name: str
    settings: Task
    teacher: TeacherRuntime
    student: StudentRuntime | None
    judge: Judge | None
    uncertified: str | None
    scrubber: Scrubber
    passthrough: bool = False
    standing: Standing | None = None
    probe: Sequence[Row] = ()
    noise: Noise | None = None
    arm: str = "incumbent"
    canary: TaskRuntime | None = None
    canary_share: float = 0.0
    revision: int = 0

    @property
    def closed(self) -> str | None:
        """Why the gate is shut; None while the student may serve."""
        if self.uncertified is not None or not self.audited:
            return self.uncertified
        if self.standing is None:  # it may have been closed: nobody could look
            return "the audit's memory cannot be read"
        return self.standing.closed

    @property
    def awaits_student(self) -> bool:
        """Whether the registry has not named a student yet: draws are made for it already."""
        return self.settings.registered

    def arm_for(self, key: str) -> TaskRuntime:
        """The arm that serves a conversation: always the same one while the share stays."""
        if self.canary is None:
            return self
        digest = hashlib.sha256(f"{self.canary.name}|{self.revision}|{key}".encode()).digest()
        return self.canary if int.from_bytes(digest[:8]) < self.canary_share * 2**64 else self

    @property
    def audited(self) -> bool:
        """Whether there is a certified promise to audit."""
        return self.student is not None and self.judge is not None and self.uncertified is None

    @property
    def draw_rate(self) -> float:
        """The probability of a draw now. It may follow from past labels, never from a request."""
        risk = self.settings.risk
        proven = self.standing is not None and self.standing.proven
        # Without a student a draw costs nothing: the teacher answers in any case.
        raised = risk.draw_rate > 0 and (
            self.awaits_student or (risk.on_unproven != "serve" and self.audited and not proven)
        )
        return max(risk.draw_rate, risk.unproven_draw_rate) if raised else risk.draw_rate


class Tasks:
    """Every task by name, and the claims on other model names."""

    def __init__(self, config: Config, tasks: Sequence[TaskRuntime]) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._default = self._passthrough(config)

    def replace(self, config: Config, tasks: Sequence[TaskRuntime]) -> None:
        """Serve these from now on; requests under way keep the task that they began with."""
        self._tasks = {task.name: task for task in tasks}
        self._default = self._passthrough(config)

    def __iter__(self) -> Iterator[TaskRuntime]:
        return iter(list(self._tasks.values()))

    def put(self, task: TaskRuntime) -> None:
        """Serve this in the place of the task of the same name."""
        self._tasks[task.name] = task

    def arms(self) -> Iterator[TaskRuntime]:
        """Every task, and every canary."""
        for task in self:
            yield task
            if task.canary is not None:
                yield task.canary

    def judged_by(self, name: str, router: str | None) -> TaskRuntime | None:
        """The arm of a task whose version is that; its incumbent where none is."""
        task = self.get(name)
        if task is None or task.canary is None or task.canary.judge is None:
            return task
        return task.canary if task.canary.judge.version == router else task

    @property
    def default(self) -> TaskRuntime | None:
        """Where traffic goes that no task claims."""
        return self._default

    def get(self, name: str) -> TaskRuntime | None:
        """A task by its own name."""
        return self._tasks.get(name)

    def resolve(
        self, model: str, principal: str, messages: Sequence[Message]
    ) -> tuple[TaskRuntime, str | None]:
        """The task for a model name, and ``teacher`` or ``student`` from its suffix.

        Raises:
            GatewayError: ``model_not_found``.
        """
        name, colon, side = model.partition(":")
        if name in self._tasks and (not colon or side in {"teacher", "student"}):
            return self._tasks[name], side or None
        for task in self._tasks.values():
            if _claims(task.settings, model, principal, messages):
                return task, None
        if self._default is not None:
            return self._default, None
        raise GatewayError(
            "model_not_found",
            f"The model '{model}' does not exist; GET /v1/models lists those that do.",
            param="model",
        )

    def _passthrough(self, config: Config) -> TaskRuntime | None:
        if config.default is None:
            return None
        wanted = config.default.passthrough
        source = self._tasks[config.tasks[0].name if wanted == "teacher" else wanted]
        settings = source.settings.model_copy(
            update={"name": DEFAULT_TASK, "student": None, "router": None, "match": None}
        )
        return TaskRuntime(
            DEFAULT_TASK, settings, source.teacher, None, None, None, source.scrubber, True
        )


def _claims(task: Task, model: str, principal: str, messages: Sequence[Message]) -> bool:
    match = task.match
    if match is None:
        return False
    return (
        (not match.models or model in match.models)
        and (not match.keys or principal in match.keys)
        and (match.template is None or match.template == fingerprint(messages))
    )
