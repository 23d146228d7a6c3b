"""Deletes what a task keeps no longer (``retention_days``), a little at a time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.store.keeping import AT_ONCE, Keeping
from gateway.tasks import Tasks

EVERY_S = 600.0
BREATH_S = 0.05
"""Between two deletions, for those who write answers."""
DAY_S = 86_400.0
JUMP_S = 3600.0


@dataclass(slots=True)
class Sweeper:
    """A worker beside the requests, in one process over a store."""

    tasks: Tasks
    store: Keeping
    metrics: Metrics
    offload: Offload
    _began: tuple[float, float] = field(default_factory=lambda: (time.time(), time.monotonic()))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.sweep(time.time(), time.monotonic())
            await asyncio.sleep(EVERY_S)

    async def sweep(self, now: float, monotonic: float) -> None:
        """Once. A wall clock that jumped since the start deletes nothing: a date in the future
        would make everything old."""
        if abs((now - self._began[0]) - (monotonic - self._began[1])) > JUMP_S:
            log("clock_jumped", seconds=round(now - self._began[0] - monotonic + self._began[1]))
            self._began = now, monotonic
            return
        for task in self.tasks:
            days = task.settings.retention_days
            if days is not None:
                await self._sweep_task(task.name, now - days * DAY_S)

    async def _sweep_task(self, task: str, before: float) -> None:
        deleted = AT_ONCE
        while deleted == AT_ONCE:
            try:
                deleted = await self.offload.run(self.store.delete_before, task, before)
            except StoreError as error:
                log("retention_failed", task=task, error=str(error))
                return
            self.metrics.retired.labels(task).inc(deleted)
            await asyncio.sleep(BREATH_S)
