"""``make bench-rollback``: promote and roll back under load: how long it takes, and who failed.

A real gateway (three workers) before a student server that plays two versions, sixteen users who
ask without a pause. Measured is the time from before the change of the row in the store to the last
answer that the old alias gave.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from gateway.store.place import Place
from gateway.store.students import Kind
from tests.fakes.answers import teacher_says
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import IN_DOMAIN, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream
from tests.fakes.versions import TASK, add_version

WORKERS = 3
USERS = 16
DWELL_S = 2.0


async def run(folder: Path, changes: int) -> dict[str, Any]:
    """Change who serves so often; what the users saw."""
    replica, teacher = FakeReplica(), FakeUpstream(teacher_says("apr"))
    async with replica.upstream.running(), teacher.running():
        place = Place(folder / "understudy.db")
        data = config_data(replica.upstream.url, teacher.url, place.path)
        data["tasks"][0]["student"] = {"base_urls": [replica.upstream.url], "timeout_s": 5.0}
        data["tasks"][0]["router"] = {"hold": "all"}
        names = [add_version(place, folder, Kind.LORA) for _ in range(2)]
        with contextlib.closing(place.registry()) as registry:
            registry.promote(names[0], "bench", "first", time.time())
            async with gateway_process(folder, data, {"workers": WORKERS}) as gateway:
                return await _changes(gateway, registry, names, changes)


async def _changes(
    gateway: GatewayProcess, registry: Any, names: list[str], changes: int
) -> dict[str, Any]:
    seen: list[tuple[float, str | None, int]] = []
    over = asyncio.Event()
    took: list[float] = []

    async def user(number: int) -> None:
        async with gateway.client() as client:
            while not over.is_set():
                seen.append(await _ask(client, number))

    async with asyncio.TaskGroup() as group:
        for number in range(USERS):
            group.create_task(user(number))
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
            late = [at for at, name, _ in seen if name == old and at > begun]
            took.append(max(late, default=begun) - begun)
        over.set()
    return {
        "workers": WORKERS, "users": USERS, "changes": changes, "requests": len(seen),
        "statuses": dict(Counter(status for _, _, status in seen)),
        "by_teacher": sum(name is None for _, name, _ in seen),
        "seconds_to_the_last_old_answer": {
            "p50": round(statistics.median(took), 3), "max": round(max(took), 3),
        },
    }  # fmt: skip


async def _ask(client: httpx.AsyncClient, number: int) -> tuple[float, str | None, int]:
    body = {
        "model": TASK, "stream": number % 2 == 0,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": IN_DOMAIN}],
    }  # fmt: skip
    answer = await client.post("/v1/chat/completions", json=body)
    by = answer.headers.get("x-understudy-served-by")
    name = answer.headers.get("x-understudy-student") if by == "student" else None
    return time.monotonic(), name, answer.status_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=20)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="var") as name:
        print(json.dumps(asyncio.run(run(Path(name).resolve(), wanted.changes)), indent=1))
