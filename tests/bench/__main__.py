"""The gateway beside nginx, a bare pass-through and other gateways, before one mock upstream.

``make bench``. CPU time is read from the kernel for the process under test alone, so the load
generator and the upstream do not count; rounds alternate, so that a noisy minute hits all sides.
``--no-peers`` leaves out what has to be installed first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deploy.demo.processes import Child, Children, wait_ready
from tests.bench.load import Refused, Round, Side, load, memory_mib
from tests.bench.mock import CHUNKS, LONG, LONG_CHUNKS, PARK, mixed
from tests.bench.nginx import start_nginx
from tests.bench.peers import peers
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, ROOT, SECRETS, config_data

ROUNDS = 5
REQUESTS = 2000
SLOW = {"LiteLLM proxy": 10}
"""Whose rounds have fewer requests, or they would take half an hour."""
CONNECTIONS = (1, 16, 128)
STREAMS = 200
OPEN = 1000
BARE = "bare FastAPI + aiohttp"
OFF = "ours, router off"
CHAT = "/v1/chat/completions"


def gateway(
    children: Children,
    name: str,
    folder: Path,
    mock: str,
    module: str = "gateway.cli",
    workers: int = 1,
    tree: Path = ROOT,
    **task: Any,
) -> tuple[Child, str]:
    """A gateway process with its own store, and its URL; its code is that of ``tree``."""
    place = folder / name
    place.mkdir()
    data = config_data(f"{mock}/student/v1", f"{mock}/v1", place / "x.db", **task)
    data["listen"] = {"port": free_port(), "workers": workers}
    data["limits"] = {"max_in_flight": 4 * OPEN}
    (place / "c.yaml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-P", "-m", module, "serve", "--config", str(place / "c.yaml")]
    child = children.start(name, command, {**SECRETS, "PYTHONPATH": str(tree)})
    url = f"http://127.0.0.1:{data['listen']['port']}"
    wait_ready(child, f"{url}/readyz", 60)
    return child, f"{url}{CHAT}"


def floor(children: Children, upstream: str) -> Side:
    """FastAPI and aiohttp, bytes through."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", str(port), upstream]
    child = children.start("bare", command, {})
    url = f"http://127.0.0.1:{port}"
    wait_ready(child, f"{url}/healthz", 20)
    return Side(BARE, child, f"{url}{CHAT}", [FAR])


def ours(children: Children, folder: Path, upstream: str) -> list[Side]:
    """The gateway in its parts: without a judge, with each tier, remembered or not."""
    off: dict[str, Any] = {"student": None, "router": None}
    forgets: dict[str, Any] = {"router": {"remember": 0}}
    plain = gateway(children, "off", folder, upstream, **off)
    loose = gateway(children, "no-capture", folder, upstream, "tests.bench.nocapture", **off)
    fresh = gateway(children, "fresh", folder, upstream, **forgets)
    kept = gateway(children, "kept", folder, upstream)
    auth = {"authorization": f"Bearer {KEY}"}
    return [
        Side("ours, router off, capture off", *loose, [FAR], auth),
        Side(OFF, *plain, [FAR], auth),
        Side("ours, tier 1 (plainly out)", *fresh, [FAR], auth),
        Side("ours, judgement remembered (out)", *kept, [FAR], auth),
        Side("ours, tiers 1 and 2, student", *fresh, [IN_DOMAIN], auth),
        Side("ours, judgement remembered, student", *kept, [IN_DOMAIN], auth),
        Side("ours, mixed traffic", *fresh, mixed(), auth),
        Side("ours, mixed traffic, remembered", *kept, mixed(), auth),
    ]


