"""Counters are the store's counts: over workers, restarts and, but for what is in flight, kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from gateway.store.sqlite import SqliteStore
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import FAR, rig
from tests.faults.counters import Figures, known, told
from tests.faults.kills import (
    CLIENTS,
    WORKERS,
    Witness,
    agreeing_upstreams,
    load_and_kill,
    one_answer,
)

LIVES = 3
REQUESTS = 600
"""``make bench-counters`` asks 5,000 times."""
PRICE = (2.5, 10.0)


async def settled(path: Path) -> None:
    """Every draw has its second answer: no call is under way any more."""
    with contextlib.closing(SqliteStore.read_only(path)) as store:
        async with asyncio.timeout(60):
            while store.pending_draws(1):
                await asyncio.sleep(0.1)


async def ask(gateway: GatewayProcess, count: int) -> None:
    """So many answers, by several clients; none may fail."""
    witness = Witness()

    async def some(first: int) -> None:
        for number in range(first, count, CLIENTS):
            async with gateway.client() as client:  # another worker each time
                await one_answer(client, number, witness)

    async with asyncio.TaskGroup() as group:
        for first in range(CLIENTS):
            group.create_task(some(first))
    assert len(witness.ended) == count


def assert_same(by_metrics: Figures, by_store: Figures) -> None:
    assert by_metrics.requests == by_store.requests
    assert by_metrics.stored == by_store.stored
    assert by_metrics.prompt_tokens == by_store.prompt_tokens
    assert by_metrics.completion_tokens == by_store.completion_tokens
    assert by_metrics.cost_usd == pytest.approx(by_store.cost_usd, rel=1e-9)


@pytest.mark.timeout(300)
async def test_counters_equal_the_store_over_graceful_restarts(tmp_path: Path) -> None:
    store = tmp_path / "understudy.db"
    async with agreeing_upstreams(store) as data:
        for life in range(1, LIVES + 1):
            async with gateway_process(tmp_path, data, {"workers": WORKERS}) as gateway:
                await ask(gateway, REQUESTS // LIVES)
                await settled(store)
                figures = await told(gateway)
                assert figures.asked == life * (REQUESTS // LIVES)
                assert_same(figures, known(store, PRICE))
                gateway.terminate()
                assert await gateway.process.wait() == 0
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
