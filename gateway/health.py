"""Student replicas asked for one token now and then: the only health that says that the adapter
is there and decodes.

A replica that restarted answers on its port, and even on ``/health``, without the adapter that it
should serve; live requests would find out one by one. What a probe learns goes to the replica's
breaker, so a half-open one is tried here and not on a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.api.request import Api
from gateway.http1 import Pool
from gateway.metrics import Metrics
from gateway.streams.whole import whole_answer
from gateway.tasks import StudentRuntime, Tasks
from gateway.upstream import Timeouts, Upstream, UpstreamError, monotonic

TICK_S = 1.0


@dataclass(slots=True)
class HealthChecker:
    """Looks at every replica that nobody is using, each in its own time."""

    tasks: Tasks
    pool: Pool
    metrics: Metrics
    sleep: Callable[[float], Any] = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled."""
        asked: dict[str, float] = {}
        while True:
            await self.sleep(TICK_S)
            students = [task.student for task in self.tasks.arms() if task.student is not None]
            due = [pair for student in students for pair in _due(student, asked)]
            await asyncio.gather(*(self.probe(student, upstream) for student, upstream in due))

    async def probe(self, student: StudentRuntime, upstream: Upstream) -> bool:
        """One token from one replica; its breaker is told."""
        limit = student.settings.timeout_s
        body = {"model": student.settings.served_model, "max_tokens": 1,
                "messages": [{"role": "user", "content": "ok"}]}  # fmt: skip
        well = False
        try:
            async with asyncio.timeout(limit):
                response = await upstream.post(
                    self.pool, Api.CHAT.path, orjson.dumps(body), Timeouts(limit, limit, limit)
                )
                async with response:
                    whole = whole_answer(Api.CHAT, await response.read())
                    well = response.status == 200 and whole is not None
        except (UpstreamError, TimeoutError):
            well = False
        except asyncio.CancelledError:
            upstream.breaker.abandoned()
            raise
        if well:
            upstream.breaker.succeeded()
        else:
            upstream.breaker.failed(monotonic())
        self.metrics.breaker(upstream.name, not upstream.breaker.closed)
        return well


def _due(student: StudentRuntime, asked: dict[str, float]) -> list[tuple[StudentRuntime, Upstream]]:
    """Idle replicas whose time has come; of those with an open breaker, what may be tried."""
    now, due = monotonic(), []
    for upstream in student.upstreams:
        last = asked.setdefault(upstream.name, now)
        if student.folder is not None and upstream.name not in student.ready:
            continue  # the reconciler's business
        wanted = not upstream.breaker.closed or now - last >= student.settings.health_every_s
        if wanted and not upstream.in_flight and upstream.ready(now):
            asked[upstream.name] = now
            due.append((student, upstream))
    return due
