"""Two gateways, one Postgres, two student replicas: a rolling restart under load loses no request,
and what somebody decides reaches both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.store.migrating import upgrade
from tests.fakes.postgres import Postgres
from tests.faults.pair import NAMES, close_gate, pair, promote, revoke


@pytest.mark.timeout(300)
async def test_a_rolling_restart_under_load_loses_no_request(
    tmp_path: Path, database: Postgres
) -> None:
    upgrade(database.url)
    async with pair(tmp_path, database) as made:
        async with made.under_load() as tally:
            await asyncio.sleep(2)
            for name in NAMES:
                assert await made.stop(name) == 0
                await made.start(name)
                await asyncio.sleep(1)
            for replica in made.replicas:  # a student server that comes back has nothing loaded
                replica.restart()
                await asyncio.sleep(2)
        assert not tally.wrong
        assert len(tally.ended) > 200
        assert min(tally.served_by["student"], tally.served_by["teacher"]) > 50
        stored = await made.shipped()
        assert len(stored) == len(set(stored))
        assert tally.ended <= set(stored)


@pytest.mark.timeout(300)
async def test_what_is_decided_reaches_both_gateways(tmp_path: Path, database: Postgres) -> None:
    """``make bench-rolling`` measures how soon."""
    upgrade(database.url)
    async with pair(tmp_path, database) as made:
        first, second = made.versions
        await promote(made, first)
        await promote(made, second)
        await revoke(made)
        await close_gate(made)
