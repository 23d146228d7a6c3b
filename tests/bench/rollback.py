"""``make bench-rollback``: promote and roll back under load: how long it takes, and who failed.

A real gateway (three workers) before a student server that plays two versions, sixteen users who
ask without a pause. Measured is the time from before the change of the row in the store to the last
request that the old version took, and to the end of the last answer it gave: an answer under way
ends where it began. With ``--vllm`` the server is a real one, both versions have the
demo's weights, and four users ask; at the end it is killed and started again without versions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.demo.processes import Child, Children
from deploy.demo.vllm import VllmSettings, start_vllm, vllm_ready
from gateway.store.place import Place
from gateway.store.students import Kind
from tests.fakes.answers import teacher_says
from tests.fakes.process import GatewayProcess, free_port, gateway_process
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import ARTEFACTS, IN_DOMAIN, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream
from tests.fakes.versions import TASK, add_version
from tests.ml.conftest import BASE, STUDENT_PYTHON

WORKERS = 3
USERS = 16
DWELL_S = 2.0


async def run(folder: Path, changes: int, vllm: bool) -> dict[str, Any]:
    """Change who serves so often; what the users saw."""
    teacher = FakeUpstream(teacher_says("apr"))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(teacher.running())
        server = Server.start(stack.enter_context(Children(folder / "logs"))) if vllm else None
        if server is None:
            replica = FakeReplica()
            await stack.enter_async_context(replica.upstream.running())
        url = server.settings.url if server else replica.upstream.url
        place = Place(folder / "understudy.db")
        data = config_data(url, teacher.url, place.path)
        data["tasks"][0]["student"] = {"base_urls": [url], "timeout_s": 20.0 if vllm else 5.0}
        data["tasks"][0]["router"] = {"hold": "all"}
        weights = ARTEFACTS / "student/v1" if vllm else None
        names = [add_version(place, folder, Kind.LORA, weights) for _ in range(2)]
        registry = stack.enter_context(contextlib.closing(place.registry()))
        registry.promote(names[0], "bench", "first", time.time())
        gateway = await stack.enter_async_context(
            gateway_process(folder, data, {"workers": WORKERS})
        )
        return await _changes(gateway, registry, names, changes, server)


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer: when it was asked for and ended (monotonic), and who gave it."""

    begun: float
    ended: float
    student: str | None
    status: int


@dataclass(slots=True)
class Server:
    """A real vLLM."""

    children: Children
    settings: VllmSettings
    child: Child

    @classmethod
    def start(cls, children: Children) -> Server:
        """Start it and wait."""
        settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
        child = start_vllm(children, settings)
        vllm_ready(child, settings)
        return cls(children, settings, child)

    def again(self) -> float:
        """Kill it and start it on the same port; returns when it answered (monotonic)."""
        self.child.signal(signal.SIGKILL)
        self.child.popen.wait()
        self.child = start_vllm(self.children, self.settings)
        vllm_ready(self.child, self.settings)
        return time.monotonic()


async def _changes(
    gateway: GatewayProcess, registry: Any, names: list[str], changes: int, server: Server | None
) -> dict[str, Any]:
    seen: list[Seen] = []
    over = asyncio.Event()
    took: dict[str, list[float]] = {"request": [], "answer": []}

    async def user(number: int) -> None:
        async with gateway.client() as client:
            while not over.is_set():
                seen.append(await _ask(client, number))

    users = 4 if server else USERS
    restarted: dict[str, Any] = {}
    async with asyncio.TaskGroup() as group:
        for number in range(users):
            group.create_task(user(number))
        while not any(one.student == names[0] for one in seen):
            await asyncio.sleep(0.1)
        await asyncio.sleep(DWELL_S)
        for _ in range(changes):
            row = registry.deployment(TASK)
            old, new = row.live, names[1] if row.live == names[0] else names[0]
            begun = time.monotonic()
            if row.previous == new:
                await asyncio.to_thread(registry.roll_back, TASK, "bench", "back", time.time())
            else:
                await asyncio.to_thread(registry.promote, new, "bench", "on", time.time())
            await asyncio.sleep(DWELL_S)
            late = [one for one in seen if one.student == old and one.ended > begun]
            took["request"].append(max([0.0, *(one.begun - begun for one in late)]))
            took["answer"].append(max([0.0, *(one.ended - begun for one in late)]))
        if server is not None:
            restarted = await _restart(server, seen)
        over.set()
    return {
        "server": "vLLM" if server else "fake",
        "workers": WORKERS, "users": users, "changes": changes, "requests": len(seen),
        "statuses": dict(Counter(one.status for one in seen)),
        "by_teacher": sum(one.student is None for one in seen),
        "seconds_to_the_last_of_the_old_version": {
            what: {
                "p50": round(statistics.median(times), 3), "max": round(max(times), 3),
            }
            for what, times in took.items()
        },
        **restarted,
    }  # fmt: skip


async def _restart(server: Server, seen: list[Seen]) -> dict[str, Any]:
    """Kill the server under load; it comes back with no version."""
    begun = time.monotonic()
    ready = await asyncio.to_thread(server.again)
    async with asyncio.timeout(120):
        while not any(one.student is not None and one.ended > ready for one in seen):
            await asyncio.sleep(0.1)
    await asyncio.sleep(DWELL_S)
    back = min(one.ended for one in seen if one.student is not None and one.ended > ready)
    return {
        "restart": {
            "answered_by_the_teacher_meanwhile": sum(
                one.student is None for one in seen if begun < one.ended < back
            ),
            "seconds_from_health_to_the_first_student_answer": round(back - ready, 2),
        }
    }


async def _ask(client: httpx.AsyncClient, number: int) -> Seen:
    body = {
        "model": TASK, "stream": number % 2 == 0,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": IN_DOMAIN}],
    }  # fmt: skip
    begun = time.monotonic()
    answer = await client.post("/v1/chat/completions", json=body)
    by = answer.headers.get("x-understudy-served-by")
    name = answer.headers.get("x-understudy-student") if by == "student" else None
    return Seen(begun, time.monotonic(), name, answer.status_code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--vllm", action="store_true", help="A real server of students.")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="var") as name:
        print(
            json.dumps(
                asyncio.run(run(Path(name).resolve(), wanted.changes, wanted.vllm)), indent=1
            )
        )