def main() -> None:
    """Measure, and print the tables and one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        folder, port = Path(name), free_port()
        mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
        url = f"http://127.0.0.1:{port}"
        wait_ready(mock, f"{url}/", 20)
        proxy, proxy_url = start_nginx(children, folder, url)
        all_sides = [
            Side("nginx", proxy, f"{proxy_url}{CHAT}", [FAR]),
            floor(children, url),
            *ours(children, folder, url),
            *([] if chosen.no_peers else peers(children, folder, url)),
        ]
        whole = measure_whole(all_sides, chosen.rounds)
        streamed = [s for s in all_sides if not s.name.startswith("ours") or s.name == OFF]
        streams = measure_streams(streamed, chosen.rounds)
        memory = {side.name: asyncio.run(_parked_or_nan(side)) for side in streamed}
    report_whole(whole)
    report_streams(streams, memory)
    print(json.dumps({"whole": _json(whole), "streams": _json(streams), "memory_mib": memory}))


Table = dict[str, dict[int, list[Round]]]


def measure_whole(sides: Sequence[Side], rounds: int) -> Table:
    """JSON answers at each number of connections, sides in turn."""
    table: Table = {side.name: {c: [] for c in CONNECTIONS} for side in sides}
    for side in sides:
        asyncio.run(load(side, 300 // SLOW.get(side.name, 1), 16))
    for connections in CONNECTIONS:
        for _ in range(rounds):
            for side in sides:
                requests = REQUESTS // SLOW.get(side.name, 1)
                try:
                    measured = asyncio.run(load(side, requests, connections))
                except Refused as refused:
                    print(f"c={connections}: {refused}", file=sys.stderr)
                    continue
                table[side.name][connections].append(measured)
    return table


def measure_streams(sides: Sequence[Side], rounds: int) -> Table:
    """Streams at 16 connections, by their number of chunks: of two lengths, so that what a chunk
    costs can be told from what a stream's beginning and end do."""
    table: Table = {side.name: {CHUNKS: [], LONG_CHUNKS: []} for side in sides}
    for _ in range(rounds):
        for side in sides:
            count = STREAMS // (4 if side.name in SLOW else 1)
            long = replace(side, texts=[LONG])
            try:
                pair = [
                    asyncio.run(load(side, count, 16, stream=True)),
                    asyncio.run(load(long, count * CHUNKS // LONG_CHUNKS, 16, stream=True)),
                ]
            except Refused as refused:
                print(f"streams: {refused}", file=sys.stderr)
                continue
            for chunks, found in zip((CHUNKS, LONG_CHUNKS), pair, strict=True):
                table[side.name][chunks].append(found)
    return table


async def _parked_or_nan(side: Side) -> float:
    try:
        return await parked(side)
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"open streams: {side.name}: {error!r}", file=sys.stderr)
        return float("nan")


async def parked(side: Side) -> float:
    """MiB that ``OPEN`` streams take which have begun and say no more."""
    before = memory_mib(side.child)
    headers = {"content-type": "application/json", **side.headers, "x-understudy-hold": "1"}
    body = side.body(PARK, stream=True)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def opened() -> aiohttp.ClientResponse:
            response = await session.post(side.url, data=body, headers=headers)
            await response.content.readany()
            return response

        responses: list[aiohttp.ClientResponse] = []
        async with asyncio.timeout(120):
            while len(responses) < OPEN:
                responses += await asyncio.gather(*(opened() for _ in range(100)))
        after = memory_mib(side.child)
        for response in responses:
            response.close()
    return round(after - before, 1)


def _median(rounds: Sequence[Round], of: Callable[[Round], float]) -> float:
    """NaN where no round could be measured."""
    return statistics.median(map(of, rounds)) if rounds else float("nan")


def report_whole(table: Table) -> None:
    """Medians over rounds; the ratio to the bare pass-through is the median of paired ratios."""
    head = ("CPU us", 7), ("min", 6), ("max", 6), ("x bare", 7), ("req/s/core", 10)
    print(f"{'side':38}" + "".join(f" {name:>{width}}" for name, width in head), end="")
    print("".join(f" {f'p50 c={c}':>9} {f'p99 c={c}':>9}" for c in CONNECTIONS))
    for name, by in table.items():
        middle = by[16]
        if not middle:
            print(f"{name:38} not measured")
            continue
        costs = [r.cpu_us for r in middle]
        # Where a side refused in some round, the pairs are of neighbouring rounds.
        ratios = [r.cpu_us / b.cpu_us for r, b in zip(middle, table[BARE][16], strict=False)]
        cpu = statistics.median(costs)
        print(f"{name:38} {cpu:7.0f} {min(costs):6.0f} {max(costs):6.0f} "
              f"{statistics.median(ratios):7.2f} {1e6 / cpu:10.0f}", end="")  # fmt: skip
        for c in CONNECTIONS:
            p50, p99 = _median(by[c], lambda r: r.p50_ms), _median(by[c], lambda r: r.p99_ms)
            print(f" {p50:9.2f} {p99:9.2f}", end="")
        print()


def per_chunk(short: Round, long: Round) -> float:
    """CPU microseconds of one more chunk in a stream."""
    return (long.cpu_us - short.cpu_us) / (LONG_CHUNKS - CHUNKS)


def report_streams(table: Table, memory: dict[str, float]) -> None:
    """CPU per relayed chunk and of a stream besides, both together in a stream of ``CHUNKS``, first
    byte, and memory of open streams. Medians of what each round's two lengths give."""
    print(f"\n{'streams':38} {'CPU us/chunk':>12} {'us/stream':>10} {f'all / {CHUNKS}':>10} "
          f"{'first p50':>10} {'p99':>8} {'MiB/1000':>9}")  # fmt: skip
    for name, by in table.items():
        short = by[CHUNKS]
        if not short:
            print(f"{name:38} not measured, {memory[name]:.1f} MiB for {OPEN} open")
            continue
        chunk = list(map(per_chunk, short, by[LONG_CHUNKS]))
        besides = [s.cpu_us - CHUNKS * c for s, c in zip(short, chunk, strict=True)]
        print(f"{name:38} {statistics.median(chunk):12.1f} {statistics.median(besides):10.0f} "
              f"{_median(short, lambda r: r.cpu_us / CHUNKS):10.1f} "
              f"{_median(short, lambda r: r.p50_ms):10.2f} "
              f"{_median(short, lambda r: r.p99_ms):8.2f} {memory[name]:9.1f}")  # fmt: skip


def _json(table: Table) -> Any:
    return {
        name: {connections: [asdict(r) for r in rounds] for connections, rounds in by.items()}
        for name, by in table.items()
    }


if __name__ == "__main__":
    main()
