"""A power failure keeps only what was synced; a disk that cannot sync has stored nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.store.records import Exchange, Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import teacher_says
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import FAR, ROOT, config_data
from tests.fakes.upstream import FakeUpstream
from tests.faults import powerless
from tests.faults.kills import Witness, agreeing_upstreams, load_and_kill

FAILURES = 25
_WRITES = """
import sys, time
from dataclasses import replace
from pathlib import Path
from gateway.store.sqlite import SqliteStore
from tests.unit.test_store import EXCHANGE
store = SqliteStore.open(Path(sys.argv[1]))
store._db.execute(f"PRAGMA synchronous={sys.argv[2]}")
for number in range(300):
    store.put([replace(EXCHANGE, id=f"n{number}")])
print("written", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return powerless.build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(("synchronous", "kept"), [("FULL", 300), ("OFF", 0)])
def test_the_forgetful_disk_forgets_what_was_not_synced(
    tmp_path: Path, shim: Path, synchronous: str, kept: int
) -> None:
    """Without this the next test could not fail."""
    store = tmp_path / "x.db"
    SqliteStore.open(store).close()
    env = powerless.environment(shim, store, tmp_path / "faults")
    command = [sys.executable, "-c", _WRITES, str(store), synchronous]
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    powerless.forget_unsynced(store)
    with contextlib.closing(SqliteStore.open(store)) as opened:
        assert opened.count(Filter()) == kept


@pytest.mark.timeout(600)
async def test_power_failures_lose_no_answer_that_a_client_saw_the_end_of(
    tmp_path: Path, shim: Path
) -> None:
    rng, witness, lost = random.Random(7), Witness(), 0
    store = tmp_path / "understudy.db"
    env = powerless.environment(shim, store, tmp_path / "faults") | {"POWERLESS_SYNC_US": "3000"}
    async with agreeing_upstreams(store) as data:
        for _ in range(FAILURES):
            async with gateway_process(tmp_path, data, env=env) as gateway:
                await load_and_kill(gateway, rng.uniform(0.2, 0.7), witness)
            lost += powerless.forget_unsynced(store)
    with contextlib.closing(SqliteStore.open(store)) as opened:
        assert opened.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert len(witness.ended) > 10 * FAILURES
        assert lost  # some writes were not synced yet, or nothing was tried
        assert not witness.ended - opened.ids()


@dataclass(slots=True)
class Forgetful:
    """A gateway over a disk whose faults can be switched."""

    gateway: GatewayProcess
    client: httpx.AsyncClient
    store: Path
    faults: Path

    async def told(self, **body: object) -> str:
        """Ask the teacher; what the header says of the exchange."""
        sent = {"model": "banking-intents", "messages": [{"role": "user", "content": FAR}], **body}
        response = await self.client.post("/v1/chat/completions", json=sent)
        assert response.status_code == 200, response.text
        return response.headers["x-understudy-captured"]

    def stored(self) -> list[Exchange]:
        """What a reader beside it finds."""
        with contextlib.closing(SqliteStore.read_only(self.store)) as store:
            return list(store.read(Filter()))

    async def stored_soon(self, count: int) -> list[Exchange]:
        """The exchanges once there are so many."""
        async with asyncio.timeout(20):
            while len(rows := self.stored()) < count:
                await asyncio.sleep(0.05)
        return rows


@contextlib.asynccontextmanager
async def forgetful(folder: Path, shim: Path, **outbox: float) -> AsyncIterator[Forgetful]:
    """Start it, before a fake teacher and no student."""
    store, faults = folder / "understudy.db", folder / "faults"
    teacher = FakeUpstream(teacher_says("teacher says"))
    async with teacher.running():
        data = config_data("http://127.0.0.1:9/v1", teacher.url, store, student=None, router=None)
        data["outbox"] = outbox
        env = powerless.environment(shim, store, faults)
        async with gateway_process(folder, data, env=env) as gateway, gateway.client() as client:
            yield Forgetful(gateway, client, store, faults)


@pytest.mark.parametrize("fault", ["fsync", "full", "readonly"])
async def test_what_a_failing_disk_does_not_keep_is_marked_and_stored_later(
    tmp_path: Path, shim: Path, fault: str
) -> None:
    pad = {"metadata": {"pad": "x" * 50_000}}
    async with forgetful(tmp_path, shim) as f:
        assert await f.told() == "yes"
        f.faults.write_text(fault)
        assert [await f.told(**pad) for _ in range(5)] == ["no"] * 5
        metrics = (await f.client.get("/metrics")).text
        assert "understudy_capture_level 2.0" in metrics
        f.faults.write_text("")
        assert len(await f.stored_soon(6)) == 6
        assert await f.told() == "yes"
        f.gateway.kill()
        await f.gateway.process.wait()
        powerless.forget_unsynced(tmp_path / "understudy.db")
        with contextlib.closing(SqliteStore.open(tmp_path / "understudy.db")) as store:
            assert store.count(Filter()) == 7
            assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


async def test_a_failed_sync_is_not_made_good_by_the_next_one(tmp_path: Path, shim: Path) -> None:
    """Power fails right after a sync failed: what was marked may be gone, what was not is there."""
    async with forgetful(tmp_path, shim) as f:
        told = [await f.told() for _ in range(3)]
        f.faults.write_text("fsync")
        told += [await f.told() for _ in range(3)]
        f.gateway.kill()
        await f.gateway.process.wait()
    assert told == ["yes"] * 3 + ["no"] * 3
    powerless.forget_unsynced(tmp_path / "understudy.db")
    with contextlib.closing(SqliteStore.open(tmp_path / "understudy.db")) as store:
        assert store.count(Filter()) == 3


async def test_a_clock_that_jumps_back_a_day_changes_nothing(tmp_path: Path, shim: Path) -> None:
    async with forgetful(tmp_path, shim) as f:
        assert await f.told() == "yes"
        f.faults.write_text("clock -86400")
        assert [await f.told() for _ in range(3)] == ["yes"] * 3
        f.faults.write_text("")
        assert await f.told() == "yes"
        rows = f.stored()
        assert len({row.id for row in rows}) == 5
        times = sorted(row.created_at for row in rows)
        assert 86_000 < times[-1] - times[0] < 86_800
        assert all(0 < row.total_ms < 60_000 for row in rows)


@pytest.mark.parametrize("seconds", [8.0])
async def test_another_process_s_lock_delays_and_loses_nothing(
    tmp_path: Path, shim: Path, seconds: float
) -> None:
    """Answers go out marked after ``commit_timeout_s``; what was marked is stored all the same."""
    hold = (
        "import sqlite3, sys, time; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN EXCLUSIVE'); print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    async with forgetful(tmp_path, shim, commit_timeout_s=1.0) as f:
        assert await f.told() == "yes"
        command = [sys.executable, "-c", hold, str(f.store), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            told = []
            while holder.poll() is None:
                began = asyncio.get_running_loop().time()
                told.append(await f.told())
                assert asyncio.get_running_loop().time() - began < 5
        # Those asked between the end of the lock and the end of its holder are stored.
        assert told == sorted(told)
        assert told.count("no") > 2
        assert len(await f.stored_soon(1 + len(told))) == 1 + len(told)
        assert await f.told() == "yes"
