"""kill -9 under load: whatever a client saw the end of is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from gateway.store.sqlite import SqliteStore
from tests.fakes.process import gateway_process
from tests.faults.kills import agreeing_upstreams, assert_kept, kill_often

KILLS = 20


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
async def test_kills_lose_no_answer_that_a_client_saw_the_end_of(tmp_path: Path) -> None:
    """``make bench-kills`` does the same 200 times."""
    store = tmp_path / "understudy.db"
    async with agreeing_upstreams(store) as data:
        toll = await kill_often(tmp_path, data, KILLS, random.Random(20261124))
        async with gateway_process(tmp_path, data):
            await audit_settles(store)
    assert len(toll.witness.ended) > 10 * KILLS
    assert toll.witness.cut >= KILLS / 2
    assert 0 < toll.whole < KILLS
    assert_kept(store, toll.witness.ended)


async def test_one_process_is_killed_as_well_as_many(tmp_path: Path) -> None:
    store = tmp_path / "understudy.db"
    async with agreeing_upstreams(store) as data:
        toll = await kill_often(tmp_path, data, 5, random.Random(1), workers=1)
    assert toll.whole == 5
    assert_kept(store, toll.witness.ended)
