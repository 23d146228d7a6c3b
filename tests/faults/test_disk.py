"""A store that cannot take an exchange: serving goes on, and the answer says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.answers import refuses, teacher_says
from tests.fakes.rig import FAR, IN_DOMAIN, Rig, rig


def fill_up(r: Rig) -> None:
    """SQLite's own 'database or disk is full': no further page may be taken."""
    db = r.service._writer._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


def room_again(r: Rig) -> None:
    """Lift the limit."""
    r.service._writer._db.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("text", [IN_DOMAIN, FAR], ids=["student", "teacher"])
async def test_a_full_disk_is_told_and_serving_goes_on(tmp_path: Path, text: str) -> None:
    async with rig(tmp_path) as r:
        assert (await r.ask(text)).headers["x-understudy-captured"] == "yes"
        fill_up(r)
        marked = 0
        for number in range(12):
            stream = bool(number % 2)
            response = await r.ask(text, stream=stream, metadata={"pad": "x" * 4000})
            assert response.status_code == 200
            if stream:
                assert response.text.endswith("data: [DONE]\n\n")
                told = ": understudy-captured no\n\n" in response.text
            else:
                told = response.headers["x-understudy-captured"] == "no"
            ids = {e.id for e in r.stored()}
            assert told == (response.headers["x-request-id"] not in ids)
            marked += told
        assert marked >= 10
        assert r.metric("understudy_fallback_records_total", state="lost") >= marked
        room_again(r)
        response = await r.ask(text)
        assert response.headers["x-understudy-captured"] == "yes"


async def test_one_row_that_cannot_be_stored_does_not_take_its_neighbours(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask()
        good = r.stored()[0]
        capture = r.service.flow.books.capture
        bad = replace(good, id="bad", request={"x": {1, 2}})
        fine = [replace(good, id=f"n{number}") for number in range(3)]
        rows = [fine[0], bad, *fine[1:]]
        stored = await asyncio.gather(*(capture.put(row) for row in rows))
        assert stored == [True, False, True, True]
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
