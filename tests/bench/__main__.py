"""CPU per request of the gateway against nginx, both before the same mock upstream, in turns.

``make bench``. CPU time is read from the kernel for the process under test alone, so the load
generator and the upstream do not count; rounds alternate, so that a noisy minute hits all sides.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deploy.demo.processes import Child, Children, wait_ready
from deploy.demo.task import traffic
from tests.bench.nginx import start_nginx
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, ROOT, SECRETS, config_data

ROUNDS = 5
REQUESTS = 3000
WARM_UP = 300
CONCURRENCY = 16
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Side:
    """One thing that is measured."""

    name: str
    child: Child
    url: str
    model: str
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Round:
    """CPU microseconds per request, requests per second, latency quantiles in ms."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


def cpu_seconds(child: Child) -> float:
    """User and system time of a process group so far (proc(5))."""
    return sum(_cpu(pid) for pid in _group(child.popen.pid))


def _group(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == leader:
                yield int(entry.name)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def load(side: Side, requests: int) -> Round:
    """Send ``requests`` from ``CONCURRENCY`` connections."""
    bodies = [
        json.dumps({"model": side.model, "messages": [{"role": "user", "content": t}]}).encode()
        for t in side.texts
    ]
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    left = iter(range(requests))
    times: list[float] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in left:
            started = time.perf_counter()
            async with session.post(
                side.url, data=bodies[number % len(bodies)], headers=headers
            ) as response:
                raw = await response.read()
                assert response.status == 200, raw
            times.append((time.perf_counter() - started) * 1000)

    before, started = cpu_seconds(side.child), time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(CONCURRENCY)))
    took = time.perf_counter() - started
    spent = cpu_seconds(side.child) - before
    times.sort()
    return Round(
        spent / requests * 1e6,
        requests / took,
        times[len(times) // 2],
        times[int(len(times) * 0.99)],
    )


def gateway(children: Children, name: str, folder: Path, mock: str, **task: Any) -> Child:
    """A gateway process with its own store."""
    place = folder / name
    place.mkdir()
    data = config_data(f"{mock}/student/v1", f"{mock}/v1", place / "x.db", **task)
    data["listen"] = {"port": free_port()}
    (place / "c.yaml").write_text(yaml.safe_dump(data))
    child = children.start(
        name,
        [sys.executable, "-m", "gateway.cli", "serve", "--config", str(place / "c.yaml")],
        SECRETS,
    )
    wait_ready(child, f"http://127.0.0.1:{data['listen']['port']}/readyz", 60)
    return child


def port_of(folder: Path, name: str) -> int:
    """The port that a gateway was given."""
    return int(yaml.safe_load((folder / name / "c.yaml").read_text())["listen"]["port"])


def sides(children: Children, folder: Path) -> list[Side]:
    """Everything under test, started."""
    port = free_port()
    mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
    url = f"http://127.0.0.1:{port}"
    wait_ready(mock, f"{url}/", 20)
    proxy, proxy_url = start_nginx(children, folder, url)
    floor_port = free_port()
    floor_url = f"http://127.0.0.1:{floor_port}"
    floor = children.start(
        "bare", [sys.executable, "-m", "tests.bench.bare", str(floor_port), url], {}
    )
    wait_ready(floor, f"{floor_url}/healthz", 20)
    off = gateway(children, "off", folder, url, student=None, router=None)
    on = gateway(children, "on", folder, url)

    def ours(name: str) -> str:
        return f"http://127.0.0.1:{port_of(folder, name)}/v1/chat/completions"

    task = "banking-intents"
    # Held-out utterances in the demo's mix; the mock answers each of them surely.
    mixed = [u.text for u in traffic(ROOT / "tests/data/clinc150", 400)]
    return [
        Side("nginx", proxy, f"{proxy_url}/v1/chat/completions", task, [IN_DOMAIN]),
        Side(
            "FastAPI + aiohttp, bare", floor, f"{floor_url}/v1/chat/completions", task, [IN_DOMAIN]
        ),
        Side("router off, captured", off, ours("off"), task, [IN_DOMAIN]),
        Side("router on, mixed traffic", on, ours("on"), task, mixed),
        Side("router on, student", on, ours("on"), task, [IN_DOMAIN]),
        Side("router on, ood", on, ours("on"), task, [FAR]),
    ]


def main() -> None:
    """Measure, and print one line a side and one JSON object."""
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        under_test = sides(children, Path(name))
        rounds: dict[str, list[Round]] = {side.name: [] for side in under_test}
        for side in under_test:
            asyncio.run(load(side, WARM_UP))
        for _ in range(ROUNDS):
            for side in under_test:
                rounds[side.name].append(asyncio.run(load(side, REQUESTS)))
    report(rounds)


def report(rounds: dict[str, list[Round]]) -> None:
    """Medians over rounds; the ratio to nginx is the median of the paired ratios."""
    print(f"{'side':30} {'CPU us':>15} {'x nginx':>8} {'req/s':>7} {'p50 ms':>7} {'p99 ms':>7}")
    result = {}
    for name, values in rounds.items():
        ratios = [v.cpu_us / n.cpu_us for v, n in zip(values, rounds["nginx"], strict=True)]
        row = {
            "cpu_us": round(statistics.median(v.cpu_us for v in values), 1),
            "cpu_us_range": [round(f(v.cpu_us for v in values), 1) for f in (min, max)],
            "x_nginx": round(statistics.median(ratios), 2),
            "rate": round(statistics.median(v.rate for v in values), 1),
            "p50_ms": round(statistics.median(v.p50_ms for v in values), 2),
            "p99_ms": round(statistics.median(v.p99_ms for v in values), 2),
        }
        result[name] = row
        print(f"{name:30} {row['cpu_us']:>15} {row['x_nginx']:>8} {row['rate']:>7} "
              f"{row['p50_ms']:>7} {row['p99_ms']:>7}")  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
