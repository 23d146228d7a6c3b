"""Whatever is wrong with the student before anything was served, the teacher answers, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store.records import Status
from gateway.verdict import Reason
from tests.fakes.answers import student_says, vllm_chunk
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, rig
from tests.fakes.upstream import Handler, Received, Wire
from tests.faults.test_teachers import FAULTS, status


async def integer_code(received: Received, wire: Wire) -> None:
    """vLLM's own form of an error, codes as integers, and a [DONE] behind it."""
    await wire.stream()
    await wire.event(vllm_chunk({"role": "assistant", "content": ""}))
    await wire.event({"object": "error", "message": "boom", "type": "x", "code": 500})
    await wire.done()


STUDENT_FAULTS: dict[str, Handler] = {
    **FAULTS,
    "context_overflow": status(400),
    "adapter_missing": status(404),
    "content_filter": student_says(ANSWER, finish="content_filter"),
    "cut_by_length": student_says(ANSWER, finish="length"),
    "in_band_object": integer_code,
    "nothing_said": student_says([" "]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", STUDENT_FAULTS)
async def test_every_student_fault_is_a_whole_teacher_answer(
    tmp_path: Path, fault: str, stream: bool
) -> None:
    async with rig(tmp_path, student={"timeout_s": 0.4}) as r:
        r.student.handler = STUDENT_FAULTS[fault]
        response = await r.ask(IN_DOMAIN, stream=stream)
        assert response.status_code == 200
        assert response.headers["x-understudy-served-by"] == "teacher"
        assert "r says" in response.text
        assert response.text.endswith("data: [DONE]\n\n") is stream
        (row,) = r.stored()
        assert row.status is Status.COMPLETE
        assert row.reason in {Reason.STUDENT_ERROR, Reason.STUDENT_TIMEOUT}
        assert [a.role for a in row.attempts] == ["student", "teacher"]
        await r.settled()


async def test_a_task_may_keep_the_teacher_out_of_a_student_s_outage(tmp_path: Path) -> None:
    async with rig(tmp_path, on_student_down="error") as r:
        r.student.handler = status(500)
        for _ in range(7):  # the breaker opens on the way
            response = await r.ask(IN_DOMAIN)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "student_unavailable"
            assert response.headers["retry-after"] == "1"
        assert not r.teacher.requests
        assert (await r.ask(FAR)).headers["x-understudy-served-by"] == "teacher"
        reasons = [e.reason for e in r.stored()]
        assert {Reason.STUDENT_ERROR, Reason.CIRCUIT_OPEN} <= set(reasons)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_burst_of_student_failures_costs_no_answer(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = status(500)
        for _ in range(12):
            assert (await r.ask(IN_DOMAIN, stream=stream)).status_code == 200
        assert r.stored()[-1].reason == Reason.CIRCUIT_OPEN
        assert len(r.student.requests) < 12
