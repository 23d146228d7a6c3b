"""Counters are the store's counts: over workers, restarts and, but for what is in flight, kills."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import FAR, rig
from tests.faults.counters import PRICE, ask, known, lives, settled, told
from tests.faults.kills import (
    CLIENTS,
    WORKERS,
    Witness,
    agreeing_upstreams,
    load_and_kill,
)

LIVES = 3
REQUESTS = 600
"""``make bench-counters`` asks 5,000 times."""


@pytest.mark.timeout(300)
async def test_counters_equal_the_store_over_graceful_restarts(tmp_path: Path) -> None:
    figures = await lives(tmp_path, LIVES, REQUESTS // LIVES)
    assert figures.cost_usd > 0
    assert {by for _, by, _ in figures.requests} == {"student", "teacher"}


@pytest.mark.timeout(300)
async def test_a_kill_costs_the_counters_only_what_was_in_flight(tmp_path: Path) -> None:
    store = tmp_path / "understudy.db"
    witness = Witness()
    async with agreeing_upstreams(store) as data:
        for _ in range(3):
            async with gateway_process(tmp_path, data, {"workers": WORKERS}) as gateway:
                await load_and_kill(gateway, 1.5, witness)
        async with gateway_process(tmp_path, data, {"workers": WORKERS}) as gateway:
            await settled(store)
            figures, truth = await told(gateway), known(store, PRICE)
    # A request and its record are counted by the very commit that stores it.
    assert figures.requests == truth.requests
    assert figures.stored == truth.stored >= len(witness.ended) > 100
    # A call is billed when it ends, which may be before its exchange is committed, or, of a draw's
    # second answer, within a second after.
    one = truth.cost_usd / truth.asked * 20  # more than any single call costs
    assert abs(figures.cost_usd - truth.cost_usd) <= 3 * CLIENTS * one


async def test_what_the_store_did_not_take_is_counted_once_it_does(tmp_path: Path) -> None:
    """Answers that went out marked are stored late: they and their calls count once."""
    async with rig(tmp_path, top={"outbox": {"commit_timeout_s": 0.5}}) as r:
        other = sqlite3.connect(r.store, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            responses = await asyncio.gather(*(r.ask(FAR) for _ in range(5)))
            assert {x.headers["x-understudy-captured"] for x in responses} == {"no"}
        finally:
            other.execute("ROLLBACK")
            other.close()
        await r.stored_soon(5)
        cost = sum(e.attempts[0].cost_usd for e in r.stored())
    async with rig(tmp_path) as r:  # and that is where the next life begins
        labels = {"task": "banking-intents", "served_by": "teacher"}
        r.service.metrics.settle()
        reasons = [
            sample.value
            for family in r.service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "understudy_requests_total"
        ]
        assert sum(reasons) == 5
        assert r.metric("understudy_fallback_records_total", state="late") == 5
        assert r.metric("understudy_cost_usd_total", **labels) == pytest.approx(cost)


async def test_a_worker_takes_the_former_counts_up_once(tmp_path: Path) -> None:
    """A worker that is replaced must not count them again."""
    store = tmp_path / "understudy.db"
    async with agreeing_upstreams(store) as data:
        async with gateway_process(tmp_path, data) as gateway:
            await ask(gateway, 30)
            gateway.terminate()
            await gateway.process.wait()
        async with gateway_process(tmp_path, data, {"workers": 2}) as gateway:
            before = gateway.workers
            for pid in before:
                await _replaced(gateway, pid)
            await ask(gateway, 10)
            assert (await told(gateway)).asked == 40


async def _replaced(gateway: GatewayProcess, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while pid in gateway.workers or len(gateway.workers) < 2:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)
