"""A damaged store at start, and a store that cannot be opened at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.store.opening import move_damaged, set_aside
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import teacher_says
from tests.fakes.process import gateway_process
from tests.fakes.rig import FAR, config_data
from tests.fakes.upstream import FakeUpstream
from tests.faults.tmpfs import mounted
from tests.unit.test_store import EXCHANGE


def filled(path: Path, rows: int = 300) -> None:
    """A store with rows, closed well."""
    with contextlib.closing(SqliteStore.open(path)) as store:
        store.put([replace(EXCHANGE, id=f"n{number:04}") for number in range(rows)])


def scribble(path: Path, damage: str) -> None:
    """Damage a file as disks and people do."""
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:100] = b"\x00" * 100
    elif damage == "text":
        data[:] = b"not a database at all, but somebody's notes\n" * 100
    elif damage == "middle":
        data[len(data) // 3 : 2 * len(data) // 3] = b"\xa5" * (len(data) // 3)
    elif damage == "cut":
        del data[len(data) // 2 :]
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", ["header", "text", "middle", "cut"])
def test_damage_is_seen_and_the_file_kept(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "understudy.db"
    filled(path)
    scribble(path, damage)
    content = path.read_bytes()
    aside = move_damaged(path, 0.0)
    assert aside == tmp_path / "understudy.db.damaged-19700101T000000Z"
    assert aside.read_bytes() == content
    assert not path.exists()
    assert set_aside(path) == [aside]


def test_a_sound_store_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "understudy.db"
    assert move_damaged(path, 0.0) is None
    path.touch()  # SQLite takes an empty file as a new one
    assert move_damaged(path, 0.0) is None
    path.unlink()
    filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # in use is not damaged
    assert move_damaged(path, 0.0) is None
    other.close()
    assert set_aside(path) == []


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_gateway_with_a_damaged_store_serves_and_says_so(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "understudy.db"
    filled(path)
    scribble(path, "middle")
    teacher = FakeUpstream(teacher_says("teacher says"))
    async with teacher.running():
        data = config_data("http://127.0.0.1:9/v1", teacher.url, path, student=None, router=None)
        async with (
            gateway_process(tmp_path, data, {"workers": workers}) as gateway,
            gateway.client() as client,
        ):
            body = {"model": "banking-intents", "messages": [{"role": "user", "content": FAR}]}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.headers["x-understudy-captured"] == "yes"
            assert "understudy_store_set_aside 1.0" in (await client.get("/metrics")).text
        said = gateway.log.read_text()
    assert "is damaged; it was moved to" in said
    events = [json.loads(line)["event"] for line in said.splitlines() if line.startswith("{")]
    assert events.count("store_damaged") == 1
    with contextlib.closing(SqliteStore.read_only(path)) as store:
        assert store.count(Filter()) == 1
    assert len(set_aside(path)) == 1


async def test_a_start_on_a_full_disk_serves_and_says_so(tmp_path: Path) -> None:
    """After a clean stop SQLite has no log, and needs room to begin one."""
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small, 8):
        path = small / "understudy.db"
        teacher = FakeUpstream(teacher_says("teacher says"))
        body = {
            "model": "banking-intents",
            "messages": [{"role": "user", "content": FAR}],
            "metadata": {"pad": "x" * 200_000},
        }
        async with teacher.running():
            data = config_data(
                "http://127.0.0.1:9/v1", teacher.url, path, student=None, router=None
            )
            async with gateway_process(tmp_path, data) as gateway:
                gateway.terminate()
                await gateway.process.wait()
            assert not path.with_name("understudy.db-wal").exists()
            with contextlib.suppress(OSError), (small / "fill").open("wb") as handle:
                while True:
                    handle.write(b"x" * 4096)
                    handle.flush()
            async with gateway_process(tmp_path, data) as gateway, gateway.client() as client:
                told = [
                    (await client.post("/v1/chat/completions", json=body)).headers for _ in range(8)
                ]
                assert told[-1]["x-understudy-captured"] == "no"
                assert "the reserve was given up" in gateway.log.read_text()
                (small / "fill").unlink()
                for _ in range(100):
                    with contextlib.closing(SqliteStore.read_only(path)) as store:
                        if store.count(Filter()) == 8:
                            break
                    await asyncio.sleep(0.1)
                else:
                    raise AssertionError("what was marked is not stored")
