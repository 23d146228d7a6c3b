"""Several teacher upstreams: while nothing was served, every fault is answered by the next one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.retry_budget import RESERVE, RetryBudget
from gateway.slots import Priority, Slots
from gateway.store.records import Status
from gateway.upstream import monotonic
from tests.fakes.answers import completion, hangs, refuses, resets, teacher_chunk, teacher_says
from tests.fakes.rig import FAR, rig
from tests.fakes.upstream import FakeUpstream, Handler, Received, Wire

HALF = {"role": "assistant", "content": "half an"}


def status(code: int, headers: dict[str, str] | None = None) -> Handler:
    """An upstream that answers with an error."""

    async def handler(received: Received, wire: Wire) -> None:
        error = {"message": "no", "type": "t", "param": None, "code": None}
        await wire.json(code, {"error": error}, headers)

    return handler


def breaks(then: bytes | str, *, end: bool = True) -> Handler:
    """An answer that breaks half-way: bytes are sent, ``cut`` cuts, ``stall`` waits."""

    async def handler(received: Received, wire: Wire) -> None:
        if received.body.get("stream"):
            await wire.stream()
            await wire.event(teacher_chunk(HALF))
        else:
            await wire.head(200, {"content-type": "application/json", "content-length": "4000"})
            await wire.raw(b'{"choices": [')
        if then == "stall":
            await asyncio.sleep(3600)
        elif isinstance(then, bytes) and wire.chunked:
            await wire.send(then)
            if end:
                await wire.end()
        wire.reset()

    return handler


async def slow_headers(received: Received, wire: Wire) -> None:
    """A status line that never ends."""
    await wire.raw(b"HTTP/1.1 200 OK\r\ncontent-")
    await asyncio.sleep(3600)


async def no_http(received: Received, wire: Wire) -> None:
    """Bytes that are no HTTP."""
    await wire.raw(b"\x00\x01garbage\r\n\r\n")
    wire.reset()


async def odd_json(received: Received, wire: Wire) -> None:
    """JSON that is no completion."""
    await wire.json(200, {"hello": "world"})


async def html(received: Received, wire: Wire) -> None:
    """A proxy's page."""
    page = b"<html>Bad gateway</html>"
    head = {"content-type": "text/html", "content-length": str(len(page))}
    await wire.head(200, head)
    await wire.raw(page)


IN_BAND = json.dumps({"error": {"message": "boom", "code": 500}}).encode()
FAULTS: dict[str, Handler] = {
    "429": status(429),
    "429_retry_after": status(429, {"retry-after": "30"}),
    "500": status(500),
    "503": status(503),
    "529": status(529),
    "wrong_key": status(401),
    "slow_headers": slow_headers,
    "hang": hangs,
    "reset": resets,
    "no_http": no_http,
    "cut_mid_answer": breaks("cut"),
    "stall_mid_answer": breaks("stall"),
    "in_band_error": breaks(b"data: " + IN_BAND + b"\n\ndata: [DONE]\n\n"),
    "malformed_sse": breaks(b"data: {not json\n\n"),
    "no_end": breaks(b"data: [DONE]\n\n"),
    "odd_json": odd_json,
    "html": html,
}
LIMITS = {"first_byte_timeout_s": 1.5, "idle_timeout_s": 1.5, "connect_timeout_s": 1.5}
"""They hold for the healthy teacher too, on a machine that is busy with other tests."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_with_a_second_teacher_every_fault_is_a_whole_answer(
    tmp_path: Path, fault: str, stream: bool
) -> None:
    second = FakeUpstream(teacher_says("second says"))
    async with second.running():
        place = {"base_url": second.url, "model": "other-1", "price": {"input": 1, "output": 1}}
        limits = {**LIMITS, "retries": 0, "fallbacks": [place]}
        async with rig(tmp_path, teacher=limits) as r:
            r.teacher.handler = FAULTS[fault]
            response = await r.ask(FAR, stream=stream)
            assert response.status_code == 200
            assert "d says" in response.text
            assert "half an" not in response.text
            assert response.text.endswith("data: [DONE]\n\n") is stream
            assert second.requests[-1].body["model"] == "other-1"
            assert "authorization" not in second.requests[-1].headers
            (row,) = r.stored()
            assert (row.status, row.reason) == (Status.COMPLETE, "ood")
            outcomes = [(a.upstream, a.outcome) for a in row.attempts]
            assert [u for u, _ in outcomes] == [
                "banking-intents/teacher",
                "banking-intents/teacher1",
            ]
            assert outcomes[1][1] == "ok" != outcomes[0][1]
            assert row.attempts[1].cost_usd == pytest.approx(26e-6)
            await r.settled()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_with_no_other_teacher_every_fault_is_an_honest_error(
    tmp_path: Path, fault: str, stream: bool
) -> None:
    async with rig(tmp_path, teacher={**LIMITS, "retries": 0}) as r:
        r.teacher.handler = FAULTS[fault]
        response = await r.ask(FAR, stream=stream)
        assert response.status_code in {429, 502, 503}
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        (row,) = r.stored()
        assert (row.status, row.answer) == (Status.ERROR, None)
        await r.settled()


async def filtered(received: Received, wire: Wire) -> None:
    """A finish reason of the upstream's filter."""
    body = completion("")
    body["choices"][0]["finish_reason"] = "content_filter"
    await wire.json(200, body)


