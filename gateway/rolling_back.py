"""Back to the version before, without being asked: when the audit refutes a promise, or a canary
fails more often than the incumbent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.deployer import Deployer
from gateway.errors import StoreError
from gateway.logs import log
from gateway.offload import Offload
from gateway.store.students import Deployment, Registry
from gateway.tasks import TaskRuntime, Tasks
from router.binomial import more_failures_p_value

EVERY_S = 1.0
SIGNIFICANT = 0.001
"""A canary that is as good as the incumbent is sent away by mistake at most so often per look at
100, 200, 400, … of its calls."""
FIRST_LOOK = 100


@dataclass(slots=True)
class Rollbacks:
    """Looks at what the registry's versions do; in one process of a gateway."""

    tasks: Tasks
    registry: Registry
    deployer: Deployer
    offload: Offload
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Any] = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.sleep(EVERY_S)
            for task in self.tasks:
                why = fault_of(task)
                if why is None:
                    continue
                try:
                    if await self._worth(task):
                        await self.offload.run(self._back, task, why)
                except StoreError as error:
                    log("not_rolled_back", task=task.name, error=str(error))

    async def _worth(self, task: TaskRuntime) -> bool:
        """Whether there is a version to go back to whose own gate is not shut: where the teacher
        has changed, every version is wrong, and a closed gate is all that helps."""
        if task.canary is not None:
            return True
        before = self.deployer.previous(task.name)
        if before is None:
            return False
        await self.deployer.auditor.look(before)
        return before.closed is None

    def _back(self, task: TaskRuntime, why: str) -> None:
        row = self.registry.deployment(task.name)
        if row is None or not _still(row, task):
            return
        self.registry.roll_back(task.name, "gateway", why, self.clock())


def fault_of(task: TaskRuntime) -> str | None:
    """Why the newest version of a task should go; None where it may stay."""
    newest = task.canary or task
    if newest.standing is not None and newest.standing.refuted is not None:
        return f"the audit refuted it: {newest.standing.refuted}"
    canary = task.canary.student if task.canary else None
    if canary is None or task.student is None or not _look_now(canary.calls):
        return None
    old = task.student
    if more_failures_p_value(canary.failures, canary.calls, old.failures, old.calls) < SIGNIFICANT:
        return f"{canary.failures} of its {canary.calls} calls failed"
    return None


def _look_now(calls: int) -> bool:
    """At doublings only: looking after every call would find a difference sooner or later."""
    return calls >= FIRST_LOOK and (calls // FIRST_LOOK) & (calls // FIRST_LOOK - 1) == 0


def _still(row: Deployment, task: TaskRuntime) -> bool:
    student = (task.canary or task).settings.student
    return student is not None and student.model == (row.canary or row.live)
