"""Every reason of the closed enum is reachable, is in the headers, and is what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.store.records import Status
from gateway.verdict import Reason
from tests.fakes.answers import (
    UNSURE,
    hangs,
    refuses,
    student_says,
    teacher_says,
)
from tests.fakes.rig import ANSWER, FAR, Rig, rig

BOTH = pytest.mark.parametrize("stream", [False, True])
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}


async def expect(r: Rig, served_by: str, reason: Reason, **request: Any) -> None:
    """Ask once; headers, body and store must tell the same story."""
    before = len(r.stored())
    response = await r.ask(**request)
    assert response.status_code == 200, response.text
    assert response.headers["x-understudy-served-by"] == served_by
    assert response.headers["x-understudy-reason"] == reason
    rows = r.stored()
    assert len(rows) == before + 1
    exchange = rows[-1]
    assert (exchange.served_by, exchange.reason) == (served_by, reason)
    assert exchange.status is Status.COMPLETE
    assert exchange.id == response.headers["x-request-id"]
    assert exchange.answer is not None
    content = exchange.answer["choices"][0]["message"]["content"]
    assert content == ("apr" if served_by == "student" else "teacher says")
    assert content[:2] in response.text
    assert r.metric(
        "understudy_requests_total",
        task="banking-intents", served_by=served_by, reason=reason, code_class="2xx",
    ) >= 1  # fmt: skip


@BOTH
async def test_in_distribution_and_confident_is_the_student_s(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r:
        await expect(r, "student", Reason.IN_DISTRIBUTION, stream=stream)
        assert not r.teacher.requests


@BOTH
async def test_far_text_goes_to_the_teacher_without_asking_the_student(
    tmp_path: Path, stream: bool
) -> None:
    async with rig(tmp_path) as r:
        await expect(r, "teacher", Reason.OOD, text=FAR, stream=stream)
        assert not r.student.requests


@BOTH
async def test_a_system_message_never_trained_on_is_a_new_template(
    tmp_path: Path, stream: bool
) -> None:
    async with rig(tmp_path) as r:
        chat = [{"role": "system", "content": "Be a pirate."}, {"role": "user", "content": "apr?"}]
        await expect(r, "teacher", Reason.NEW_TEMPLATE, messages=chat, stream=stream)


@BOTH
async def test_an_unsure_student_is_cancelled_for_the_teacher(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = student_says(["h", "mm"], UNSURE)
        await expect(r, "teacher", Reason.LOW_CONFIDENCE, stream=stream)


@BOTH
@pytest.mark.parametrize(
    "feature",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"stop": ["x"]},
        {"presence_penalty": 1.0},
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
    ],
    ids=["tools", "response_format", "n", "stop", "penalty", "image", "too-long"],
)  # fmt: skip
async def test_what_the_student_cannot_do_goes_to_the_teacher(
    tmp_path: Path, stream: bool, feature: dict[str, Any]
) -> None:
    async with rig(tmp_path) as r:
        await expect(r, "teacher", Reason.UNSUPPORTED_FEATURE, stream=stream, **feature)


async def test_sampling_outside_the_profile_is_unsupported_unless_pinned(tmp_path: Path) -> None:
    async with rig(tmp_path, pin_sampling=False) as r:
        await expect(r, "teacher", Reason.UNSUPPORTED_FEATURE)
        await expect(r, "teacher", Reason.UNSUPPORTED_FEATURE, temperature=0, max_tokens=1)
        await expect(r, "student", Reason.IN_DISTRIBUTION, temperature=0)
        await expect(r, "student", Reason.IN_DISTRIBUTION, temperature=0.0, top_p=1)
        asked: list[tuple[dict[str, Any], str]] = [
            ({}, "temperature"), ({"temperature": 0, "n": 2}, "n"),
        ]  # fmt: skip
        for body, named in asked:
            told = (await r.ask(headers={"x-understudy-explain": "1"}, **body)).json()
            assert told["understudy"]["unsupported"] == named


@BOTH
async def test_a_failing_student_is_rescued(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = refuses
        await expect(r, "teacher", Reason.STUDENT_ERROR, stream=stream)


@BOTH
async def test_a_slow_student_is_rescued(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path, student={"timeout_s": 0.2}) as r:
        r.student.handler = hangs
        await expect(r, "teacher", Reason.STUDENT_TIMEOUT, stream=stream)


async def test_a_student_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = refuses
        for _ in range(5):
            await expect(r, "teacher", Reason.STUDENT_ERROR)
        await expect(r, "teacher", Reason.CIRCUIT_OPEN)
        assert len(r.student.requests) == 5
        assert r.metric("understudy_circuit_open", upstream="banking-intents/student0") == 1


async def test_a_stricter_budget_than_the_certificate_s_closes_the_gate(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"alpha": 0.01, "draw_rate": 0.0}) as r:
        await expect(r, "teacher", Reason.GATE_CLOSED)
        assert r.metric("understudy_gate_open", task="banking-intents") == 0
        assert not r.student.requests


async def test_a_task_without_a_student(tmp_path: Path) -> None:
    async with rig(tmp_path, student=None, router=None) as r:
        await expect(r, "teacher", Reason.NO_STUDENT)


@BOTH
async def test_a_dead_teacher_s_place_is_taken_where_the_policy_says_so(
    tmp_path: Path, stream: bool
) -> None:
    async with rig(tmp_path, on_teacher_down="student") as r:
        r.teacher.handler = refuses
        await expect(r, "student", Reason.TEACHER_DOWN, text=FAR, stream=stream)


async def test_under_a_closed_gate_the_student_stands_in_only_if_told(tmp_path: Path) -> None:
    strict = {"alpha": 0.01, "draw_rate": 0.0}
    async with rig(tmp_path, on_teacher_down="student", risk=strict) as r:
        r.teacher.handler = refuses
        assert (await r.ask()).status_code == 502
    folder = tmp_path / "told"
    folder.mkdir()
    async with rig(folder, on_teacher_down="student", risk=strict, even_if_closed=True) as r:
        r.teacher.handler = refuses
        await expect(r, "student", Reason.TEACHER_DOWN)


async def test_a_deadline_too_near_for_both_goes_to_the_teacher_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        near = {"x-understudy-deadline-ms": "500"}
        await expect(r, "teacher", Reason.DEADLINE, headers=near)
        assert not r.student.requests
        far = {"x-understudy-deadline-ms": "60000"}
        await expect(r, "student", Reason.IN_DISTRIBUTION, headers=far)


async def test_a_deadline_cuts_a_slow_student_short(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = hangs
        await expect(r, "teacher", Reason.DEADLINE, headers={"x-understudy-deadline-ms": "1200"})


@BOTH
async def test_a_hedge_is_won_by_whoever_commits_first(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path, router={"hedge_from": 0.0}) as r:
        r.student.handler = student_says(ANSWER, pause_s=0.1)
        await expect(r, "teacher", Reason.HEDGE_WON, stream=stream)
        await r.settled()
        r.student.handler = student_says(ANSWER)
        r.teacher.handler = teacher_says("teacher says", pause_s=3.0)
        await expect(r, "student", Reason.IN_DISTRIBUTION, stream=stream)
        await r.settled()
        r.student.handler = student_says(["h"], UNSURE)
        r.teacher.handler = teacher_says("teacher says", pause_s=0.2)
        await expect(r, "teacher", Reason.LOW_CONFIDENCE, stream=stream)


@BOTH
async def test_overrides_by_header_and_by_name(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r:
        teacher = {"x-understudy-route": "teacher"}
        await expect(r, "teacher", Reason.OVERRIDE, headers=teacher, stream=stream)
        await expect(r, "teacher", Reason.OVERRIDE, model="banking-intents:teacher", stream=stream)
        await expect(
            r, "student", Reason.OVERRIDE, text=FAR, model="banking-intents:student", stream=stream
        )
        far = r.stored()
        await expect(r, "teacher", Reason.OVERRIDE, headers=teacher, text=FAR, stream=stream)
        assert r.stored()[len(far)].would_be_reason == Reason.OOD


def test_no_reason_is_left_out() -> None:
    """Reason.IMPORTED is no request's: ``test_captures_use.py`` has it."""
    source = Path(__file__).read_text()
    assert not [reason for reason in Reason if f"Reason.{reason.name}" not in source]