async def filters(received: Received, wire: Wire) -> None:
    """A filter that refuses the prompt."""
    error = {"message": "no", "type": "t", "param": None, "code": "content_filter"}
    await wire.json(400, {"error": error})


async def test_a_content_filter_is_the_client_s_to_see(tmp_path: Path) -> None:
    second = FakeUpstream(teacher_says("second says"))
    async with second.running():
        place = {"base_url": second.url, "model": "other-1"}
        async with rig(tmp_path, teacher={"fallbacks": [place]}) as r:
            r.teacher.handler = filters
            assert (await r.ask(FAR)).status_code == 400
            r.teacher.handler = filtered
            assert (await r.ask(FAR)).json()["choices"][0]["finish_reason"] == "content_filter"
            assert not second.requests


async def test_a_refused_request_goes_to_another_model_only(tmp_path: Path) -> None:
    """A context overflow at one model is none at another; at the same model it is."""
    second = FakeUpstream(teacher_says("second says"))
    async with second.running():
        same = {"base_url": second.url, "model": "big-1"}
        async with rig(tmp_path, teacher={"fallbacks": [same]}) as r:
            r.teacher.handler = status(400)
            assert (await r.ask(FAR)).status_code == 400
            assert not second.requests
        place = tmp_path / "other"
        place.mkdir()
        other = {**same, "model": "other-1"}
        async with rig(place, teacher={"fallbacks": [other], "retries": 0}) as r:
            r.teacher.handler = status(400)
            assert "second says" in (await r.ask(FAR)).text
            second.handler = refuses
            response = await r.ask(FAR)
            assert response.status_code == 400  # the first model's word, not the second's outage
            assert [a.outcome for a in r.last().attempts] == ["http_400", "http_500"]
            assert r.task.teacher.upstream.breaker.closed


async def test_a_refused_connection_goes_to_the_second_teacher(tmp_path: Path) -> None:
    second = FakeUpstream(teacher_says("second says"))
    async with second.running():
        dead = {"base_url": "http://127.0.0.1:9/v1",
                "fallbacks": [{"base_url": second.url, "model": "m"}]}  # fmt: skip
        async with rig(tmp_path, teacher=dead) as r:
            for _ in range(8):  # the breaker opens meanwhile
                assert "second says" in (await r.ask(FAR)).text
            assert r.metric("understudy_circuit_open", upstream="banking-intents/teacher") == 1


