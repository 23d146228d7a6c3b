"""Upstreams that die, and clients that leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from gateway.store.records import DrawState, Status
from gateway.verdict import Reason
from tests.fakes.answers import hangs, refuses, student_says, teacher_chunk, teacher_says
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, leaves_after, rig
from tests.fakes.upstream import Received, Wire


async def test_a_student_killed_under_traffic_loses_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask()
        killed = asyncio.Event()

        async def ask(number: int) -> httpx.Response:
            if number >= 20:
                await killed.wait()
            return await r.ask(stream=bool(number % 2))

        asks = [asyncio.create_task(ask(n)) for n in range(60)]
        await asyncio.sleep(0.05)

        async def dead(received: Received, wire: Wire) -> None:
            wire.reset()

        r.student.handler = dead
        killed.set()
        responses = await asyncio.gather(*asks)
        assert {response.status_code for response in responses} == {200}
        rows = r.stored()
        assert len(rows) == 61
        assert {e.status for e in rows} == {Status.COMPLETE}
        reasons = {e.reason for e in rows}
        assert Reason.STUDENT_ERROR in reasons
        assert reasons <= {Reason.IN_DISTRIBUTION, Reason.STUDENT_ERROR, Reason.CIRCUIT_OPEN}
        failed = r.metric(
            "understudy_requests_total", task="banking-intents", served_by="teacher",
            reason="student_error", code_class="2xx",
        )  # fmt: skip
        assert failed == sum(e.reason == Reason.STUDENT_ERROR for e in rows)


async def test_with_the_teacher_dead_the_student_s_traffic_goes_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = refuses
        assert (await r.ask(IN_DOMAIN)).status_code == 200
        for stream in (False, True):
            tail = await r.ask(FAR, stream=stream)
            assert tail.status_code == 502
            assert set(tail.json()["error"]) == {"message", "type", "param", "code"}
        assert (await r.ask(IN_DOMAIN)).headers["x-understudy-served-by"] == "student"


@pytest.mark.parametrize("text", [IN_DOMAIN, FAR], ids=["student", "teacher"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_waiting_frees_the_upstream(
    tmp_path: Path, text: str, stream: bool
) -> None:
    async with rig(tmp_path, student={"timeout_s": 30}, teacher={"first_byte_timeout_s": 30}) as r:
        r.student.handler = r.teacher.handler = hangs
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(base_url=r.url, timeout=leaves_after(0.3)) as impatient:
                await impatient.post(
                    "/v1/chat/completions",
                    headers={"authorization": f"Bearer {KEY}"},
                    json={"model": "banking-intents", "stream": stream,
                          "messages": [{"role": "user", "content": text}]},
                )  # fmt: skip
        await r.settled()
        assert r.student.gone + r.teacher.gone == 1
        rows = await r.stored_soon(1)
        assert (rows[0].status, rows[0].error) == (Status.INCOMPLETE, "client_gone")
        upstream = r.task.teacher.upstream
        assert upstream.in_flight == 0


async def test_a_client_that_leaves_mid_stream_frees_the_teacher_and_the_part_is_kept(
    tmp_path: Path,
) -> None:
    async def slow(received: Received, wire: Wire) -> None:
        await wire.stream()
        await wire.event(teacher_chunk({"role": "assistant", "content": "first words"}))
        await asyncio.sleep(3600)

    async with rig(tmp_path, router={"hold": 32}, teacher={"idle_timeout_s": 60}) as r:
        r.teacher.handler = slow
        body = {"model": "banking-intents", "stream": True,
                "messages": [{"role": "user", "content": FAR}]}  # fmt: skip
        async with r.client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for part in response.aiter_raw():
                assert b"first words" in part
                break
        await r.settled()
        rows = await r.stored_soon(1)
        assert rows[0].status is Status.INCOMPLETE
        assert rows[0].answer is not None
        assert rows[0].answer["choices"][0]["message"]["content"] == "first words"
        assert rows[0].attempts[-1].outcome == "abandoned"


async def test_a_stalled_teacher_ends_in_an_error_event(tmp_path: Path) -> None:
    async def stalls(received: Received, wire: Wire) -> None:
        await wire.stream()
        await wire.event(teacher_chunk({"role": "assistant", "content": "half"}))
        await asyncio.sleep(3600)

    async with rig(tmp_path, router={"hold": 32}, teacher={"idle_timeout_s": 0.2}) as r:
        r.teacher.handler = stalls
        response = await r.ask(FAR, stream=True)
        assert "[DONE]" not in response.text
        assert "teacher_timeout" in response.text
        await r.settled()


async def test_an_unsure_student_s_slot_is_freed_before_the_teacher_answers(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = student_says(["h"] * 50, -3.0, pause_s=0.005)

        async def looks(received: Received, wire: Wire) -> None:
            await asyncio.sleep(0.05)
            assert r.student.open == 0
            await teacher_says("teacher says")(received, wire)

        r.teacher.handler = looks
        response = await r.ask()
        assert response.headers["x-understudy-reason"] == Reason.LOW_CONFIDENCE
        assert r.student.gone == 1


async def test_draws_get_their_second_answer_whoever_served(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}) as r:
        await r.ask(IN_DOMAIN)
        await r.ask(FAR)
        first, second = await r.draws_done(2)
        assert (first.wants, first.p, first.agrees) == ("teacher", 1.0, False)
        assert (second.wants, second.agrees) == ("student", False)
        assert second.answer is not None
        assert second.answer["choices"][0]["logprobs"]["content"]


async def test_draws_survive_a_dead_teacher_and_a_restart(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}, teacher={"retries": 0}) as r:
        r.teacher.handler = refuses
        await r.ask(IN_DOMAIN)
        await asyncio.sleep(0.2)
        draw = r.stored()[0].draw
        assert draw is not None
        assert draw.state is DrawState.PENDING
    async with rig(tmp_path, says="apr", risk={"draw_rate": 1.0}) as r:
        (draw,) = await r.draws_done(1)
        assert draw.agrees is True


async def test_overrides_and_outages_are_no_draws(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}, on_teacher_down="student") as r:
        await r.ask(headers={"x-understudy-route": "teacher"})
        await r.ask(n=2)
        r.teacher.handler = refuses
        await r.ask(FAR)
        assert [e.draw for e in r.stored()] == [None, None, None]
