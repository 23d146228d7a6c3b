"""A store that cannot take an exchange: serving goes on, and the answer says so."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gateway.errors import StoreError
from gateway.replay import cases
from gateway.store.records import Captured
from gateway.store.sqlite import SqliteStore
from gateway.store.training import fine_tuning_row, training_row
from gateway.writer import BUSY_S
from router.judge import Judge
from tests.fakes.answers import refuses, teacher_says
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, Rig, rig


def fill_up(r: Rig) -> None:
    """SQLite's own 'database or disk is full': no further page may be taken."""
    db = r.service.flow.books.capture._writer._store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


def room_again(r: Rig) -> None:
    """Lift the limit."""
    r.service.flow.books.capture._writer._store._db.execute("PRAGMA max_page_count = 1000000")


def told_captured(response: httpx.Response) -> str:
    """What a client hears of its exchange, in the header or before the stream's end."""
    header = response.headers["x-understudy-captured"]
    if header != "pending":
        return header
    assert response.text.endswith("data: [DONE]\n\n")
    found = re.search(r"^: understudy-captured (\w+)\n\n", response.text, re.MULTILINE)
    return found[1] if found else "yes"


async def test_a_full_disk_is_told_and_serving_goes_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert told_captured(await r.ask(FAR)) == "yes"
        fill_up(r)
        marked = 0
        for number in range(12):
            response = await r.ask(FAR, stream=bool(number % 2), metadata={"pad": "x" * 4000})
            assert response.status_code == 200
            told, ids = told_captured(response), {e.id for e in r.stored()}
            assert (told == "no") == (response.headers["x-request-id"] not in ids)
            marked += told == "no"
        assert marked >= 10
        assert r.metric("understudy_capture_late_records") >= marked
        assert r.metric("understudy_capture_level") == 2
        ready = await r.client.get("/readyz")
        assert ready.status_code == 200
        assert "captured: no" in ready.json()["warnings"][0]
        room_again(r)
        # What was marked while there was no room is stored once there is.
        assert len(await r.stored_soon(13)) == 13
        assert r.metric("understudy_fallback_records_total", state="late") == marked
        assert told_captured(await r.ask(FAR)) == "yes"
        assert r.metric("understudy_capture_level") == 0


