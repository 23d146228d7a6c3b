"""How long exchanges stay, and who looked at them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway import sweeping
from gateway.offload import Offload
from gateway.store.keeping import AT_ONCE, Keeping, Reading
from gateway.store.place import Place
from gateway.store.records import Draw, Exchange, Filter
from gateway.store.sqlite import SqliteStore
from gateway.sweeping import DAY_S, Sweeper
from tests.fakes.rig import FAR, rig
from tests.unit.test_store import EXCHANGE

NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "x.db")
    yield opened
    opened.close()


@pytest.fixture
def keeping(store: SqliteStore) -> Iterator[Keeping]:
    with contextlib.closing(Place(store.path).keeping()) as opened:
        yield opened


def aged(number: int, days: float, task: str = "t") -> Exchange:
    return replace(EXCHANGE, id=f"{task}{number:04}", task=task, created_at=NOW - days * DAY_S)


def test_old_exchanges_go_with_all_that_hangs_on_them(store: SqliteStore, keeping: Keeping) -> None:
    count = AT_ONCE + 50
    store.put([aged(n, 10) for n in range(count)])
    store.put([aged(n, 1) for n in range(1000, 1005)])
    store.put([aged(n, 10, "other") for n in range(5)])
    gone: list[int] = []
    while not gone or gone[-1]:
        gone.append(keeping.delete_before("t", NOW - 5 * DAY_S))
    assert gone == [AT_ONCE, 50, 0]
    assert store.count(Filter(task="t")) == 5
    assert store.count(Filter(task="other")) == 5
    for table in ("attempts", "draws"):
        left = store.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        assert left == 10, table
    assert EXCHANGE.draw == Draw(0.02, "student")


def test_who_looked_is_told_latest_first(keeping: Keeping) -> None:
    for number in range(3):
        keeping.add_reading(Reading(float(number), "cli jo", "show", {"n": number}))
    assert [r.detail["n"] for r in keeping.readings(2)] == [2, 1]


async def test_a_task_keeps_its_exchanges_as_long_as_it_says(tmp_path: Path) -> None:
    async with rig(tmp_path, retention_days=30) as r:
        await r.ask(FAR)
        await r.ask(FAR)
        with contextlib.closing(Place(r.store).keeping()) as keeping, ThreadPoolExecutor(1) as pool:
            sweeper = Sweeper(r.service.tasks, keeping, r.service.metrics, Offload(pool))
            now, monotonic = time.time(), time.monotonic()
            await sweeper.sweep(now, monotonic)
            assert len(r.stored()) == 2
            # A clock that jumped a month ahead makes nothing old...
            await sweeper.sweep(now + 31 * DAY_S, monotonic)
            assert len(r.stored()) == 2
            # ... but a month that passed does.
            fresh = Sweeper(r.service.tasks, keeping, r.service.metrics, Offload(pool))
            await fresh.sweep(now + 31 * DAY_S, monotonic + 31 * DAY_S)
            assert r.stored() == []
        labels = {"task": "banking-intents"}
        assert r.metric("understudy_retention_deleted_total", **labels) == 2


async def test_the_sweeper_runs_beside_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "EVERY_S", 0.05)
    async with rig(tmp_path, retention_days=1e-6) as r:
        await r.ask(FAR)
        for _ in range(100):
            if not r.stored():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("nothing was deleted")


async def test_the_admin_s_reading_is_recorded_first(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"admin": {"key_env": "UNDERSTUDY_KEY"}}) as r:
        # The rig's client sends the key that is the admin's here.
        request_id = (await r.ask(FAR)).headers["x-request-id"]
        shown = await r.client.get(f"/admin/exchanges/{request_id}")
        assert shown.json()["request"]["messages"][-1]["content"] == FAR
        assert (await r.client.get("/admin/exchanges/none")).status_code == 404
        nobody = await r.client.get(f"/admin/exchanges/{request_id}", headers={"authorization": ""})
        assert nobody.status_code == 401
        with contextlib.closing(Place(r.store).keeping()) as keeping:
            seen = [(x.who, x.detail["found"]) for x in keeping.readings(9)]
        assert seen == [("admin key", False), ("admin key", True)]