async def test_a_teacher_that_asked_for_a_pause_gets_it_and_the_client_is_told(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, teacher={"retries": 2}) as r:
        r.teacher.handler = status(429, {"retry-after": "30"})
        first = await r.ask(FAR)
        assert (first.status_code, first.headers["retry-after"]) == (429, "30")
        again = await r.ask(FAR)
        assert again.status_code == 429
        assert 1 <= int(again.headers["retry-after"]) <= 30
        assert len(r.teacher.requests) == 1


async def test_retries_are_a_share_of_the_requests(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"retries": 1}) as r:
        r.never_break()
        r.teacher.handler = refuses
        await asyncio.gather(*(r.ask(FAR) for _ in range(60)))
        assert len(r.teacher.requests) <= 60 + RESERVE + 6


async def test_with_every_circuit_open_nobody_waits(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"retries": 3}) as r:
        breaker = r.task.teacher.upstream.breaker
        for _ in range(breaker.threshold):
            breaker.failed(monotonic())
        response = await r.ask(FAR)
        assert response.status_code == 503
        assert 1 <= int(response.headers["retry-after"]) <= 2
        assert "x-should-retry" not in response.headers
        assert not r.teacher.requests
        assert r.task.teacher.budget._tokens == RESERVE  # no retry was spent on waiting


async def test_a_deadline_covers_the_wait_for_a_slot(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"max_in_flight": 1}) as r:
        await r.task.teacher.slots.acquire(Priority.LIVE)
        response = await r.ask(FAR, headers={"x-understudy-deadline-ms": "200"})
        assert response.json()["error"]["code"] == "deadline_exceeded"
        r.task.teacher.slots.release()
        assert (await r.ask(FAR)).status_code == 200


def test_the_budget_bounds_retries_by_share_and_reserve() -> None:
    budget = RetryBudget(0.1)
    retried = 0
    for _ in range(10_000):
        budget.asked()
        retried += budget.take()
    assert 1000 <= retried <= 1000 + RESERVE


async def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = hangs
        response = await r.ask(FAR, headers={"x-understudy-deadline-ms": "200"})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        await r.settled()


async def test_live_calls_go_before_draws_and_draws_leave_a_slot_free() -> None:
    slots = Slots(2)
    order: list[str] = []

    async def work(name: str, priority: Priority) -> None:
        await slots.acquire(priority)
        order.append(name)
        await asyncio.sleep(0.01)
        slots.release()

    await slots.acquire(Priority.LIVE)
    await slots.acquire(Priority.LIVE)
    async with asyncio.TaskGroup() as group:
        for name, priority in (("distill", Priority.DISTILL), ("draw", Priority.DRAW),
                               ("live", Priority.LIVE)):  # fmt: skip
            group.create_task(work(name, priority))
        await asyncio.sleep(0)
        assert slots.waiting == 3
        slots.release()
        slots.release()
    assert order == ["live", "draw", "distill"]
    assert slots.used == 0


async def test_a_cancelled_waiter_takes_no_slot_with_it() -> None:
    slots = Slots(1)
    await slots.acquire(Priority.LIVE)
    waiter = asyncio.create_task(slots.acquire(Priority.LIVE))
    await asyncio.sleep(0)
    slots.release()
    waiter.cancel()  # it was handed the slot already, or will not be
    await asyncio.gather(waiter, return_exceptions=True)
    await asyncio.wait_for(slots.acquire(Priority.LIVE), 1)
    assert slots.used == 1


async def test_a_quota_of_one_serves_one_after_another(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"max_in_flight": 1}) as r:
        r.teacher.handler = teacher_says("x", pause_s=0.02)
        answers: list[Any] = await asyncio.gather(
            *(r.ask(FAR, stream=bool(n % 2)) for n in range(8))
        )
        assert {a.status_code for a in answers} == {200}
        assert r.task.teacher.slots.used == 0
