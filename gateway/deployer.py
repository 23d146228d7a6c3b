"""Follow the registry: which student version answers for each task, in every process.

A promotion or a rollback is one row in the store. Every process looks at it several times a
second, makes the version ready beside the one that serves, and then puts one task in the place of
another: requests under way end on the version that they began with.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from gateway import catalogue
from gateway.auditor import Auditor
from gateway.build import bound, load_judge
from gateway.deployed import as_deployed
from gateway.errors import ConfigError, StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.settings import Config
from gateway.store.students import Deployment, Registry, Version
from gateway.task_settings import Task
from gateway.tasks import StudentRuntime, TaskRuntime, Tasks
from router.encoder import Encoders, load_encoders
from router.errors import RouterError

POLL_S = 0.25
RETRY_S = 5.0
"""Seconds until a version that could not be taken over is tried again."""
READY_S = 2.0
"""Longest wait for a replica of a new version before it is served: meanwhile the old one is."""


@dataclass(slots=True)
class Deployer:
    """Keeps tasks at what the registry says. ``ready`` makes a version's replicas ready."""

    tasks: Tasks
    registry: Registry
    auditor: Auditor
    metrics: Metrics
    offload: Offload
    config: Callable[[], Config]
    secrets: Callable[[], Mapping[str, str]]
    encoders: Encoders | None = None
    ready: Callable[[StudentRuntime], Awaitable[None]] | None = None
    _arms: dict[str, TaskRuntime] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)
    _previous: dict[str, str | None] = field(default_factory=dict)

    async def run(self) -> None:
        """Until cancelled. A registry that cannot be read leaves everything as it is."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Follow every task whose row has changed."""
        if not any(settings.registered for settings in self.config().tasks):
            return
        try:
            revisions = await self.offload.run(self.registry.revisions)
        except StoreError as error:
            log("registry_unreadable", error=str(error))
            return
        for settings in self.config().tasks:
            task = self.tasks.get(settings.name)
            wanted = revisions.get(settings.name, 0)
            if task is None or not settings.registered or task.revision == wanted:
                continue
            if time.monotonic() < self._failed.get(settings.name, 0.0):
                continue
            await self._follow(settings, task)

    async def taken_over(self, settings: Task, fresh: TaskRuntime) -> TaskRuntime:
        """A task that was built from a changed configuration, at what the registry says now."""
        if not settings.registered:
            return fresh
        for name in [n for n, arm in self._arms.items() if arm.name == settings.name]:
            del self._arms[name]
        try:
            return await self._deployed(settings, fresh) or fresh
        except (StoreError, ConfigError, RouterError, OSError) as error:
            log("deploy_failed", task=settings.name, error=str(error))
            return fresh

    def students(self) -> Iterator[StudentRuntime]:
        """The registered versions whose replicas have to be ready: those that serve, and the one
        that a rollback would bring back."""
        for arm in list(self._arms.values()):
            if arm.student is not None:
                yield arm.student

    def previous(self, task: str) -> TaskRuntime | None:
        """The version that a rollback would bring back, bound and ready."""
        found = self._previous.get(task)
        return self._arms.get(found) if found is not None else None

    async def _follow(self, settings: Task, task: TaskRuntime) -> None:
        before = list(self.tasks.arms())
        try:
            found = await self._deployed(settings, task)
        except (StoreError, ConfigError, RouterError, OSError) as error:
            self._failed[settings.name] = time.monotonic() + RETRY_S
            self.metrics.deployments.labels(settings.name, "failed").inc()
            log("deploy_failed", task=settings.name, error=str(error))
            return
        if found is None:
            return
        self.tasks.put(found)
        catalogue.forget_gone(before, list(self.tasks.arms()), self.metrics)
        catalogue.announce([found], self.metrics)
        self.metrics.deployments.labels(settings.name, "taken").inc()
        canary = found.canary.settings.student if found.canary else None
        student = found.settings.student
        log(
            "deployed", task=found.name, student=student.model if student else None,
            canary=canary.model if canary else None, revision=found.revision,
        )  # fmt: skip

    async def _deployed(self, settings: Task, task: TaskRuntime) -> TaskRuntime | None:
        """A new runtime of the task; None where the registry has no row for it.

        Raises:
            StoreError, ConfigError, RouterError, OSError: the version cannot be served here.
        """
        row, versions = await self.offload.run(_looked_up, self.registry, settings.name)
        if row is None or row.live is None:
            return None
        live = await self._arm(settings, versions[row.live], task, "incumbent")
        live.canary, live.canary_share = None, row.canary_share
        if row.canary is not None:
            live.canary = await self._arm(settings, versions[row.canary], task, "canary")
        live.revision = row.revision
        self._previous[settings.name] = row.previous
        keep = {row.live, row.canary, row.previous}
        if row.previous is not None and row.previous not in self._arms and row.previous in versions:
            await self._arm(settings, versions[row.previous], task, "incumbent")
        for name in [n for n, a in self._arms.items() if a.name == task.name and n not in keep]:
            del self._arms[name]
        return live

    async def _arm(
        self, settings: Task, version: Version, task: TaskRuntime, arm: str
    ) -> TaskRuntime:
        """One version, bound and ready, always a runtime of its own: what requests under way hold
        is not changed under them."""
        wanted = as_deployed(settings, version)
        known = self._arms.get(version.name)
        judge = known.judge if known is not None else None
        if judge is None:
            encoders = await self._loaded_encoders()
            judge = await asyncio.to_thread(load_judge, wanted, encoders)
        found = bound(wanted, judge, self.secrets())
        found.teacher, found.probe, found.noise, found.arm = (
            task.teacher, task.probe, task.noise, arm,
        )  # fmt: skip
        if known is not None and known.student is not None:
            found.student = known.student
        assert found.student is not None
        found.student.folder = version.folder
        if not found.student.ready:
            await self._made_ready(found.student)
        await self.auditor.look(found)
        self._arms[version.name] = found
        return found

    async def _made_ready(self, student: StudentRuntime) -> None:
        if self.ready is None:
            return
        work = asyncio.ensure_future(self.ready(student))
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.shield(work)
        except TimeoutError:
            log("replicas_not_ready", student=student.settings.model)
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _loaded_encoders(self) -> Encoders:
        if self.encoders is None:
            load = functools.partial(load_encoders, self.config().cache)
            self.encoders = await asyncio.to_thread(load)
        return self.encoders


def _looked_up(registry: Registry, task: str) -> tuple[Deployment | None, Mapping[str, Version]]:
    return registry.deployment(task), {v.name: v for v in registry.versions(task)}
