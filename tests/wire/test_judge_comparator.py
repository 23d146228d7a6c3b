"""The judge comparator asks the teacher once for each pair, and takes a clear word only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.store.records import DrawState
from tests.fakes.answers import teacher_says
from tests.fakes.rig import Rig, rig
from tests.fakes.upstream import Handler, Received, Wire

RISK = {"comparator": "judge", "draw_rate": 1.0, "on_unproven": "serve"}


def judging(word: str) -> Handler:
    """A teacher that answers requests, and comparisons with ``word``."""

    async def handle(received: Received, wire: Wire) -> None:
        asked = received.body["messages"][0]["content"].startswith("You compare two answers")
        await teacher_says(word if asked else "annual percentage rate")(received, wire)

    return handle


def questions(r: Rig) -> int:
    return sum(
        q.body["messages"][0]["content"].startswith("You compare") for q in r.teacher.requests
    )


@pytest.mark.parametrize(("word", "agrees"), [("Yes.", True), ("NO", False)])
async def test_the_teacher_is_asked_once_for_a_pair(
    tmp_path: Path, word: str, agrees: bool
) -> None:
    async with rig(tmp_path, risk=RISK) as r:
        r.teacher.handler = judging(word)
        for _ in range(3):
            # The artefact is certified with another comparator: everything goes to the teacher,
            # and the student's answer comes after the fact.
            answer = await r.ask()
            assert answer.headers["x-understudy-reason"] == "gate_closed"
        draws = await r.draws_done(3)
        assert [d.agrees for d in draws] == [agrees] * 3
        assert questions(r) == 1
        spent = r.metric(
            "understudy_upstream_attempts_total",
            upstream="banking-intents/teacher", outcome="ok",
        )  # fmt: skip
        assert spent == 4.0


async def test_a_word_that_is_not_clear_is_asked_for_again(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={**RISK, "audit_timeout_s": 2.0}) as r:
        r.teacher.handler = judging("It depends.")
        await r.ask()
        for _ in range(500):
            draw = r.stored()[0].draw
            assert draw is not None
            if draw.state is DrawState.FAILED:
                break
            await asyncio.sleep(0.02)
        assert draw is not None
        assert draw.agrees is None
        assert questions(r) >= 2


async def test_answers_that_read_alike_cost_no_question(tmp_path: Path) -> None:
    async with rig(tmp_path, says="APR.", risk=RISK) as r:
        await r.ask()
        assert [d.agrees for d in await r.draws_done(1)] == [True]
        assert len(r.teacher.requests) == 1
