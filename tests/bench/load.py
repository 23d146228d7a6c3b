"""Load on one process, and what it cost: CPU from the kernel, latency from the client."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from deploy.demo.processes import Child

_TICKS = os.sysconf("SC_CLK_TCK")


class Refused(Exception):
    """A side did not answer a request as it should."""


@dataclass(frozen=True, slots=True)
class Side:
    """One thing that is measured."""

    name: str
    child: Child
    url: str
    texts: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "banking-intents"

    def body(self, text: str, stream: bool) -> bytes:
        """A chat completion as an application sends it."""
        chat = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        return json.dumps({**chat, "stream": True} if stream else chat).encode()


@dataclass(frozen=True, slots=True)
class Round:
    """CPU microseconds per request, requests per second, latency quantiles in ms; of streams the
    time to the first byte instead."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


def cpu_seconds(child: Child) -> float:
    """User and system time of a process group so far (proc(5))."""
    return sum(_cpu(pid) for pid in _group(child.popen.pid))


def memory_mib(child: Child) -> float:
    """Resident memory of a process group."""
    texts = [Path(f"/proc/{pid}/statm").read_text() for pid in _group(child.popen.pid)]
    return sum(int(text.split()[1]) for text in texts) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _group(leader: int) -> set[int]:
    """A process, its group, and every process that descends from them (proc(5))."""
    parents, found = dict[int, int](), {leader}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            if int(fields[2]) == leader:
                found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def load(side: Side, requests: int, connections: int, *, stream: bool = False) -> Round:
    """Send ``requests`` from so many connections."""
    bodies = [side.body(text, stream) for text in side.texts]
    headers = {"content-type": "application/json", **side.headers}
    left = iter(range(requests))
    times: list[float] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in left:
            started = time.perf_counter()
            async with session.post(
                side.url, data=bodies[number % len(bodies)], headers=headers
            ) as response:
                if stream:
                    await response.content.readany()
                    times.append((time.perf_counter() - started) * 1000)
                raw = await response.read()
                if response.status != 200:
                    raise Refused(f"{side.name}: {response.status} {raw[:200]!r}")
            if not stream:
                times.append((time.perf_counter() - started) * 1000)

    before, started = cpu_seconds(side.child), time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(connections)))
    took = time.perf_counter() - started
    spent = cpu_seconds(side.child) - before
    times.sort()
    return Round(
        spent / requests * 1e6,
        requests / took,
        times[len(times) // 2],
        times[int(len(times) * 0.99)],
    )


async def paced(side: Side, rate: int, seconds: float) -> tuple[float, float]:
    """p50 and p99 in ms of answers asked for at a steady rate, whatever the others take."""
    times: list[float] = []
    body = side.body(side.texts[0], False)
    headers = {"content-type": "application/json", **side.headers}

    async def one(session: aiohttp.ClientSession) -> None:
        started = time.perf_counter()
        async with session.post(side.url, data=body, headers=headers) as response:
            await response.read()
            assert response.status == 200
        times.append((time.perf_counter() - started) * 1000)

    connector = aiohttp.TCPConnector(limit=256)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(one(session))
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)]
