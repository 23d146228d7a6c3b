"""Replicas are judged by what they decode, not by an open port."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.health import HealthChecker
from tests.fakes.answers import completion, student_says
from tests.fakes.rig import ANSWER, IN_DOMAIN, Rig, rig
from tests.fakes.upstream import Received, Wire
from tests.faults.test_teachers import status


async def decodes(received: Received, wire: Wire) -> None:
    """A replica with its adapter."""
    if received.body.get("stream"):
        await student_says(ANSWER)(received, wire)
    else:
        await wire.json(200, completion("o"))


def checker(r: Rig) -> HealthChecker:
    """The rig's own checker would run too, in its own time."""
    student = r.service.flow.student
    return HealthChecker(r.service.tasks, student.pool, r.service.metrics)


async def test_a_replica_without_its_adapter_is_left_alone_until_it_has_it(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r:
        student = r.task.student
        assert student is not None
        (first,) = student.upstreams
        r.student.handler = status(404)
        check = checker(r)
        for _ in range(first.breaker.threshold):
            assert not await check.probe(student, first)
        assert student.pick(0.0) is None
        assert r.metric("understudy_circuit_open", upstream=first.name) == 1
        asked = (await r.ask(IN_DOMAIN)).headers
        assert asked["x-understudy-reason"] == "circuit_open"
        r.student.handler = decodes
        assert await check.probe(student, first)
        assert (await r.ask(IN_DOMAIN)).headers["x-understudy-served-by"] == "student"


async def test_an_open_breaker_is_tried_by_the_checker_and_not_on_a_client(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r:
        student = r.task.student
        assert student is not None
        (first,) = student.upstreams
        first.breaker.pause_s = 0.1
        r.student.handler = status(500)
        for _ in range(first.breaker.threshold):
            await r.ask(IN_DOMAIN)
        assert r.metric("understudy_circuit_open", upstream=first.name) == 1
        r.student.handler = decodes
        while not first.breaker.closed:
            await asyncio.sleep(0.02)
        last = r.student.requests[-1].body
        assert last["max_tokens"] == 1
        assert last["model"] == "banking-intents@v1"
        assert len(r.stored()) == first.breaker.threshold
