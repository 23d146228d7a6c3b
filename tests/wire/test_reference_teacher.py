"""The reference teacher: honest about what it is, and broken on demand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from deploy.reference_teacher.answers import UNKNOWN, Answers
from deploy.reference_teacher.app import MODEL, Teacher, create_teacher
from deploy.reference_teacher.knobs import Knobs
from router.rows import Row
from router.template import Message
from tests.fakes.rig import serving

ROWS = [Row((Message("user", f"text {n}"),), f"label_{n}") for n in range(5)]
FAST = Knobs(latency_ms=0, token_ms=0)


@contextlib.asynccontextmanager
async def teacher(knobs: Knobs = FAST) -> AsyncIterator[httpx.AsyncClient]:
    """It, on a real socket: faults need one."""
    app = create_teacher(Teacher(Answers(ROWS), knobs, "secret"))
    headers = {"authorization": "Bearer secret"}
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=2) as client,
    ):
        yield client


def ask(text: str, **fields: object) -> dict[str, object]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], **fields}


async def test_it_answers_from_labels_and_says_what_it_is() -> None:
    async with teacher() as client:
        body = (await client.post("/v1/chat/completions", json=ask("Text  3"))).json()
        assert body["choices"][0]["message"]["content"] == "label_3"
        assert body["model"] == MODEL
        assert "labelled-data" in MODEL
        unknown = (await client.post("/v1/chat/completions", json=ask("?"))).json()
        assert unknown["choices"][0]["message"]["content"] == UNKNOWN
        stranger = await client.post(
            "/v1/chat/completions", json=ask("x"), headers={"authorization": "Bearer no"}
        )
        assert stranger.status_code == 401
        assert (await client.post("/v1/chat/completions", content=b"{")).status_code == 400


async def test_knobs_turn_while_it_runs_and_wrong_ones_are_refused() -> None:
    async with teacher() as client:
        await client.post(
            "/knobs", json={"error_rate": 1.0, "error_status": 429, "retry_after_s": 7}
        )
        failed = await client.post("/v1/chat/completions", json=ask("text 1"))
        assert (failed.status_code, failed.headers["retry-after"]) == (429, "7")
        await client.post("/knobs", json={"error_rate": 0.0, "noise": 1.0})
        body = (await client.post("/v1/chat/completions", json=ask("text 1"))).json()
        assert body["choices"][0]["message"]["content"] != "label_1"
        for wrong in (
            {"volume": 11},
            {"noise": 2},
            {"stream_fault": "explode"},
            {"latency_ms": -1},
        ):
            assert (await client.post("/knobs", json=wrong)).status_code == 400


@pytest.mark.parametrize("fault", ["cut", "error", "malformed", "no_done"])
async def test_streaming_faults(fault: str) -> None:
    async with teacher() as client:
        await client.post("/knobs", json={"stream_fault": fault})
        seen = b""
        with contextlib.suppress(httpx.HTTPError):
            request = ask("text 1", stream=True)
            async with client.stream("POST", "/v1/chat/completions", json=request) as response:
                async for part in response.aiter_raw():
                    seen += part
        assert (b"[DONE]" in seen) == (fault == "error")
        assert (b'"finish_reason": "stop"' in seen) == (fault == "no_done")
