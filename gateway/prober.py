"""The probe set at work: the teacher's self-disagreement, and a teacher that changed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import orjson

from gateway.asking import ask_teacher
from gateway.books import Books
from gateway.errors import GatewayError, StoreError
from gateway.http1 import Pool
from gateway.logs import log
from gateway.offload import Offload
from gateway.question import Plain
from gateway.standing import Noise
from gateway.store import probes
from gateway.store.audits import AuditStore, EventKind
from gateway.store.probes import ProbeRun
from gateway.streams.whole import answer_text
from gateway.tasks import TaskRuntime, Tasks
from gateway.teacher import TeacherDown
from router.comparator import JUDGE, comparator, parse, text
from router.noise import SIGNIFICANT, Comparison, change_p_value
from router.rows import Row

PARALLEL = 4
LOOK_S = 5.0
LEASE_S = 900.0
"""Longest that one replica keeps a run to itself."""


@dataclass(slots=True)
class Prober:
    """Asks each task's probe set twice at first, then at its interval."""

    tasks: Tasks
    store: AuditStore
    pool: Pool
    books: Books
    offload: Offload
    clock: Callable[[], float] = time.time
    _told: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for task in self.tasks:
                if task.probe:
                    await self.look(task)
            await asyncio.sleep(LOOK_S)

    async def look(self, task: TaskRuntime) -> None:
        """Run the set if it is due, and say what its runs show."""
        assert task.probe and task.settings.probe is not None
        probe = probe_digest(task.probe)
        try:
            known = await self.offload.run(probes.runs, self.store, task.name, probe)
            # The first two runs follow each other at once: between them nothing changed.
            due = len(known) < 2 or self.clock() >= known[-1].at + task.settings.probe.every_s
            if due and await self.offload.run(self._claimed, task.name):
                try:
                    await self._asked(task, probe)
                finally:
                    await self.offload.run(self._released, task.name)
                known = await self.offload.run(probes.runs, self.store, task.name, probe)
        except (StoreError, TeacherDown, GatewayError, TimeoutError) as error:
            log("probe_failed", task=task.name, error=str(error))
            return
        if known:
            await self.offload.run(self._judge, task, known)

    def _claimed(self, task: str) -> bool:
        with self.store.transaction():
            return probes.claim(self.store, task, self.clock(), LEASE_S)

    def _released(self, task: str) -> None:
        with self.store.transaction():
            probes.release(self.store, task)

    async def _asked(self, task: TaskRuntime, probe: str) -> None:
        slots = asyncio.Semaphore(PARALLEL)

        async def one(row: Row) -> tuple[str, str] | None:
            async with slots:
                body = {
                    "temperature": 0,
                    "messages": [{"role": m.role, "content": m.content} for m in row.messages],
                }
                answer = await ask_teacher(
                    task, self.pool, self.books, Plain("/chat/completions", body)
                )
            return None if answer is None else (_key(row), answer_text(answer))

        assert task.probe
        answers = await asyncio.gather(*(one(row) for row in task.probe))
        run = ProbeRun(
            self.clock(), task.teacher.settings.model, dict(a for a in answers if a is not None)
        )

        def keep() -> None:
            with self.store.transaction():
                probes.keep(self.store, task.name, probe, run)

        await self.offload.run(keep)

    def _judge(self, task: TaskRuntime, known: Sequence[ProbeRun]) -> None:
        """Floor and change; the events are told once for each run."""
        agree = _comparator(task)
        floor = latest = change = None
        if len(known) > 1:
            floor = Comparison.of(known[0].answers, known[1].answers, agree)
        if len(known) > 2 and floor is not None:
            latest = Comparison.of(known[0].answers, known[2].answers, agree)
            change = change_p_value(floor, latest)
        task.noise = Noise(floor, latest, change, known[-1].at)
        alpha = task.settings.risk.alpha
        if floor is not None:
            self.books.metrics.self_disagreement.labels(task.name).set(floor.rate)
            if floor.lower > alpha:
                self._tell(task, known[1], EventKind.BUDGET_UNDER_NOISE, **asdict(floor))
        if latest is not None and change is not None and change < SIGNIFICANT:
            self._tell(task, known[2], EventKind.TEACHER_CHANGED, p=change, **asdict(latest))

    def _tell(self, task: TaskRuntime, run: ProbeRun, kind: EventKind, **detail: object) -> None:
        """Once for each run, whichever replica comes first."""
        mark = f"{task.name}|{kind}|{run.at}"
        if mark in self._told:
            return
        self._told.add(mark)
        with self.store.transaction():
            seen = [e for e in self.store.events(task.name) if e.kind is kind]
            if any(e.detail.get("run") == run.at for e in seen):
                return
            self.store.add_event(self.clock(), task.name, kind, run=run.at, **detail)
        self.books.metrics.events.labels(task.name, kind.value).inc()
        log("probe", task=task.name, kind=kind.value, **detail)


def probe_digest(rows: Sequence[Row]) -> str:
    """Names a probe set: another file is another set, with a floor of its own."""
    return hashlib.sha256("|".join(map(_key, rows)).encode()).hexdigest()[:16]


def _key(row: Row) -> str:
    plain = orjson.dumps([[m.role, m.content] for m in row.messages])
    return hashlib.sha256(plain).hexdigest()[:16]


def _comparator(task: TaskRuntime) -> Callable[[str, str], bool]:
    """The task's own; in place of the judge comparator, which would be asked for each pair every
    day, the plain text."""
    name = task.settings.risk.comparator
    if parse(name).kind == JUDGE:
        return text
    return comparator(name, task.judge.encoders if task.judge is not None else None)
