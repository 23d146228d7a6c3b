"""Student replicas against the registry: a version gets traffic only where it is loaded.

Adapters that were loaded while a server runs are gone when it restarts, and its ``/health`` does
not tell. So every replica is asked for its list of models every few seconds; what is missing is
loaded again, and used once it answered a probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.health import HealthChecker
from gateway.http1 import Pool
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.tasks import StudentRuntime
from gateway.upstream import MALFORMED, Timeouts, Upstream, UpstreamError, monotonic

EVERY_S = 2.0
LIST_S = 2.0
LOAD_S = 120.0
_LISTING = Timeouts(LIST_S, LIST_S, LIST_S)


@dataclass(slots=True)
class Reconciler:
    """Looks after the replicas of every registered version."""

    students: Callable[[], Iterator[StudentRuntime]]
    pool: Pool
    health: HealthChecker
    metrics: Metrics
    sleep: Callable[[float], Any] = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.sleep(EVERY_S)
            await asyncio.gather(*(self.look(student) for student in self.students()))

    async def look(self, student: StudentRuntime) -> None:
        """Bring every replica of a version to where it can be used, or out of use."""
        await asyncio.gather(*(self._replica(student, up) for up in student.upstreams))

    async def _replica(self, student: StudentRuntime, upstream: Upstream) -> None:
        name = student.settings.served_model
        listed = await self._listed(upstream)
        if listed is None or name not in listed:
            if upstream.name in student.ready:
                log("replica_lost", upstream=upstream.name, student=name, answers=bool(listed))
            student.lost(upstream)
            if listed is None or not await self._loaded(student, upstream):
                return
        waits = upstream.name not in student.ready and upstream.ready(monotonic())
        if waits and await self.health.probe(student, upstream):
            student.ready.add(upstream.name)
            log("replica_ready", upstream=upstream.name, student=name)
        self.metrics.replicas_ready.labels(name.partition("@")[0], name).set(len(student.ready))

    async def _listed(self, upstream: Upstream) -> set[str] | None:
        """Names of the models that a replica serves; None where it does not answer."""
        try:
            async with asyncio.timeout(LIST_S):
                async with await upstream.get(self.pool, "/models", _LISTING) as response:
                    body = orjson.loads(await response.read())
                    return {str(model["id"]) for model in body["data"]}
        except (UpstreamError, TimeoutError, *MALFORMED):
            return None

    async def _loaded(self, student: StudentRuntime, upstream: Upstream) -> bool:
        """Ask a replica to load the version from its folder.

        Source: docs.vllm.ai/en/latest/features/lora.html (dynamically serving LoRA adapters).
        """
        name = student.settings.served_model
        body = orjson.dumps({"lora_name": name, "lora_path": str(student.folder)})
        limits = Timeouts(LIST_S, LOAD_S, LOAD_S)
        try:
            response = await upstream.post(self.pool, "/load_lora_adapter", body, limits)
            async with response:
                said = await response.read()
        except UpstreamError as error:
            log("replica_not_loaded", upstream=upstream.name, student=name, error=str(error))
            return False
        if response.status == 200 or b"already been loaded" in said:
            return True
        why = said[:200].decode(errors="replace")
        log("replica_not_loaded", upstream=upstream.name, student=name, error=why)
        return False
