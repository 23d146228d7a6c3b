"""Work beside the requests: owned, logged when it dies, cancelled and awaited at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.logs import log


class Worker(Protocol):
    """Something that runs beside the requests until it is cancelled."""

    async def run(self) -> None:
        """Until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Reloader:
    """Takes a changed configuration over when it is asked to."""

    wanted: asyncio.Event
    reload: Callable[[], Awaitable[Any]]

    async def run(self) -> None:
        """Until cancelled; asked twice meanwhile is asked once."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            await self.reload()


async def logged(worker: Worker) -> None:
    """Run a worker; its death is in the log."""
    try:
        await worker.run()
    except Exception as error:
        log("worker_stopped", worker=type(worker).__name__, error=repr(error))
        raise


async def stopped(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
