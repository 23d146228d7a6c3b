"""Postgres away for minutes under load: ``make bench-outage MINUTES=10``.

Serving must go on at its own pace, and everything that was acknowledged must arrive once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.postgres import Postgres, postgres
from tests.fakes.process import GatewayProcess, gateway_process
from tests.faults.kills import Witness, agreeing_upstreams, one_answer

URL = "POSTGRES_URL"
BEFORE_S = 20.0
CLIENTS = 4
PAUSE_S = 0.02


@dataclass(slots=True)
class Seen:
    """Answers and how long each took, in ms, while Postgres was there and while it was not."""

    witness: Witness = field(default_factory=Witness)
    times: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    there: bool = True


def main() -> None:
    """Stop it, start it, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(dir="var") as name, postgres() as server:
        asyncio.run(_run(Path(name).resolve(), server, minutes * 60))


async def _run(folder: Path, server: Postgres, seconds: float) -> None:
    path, seen, over = folder / "understudy.db", Seen(), asyncio.Event()
    async with agreeing_upstreams(path) as data:
        data["postgres"] = {"url_env": URL}
        async with gateway_process(folder, data, env={URL: server.url}) as gateway:
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(_client(gateway, number, seen, over))
                await asyncio.sleep(BEFORE_S)
                seen.there = False
                server.stop()
                await asyncio.sleep(seconds)
                waiting = _outbox(path)
                server.start()
                seen.there = True
                began = time.monotonic()
                while _outbox(path) > 200:
                    await asyncio.sleep(0.2)
                shipped = time.monotonic() - began
                over.set()
            while _outbox(path):
                await asyncio.sleep(0.1)
    stored = [row[0] for row in server.execute("SELECT id FROM exchanges")]
    assert len(stored) == len(set(stored))
    assert not seen.witness.ended - set(stored)
    assert seen.witness.cut == 0
    for there, times in seen.times.items():
        times.sort()
        print(f"Postgres {'there' if there else 'away '}: {len(times)} answers, "
              f"p50 {statistics.median(times):.1f} ms, "
              f"p99 {times[int(len(times) * 0.99)]:.1f} ms")  # fmt: skip
    print(
        f"away for {seconds:.0f} s: {waiting} exchanges waited, shipped in {shipped:.1f} s under "
        f"load; all {len(seen.witness.ended)} acknowledged arrived once, no request failed"
    )


async def _client(gateway: GatewayProcess, number: int, seen: Seen, over: asyncio.Event) -> None:
    async with gateway.client() as client:
        while not over.is_set():
            number += 1
            there, started = seen.there, time.perf_counter()
            try:
                await one_answer(client, number, seen.witness)
            except httpx.HTTPError:
                seen.witness.cut += 1
            seen.times[there].append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(PAUSE_S)


def _outbox(path: Path) -> int:
    with contextlib.closing(SqliteStore.read_only(path)) as outbox:
        return outbox.count(Filter())


if __name__ == "__main__":
    main()
