"""kill -9 under load, as often as wanted, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream

CLIENTS = 12
WORKERS = 4
ANSWERS = 10
"""At least so many a kill, on average, or it would show little."""
WHOLE = 0.25
"""Share of kills that take all processes at once; the others take one worker."""


@dataclass(slots=True)
class Witness:
    """Ids of exchanges whose end a client received, unmarked; answers that were cut."""

    ended: set[str] = field(default_factory=set)
    cut: int = 0


@dataclass(slots=True)
class Toll:
    """What the kills did. ``restarts_s``: seconds from a start after a kill until it could serve;
    the first start, which may build the encoder, is no such one."""

    witness: Witness = field(default_factory=Witness)
    kills: int = 0
    whole: int = 0
    restarts_s: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def agreeing_upstreams(store: Path) -> AsyncIterator[dict[str, Any]]:
    """Student and teacher of one mind, so that the audit keeps the gate open and the student goes
    on serving; gives the configuration."""
    student = FakeUpstream(student_says(ANSWER, pause_s=0.001))
    teacher = FakeUpstream(teacher_says("".join(ANSWER), pause_s=0.002))
    async with student.running(), teacher.running():
        yield config_data(student.url, teacher.url, store, risk={"draw_rate": 0.2})


async def one_answer(client: httpx.AsyncClient, number: int, witness: Witness) -> None:
    """Ask once, alternating sides and ways of answering.

    Raises:
        httpx.HTTPError: the answer was cut, or nobody is there.
    """
    chat = [{"role": "system", "content": SYSTEM},
            {"role": "user", "content": IN_DOMAIN if number % 2 else FAR}]  # fmt: skip
    body = {"model": "banking-intents", "messages": chat, "stream": number % 3 != 0}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        raw = b"".join([part async for part in response.aiter_raw()])
    if response.status_code == 503 and b"shutting_down" in raw:
        # A worker may see its supervisor die a moment before it dies itself.
        witness.cut += 1
        return
    assert response.status_code == 200, raw
    if body["stream"]:
        ended = b"data: [DONE]" in raw and b"understudy-captured no" not in raw
    else:
        ended = response.headers["x-understudy-captured"] == "yes"
    if ended:
        witness.ended.add(response.headers["x-request-id"])


async def client_loop(
    gateway: GatewayProcess, number: int, witness: Witness, over: asyncio.Event
) -> None:
    """Ask until it is over. A client whose worker was killed comes back by a new connection."""
    while not over.is_set():
        async with gateway.client() as client:
            try:
                for _ in range(20):
                    number += 1
                    await one_answer(client, number, witness)
                    if over.is_set():
                        return
            except httpx.HTTPError:
                witness.cut += 1
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def under_load(gateway: GatewayProcess, witness: Witness) -> AsyncIterator[None]:
    """Several clients at work meanwhile."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client_loop(gateway, number, witness, over))
        try:
            yield
        finally:
            over.set()


async def load_and_kill(gateway: GatewayProcess, seconds: float, witness: Witness) -> None:
    """Load from several clients, and a kill of everything so many seconds after an answer."""
    async with under_load(gateway, witness):
        before = len(witness.ended)
        async with asyncio.timeout(60):
            while len(witness.ended) == before:
                await asyncio.sleep(0.01)
        await asyncio.sleep(seconds)
        gateway.kill()
        await gateway.process.wait()


async def kill_often(
    folder: Path, data: dict[str, Any], kills: int, rng: random.Random, workers: int = WORKERS
) -> Toll:
    """Start, load, kill a worker or all, start again where it was all; until so many kills."""
    toll = Toll()
    while toll.kills < kills:
        began = time.monotonic()
        async with gateway_process(folder, data, {"workers": workers}) as gateway:
            if toll.kills:
                toll.restarts_s.append(time.monotonic() - began)
            async with under_load(gateway, toll.witness):
                await _kill_until_all(gateway, toll, kills, rng, workers)
    return toll


async def _kill_until_all(
    gateway: GatewayProcess, toll: Toll, kills: int, rng: random.Random, workers: int
) -> None:
    while toll.kills < kills:
        await asyncio.sleep(rng.uniform(0.2, 0.9))
        toll.kills += 1
        async with asyncio.timeout(60):  # a slow machine's workers may not have begun by then
            while len(toll.witness.ended) <= ANSWERS * toll.kills:
                await asyncio.sleep(0.02)
        if workers == 1 or rng.random() < WHOLE or toll.kills == kills:
            toll.whole += 1
            gateway.kill()
            await gateway.process.wait()
            return
        if alive := gateway.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(alive), signal.SIGKILL)


def assert_kept(path: Path, ended: set[str]) -> None:
    """Whatever a client saw the end of is there, once, and whole."""
    with contextlib.closing(SqliteStore.open(path)) as opened:
        assert opened.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        rows = list(opened.read(Filter()))
    stored = {row.id for row in rows}
    assert len(rows) == len(stored)
    missing = ended - stored
    assert not missing, f"{len(missing)} of {len(ended)} are lost"
    # No half rows: everything that is there can be read, and ends as it says.
    assert all(row.answer and row.attempts for row in rows if row.status == "complete")
