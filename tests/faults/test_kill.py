"""kill -9 under load: whatever a client saw the end of is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream

KILLS = 20
CLIENTS = 12


@dataclass(slots=True)
class Witness:
    """Ids of exchanges whose end a client received, unmarked."""

    ended: set[str] = field(default_factory=set)
    cut: int = 0


async def client_loop(client: httpx.AsyncClient, number: int, witness: Witness) -> None:
    """Ask until the gateway is gone; alternate sides and ways of answering."""
    turn = number
    while True:
        turn += 1
        chat = [{"role": "system", "content": SYSTEM},
                {"role": "user", "content": IN_DOMAIN if turn % 2 else FAR}]  # fmt: skip
        body = {"model": "banking-intents", "messages": chat, "stream": turn % 3 != 0}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                raw = b"".join([part async for part in response.aiter_raw()])
        except httpx.HTTPError:
            witness.cut += 1
            return
        assert response.status_code == 200, raw
        if body["stream"]:
            ended = b"data: [DONE]" in raw and b"understudy-captured no" not in raw
        else:
            ended = response.headers["x-understudy-captured"] == "yes"
        if ended:
            witness.ended.add(response.headers["x-request-id"])


async def load_and_kill(gateway: GatewayProcess, seconds: float, witness: Witness) -> None:
    """Load from several clients, and a kill in the middle of it."""
    async with gateway.client() as client:
        loops = [asyncio.create_task(client_loop(client, n, witness)) for n in range(CLIENTS)]
        await asyncio.sleep(seconds)
        gateway.kill()
        await gateway.process.wait()
        await asyncio.gather(*loops)


async def audit_settles(path: Path) -> None:
    """Every draw gets its second answer, and each label counts once, however often the process
    died between reading and writing."""
    expected = (
        "SELECT count(*) FROM draws d JOIN exchanges e ON e.id = d.exchange_id "
        "WHERE e.served_by = 'student' AND e.reason = 'in_distribution' AND d.state = 'done'"
    )
    with contextlib.closing(SqliteStore.read_only(path)) as store:
        for _ in range(1200):
            pending = store.pending_draws(1)
            (labels, errors, epochs) = store.connection.execute(
                "SELECT sum(labels), sum(errors), count(*) FROM audits"
            ).fetchone()
            (done,) = store.connection.execute(expected).fetchone()
            if not pending and labels == done:
                assert (errors, epochs) == (0, 1)
                assert done > 100
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"{labels} labels of {done} draws, pending: {bool(pending)}")


@pytest.mark.timeout(600)
async def test_twenty_kills_lose_no_answer_that_a_client_saw_the_end_of(tmp_path: Path) -> None:
    rng = random.Random(20261124)
    witness = Witness()
    store = tmp_path / "understudy.db"
    student = FakeUpstream(student_says(ANSWER, pause_s=0.001))
    # Of one mind, so that the audit keeps the gate open and the student goes on serving.
    teacher = FakeUpstream(teacher_says("".join(ANSWER), pause_s=0.002))
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, store, risk={"draw_rate": 0.2})
        for _ in range(KILLS):
            async with gateway_process(tmp_path, data) as gateway:
                await load_and_kill(gateway, rng.uniform(0.2, 0.9), witness)
        async with gateway_process(tmp_path, data):
            await audit_settles(store)
    with contextlib.closing(SqliteStore.open(store)) as opened:
        stored = opened.ids()
        assert len(witness.ended) > 10 * KILLS
        assert witness.cut >= KILLS
        missing = witness.ended - stored
        assert not missing
        # No half rows: everything that is there can be read, and ends as it says.
        rows = list(opened.read(Filter()))
        assert len(rows) == len(stored)
        assert all(row.answer for row in rows if row.status == "complete")