async def test_bodies_of_what_the_student_served_go_first(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(IN_DOMAIN)
        fill_up(r)
        told = []
        for number in range(6):
            pad = {"pad": "x" * 60_000}
            told.append(told_captured(await r.ask(stream=bool(number % 2), metadata=pad)))
        assert set(told) == {"partial"}
        kept = r.stored()[1:]
        assert len(kept) == 6
        assert not any(e.bodies or e.request or e.answer or e.prefix for e in kept)
        assert all(e.score is not None and e.attempts for e in kept)
        assert r.metric("understudy_capture_level") == 1
        # A fallback is training data: it is whole or not there.
        assert told_captured(await r.ask(FAR, metadata={"pad": "x" * 60_000})) == "no"


async def test_at_the_cap_old_bodies_go_and_then_new_exchanges(tmp_path: Path) -> None:
    top = {"outbox": {"max_bytes": 1 << 20}}
    pad = {"pad": "x" * 20_000}
    agreeing = "".join(ANSWER)  # or the audit closes the gate
    risk = {"draw_rate": 0.1, "unproven_draw_rate": 0.1}
    async with rig(tmp_path, says=agreeing, top=top, risk=risk) as r:
        capture = r.service.flow.books.capture
        fallback = await r.ask(FAR, metadata=pad)
        told = []
        for _ in range(90):
            told.append(told_captured(await r.ask(metadata=pad)))
            capture._writer._looked_at = 0.0  # a look per request, instead of one per second
        assert "no" not in told
        dropped = [e for e in r.stored() if not e.bodies]
        assert len(dropped) > 30
        assert all(e.served_by == "student" and e.draw is None for e in dropped)
        drawn = [e for e in r.stored() if e.draw is not None]
        assert len(drawn) > 5
        assert all(e.request["metadata"] == pad and e.answer for e in drawn)
        # Fallbacks cannot be dropped: they fill the store until it takes no more.
        for _ in range(60):
            told.append(told_captured(await r.ask(FAR, metadata=pad)))
            capture._writer._looked_at = 0.0
        assert told[-1] == "no"
        assert r.metric("understudy_capture_level") == 2
        kept = {e.id: e for e in r.stored()}
        assert kept[fallback.headers["x-request-id"]].request["metadata"] == pad
        size = (tmp_path / "understudy.db").stat().st_size
        assert size < 1.3 * (1 << 20)


async def test_a_strict_task_serves_nothing_that_it_cannot_store(tmp_path: Path) -> None:
    async with rig(tmp_path, capture="strict") as r:
        assert (await r.ask(FAR)).status_code == 200
        fill_up(r)
        pad = {"pad": "x" * 60_000}
        asked = len(r.teacher.requests)
        first = await r.ask(FAR, metadata=pad)
        assert (first.status_code, first.json()["error"]["code"]) == (503, "capture_unavailable")
        assert "retry-after" in first.headers
        assert len(r.teacher.requests) == asked + 1
        again = await r.ask(FAR, metadata=pad)  # refused before anybody is asked and paid
        assert (again.status_code, again.json()["error"]["code"]) == (503, "capture_unavailable")
        assert len(r.teacher.requests) == asked + 1
        assert (await r.client.get("/readyz")).status_code == 503
        room_again(r)
        # The answer that was paid for is kept all the same.
        assert len(await r.stored_soon(2)) == 2
        assert (await r.ask(FAR)).status_code == 200
        assert (await r.client.get("/readyz")).status_code == 200


async def test_a_strict_task_ends_a_stream_that_it_cannot_store_by_an_error(tmp_path: Path) -> None:
    async with rig(tmp_path, capture="strict") as r:
        await r.ask(FAR)
        fill_up(r)
        response = await r.ask(FAR, stream=True, metadata={"pad": "x" * 60_000})
        assert "[DONE]" not in response.text
        assert "capture_unavailable" in response.text


async def test_a_store_that_another_process_locks_loses_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"outbox": {"commit_timeout_s": 0.5}}) as r:
        assert told_captured(await r.ask(FAR)) == "yes"
        other = sqlite3.connect(r.store, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            began = time.monotonic()
            responses = await asyncio.gather(*(r.ask(FAR) for _ in range(5)))
            assert [told_captured(x) for x in responses] == ["no"] * 5
            assert time.monotonic() - began < 4
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert len(await r.stored_soon(6)) == 6
        assert r.metric("understudy_fallback_records_total", state="late") == 5


async def test_a_short_lock_is_only_waited_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(FAR)
        other = sqlite3.connect(r.store, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        asked = asyncio.create_task(r.ask(FAR))
        await asyncio.sleep(1.5)  # longer than the writer's own wait
        assert not asked.done()
        other.execute("ROLLBACK")
        other.close()
        assert told_captured(await asked) == "yes"


async def test_a_start_waits_while_another_process_repairs_the_file(tmp_path: Path) -> None:
    """Longer than a write waits: after a crash, the first to open it has all of it locked."""
    store = tmp_path / "understudy.db"
    SqliteStore.open(store).close()
    other = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        SqliteStore.open(store, busy_s=0.1)
    release = threading.Timer(2.5 * BUSY_S, other.close)
    release.start()
    async with rig(tmp_path) as r:
        assert told_captured(await r.ask(FAR)) == "yes"
    release.join()


async def test_a_store_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(FAR)
        for name in ("", "-wal", "-shm"):
            (tmp_path / f"understudy.db{name}").rename(tmp_path / f"old.db{name}")
        assert told_captured(await r.ask(FAR)) == "yes"
        assert len(r.stored()) == 1


async def test_memory_is_bounded_while_nothing_can_be_stored(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"outbox": {"memory_bytes": 200_000}}) as r:
        await r.ask(FAR)
        fill_up(r)
        for _ in range(10):
            assert told_captured(await r.ask(FAR, metadata={"pad": "x" * 60_000})) == "no"
        assert r.metric("understudy_fallback_records_total", state="lost") == 7
        assert r.metric("understudy_capture_late_records") == 3
        room_again(r)
        assert len(await r.stored_soon(4)) == 4


async def test_one_row_that_cannot_be_stored_does_not_take_its_neighbours(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask()
        good = r.stored()[0]
        capture = r.service.flow.books.capture
        bad = replace(good, id="bad", request={"x": {1, 2}})
        fine = [replace(good, id=f"n{number}") for number in range(3)]
        rows = [fine[0], bad, *fine[1:]]
        stored = await asyncio.gather(*(capture.put(row) for row in rows))
        assert stored == [Captured.YES, Captured.NO, Captured.YES, Captured.YES]
        assert {e.id for e in r.stored()} == {good.id, "n0", "n1", "n2"}


async def test_an_error_that_cannot_be_stored_says_so_too(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.teacher.handler = refuses
        assert (await r.ask(FAR)).headers["x-understudy-captured"] == "yes"
        fill_up(r)
        told = [
            (await r.ask(FAR, metadata={"pad": "x" * 9000})).headers["x-understudy-captured"]
            for _ in range(4)
        ]
        assert told[-1] == "no"


async def test_a_draw_that_cannot_be_finished_is_not_asked_for_in_a_hurry(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}, teacher={"retries": 0}) as r:
        r.teacher.handler = refuses
        await r.ask()
        await asyncio.sleep(0.1)
        fill_up(r)
        r.teacher.handler = teacher_says("y" * 20_000)
        await asyncio.sleep(2.5)
        assert len(r.teacher.requests) <= 3


async def test_a_fault_of_ours_in_the_writer_ends_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as r:
        writer = r.service.flow.books.capture._writer
        assert told_captured(await r.ask(FAR)) == "yes"

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(type(writer), "_commit", broken)
            assert told_captured(await r.ask(FAR)) == "no"
        assert told_captured(await r.ask(FAR)) == "yes"
        assert r.metric("understudy_fallback_records_total", state="lost") == 1


async def test_replay_and_export_go_on_without_bodies(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(IN_DOMAIN)
        fill_up(r)
        assert told_captured(await r.ask(metadata={"pad": "x" * 60_000})) == "partial"
        whole, short = r.stored()
        assert training_row(whole) is not None
        assert training_row(short, "apr") is fine_tuning_row(short, "apr") is None
        judge = r.task.judge
        assert isinstance(judge, Judge)
        one, two = cases([whole, short], judge, r.task.settings, "reason")
        assert one.score == pytest.approx(two.score, rel=1e-6)
        assert two.disagrees is None
