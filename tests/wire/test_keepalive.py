"""Early heads: a silent stream stays open, and says everything in-band."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from gateway.store.records import Status
from tests.fakes.answers import hangs, refuses, teacher_says
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, Rig, leaves_after, rig
from tests.fakes.upstream import Received, Wire

EARLY: dict[str, Any] = {"limits": {"keepalive_after_s": 0.1}}


async def late_refusal(received: Received, wire: Wire) -> None:
    """An error that comes after the head went out."""
    await asyncio.sleep(0.3)
    await refuses(received, wire)


async def test_a_long_silence_is_filled_with_comments(tmp_path: Path) -> None:
    async with rig(tmp_path, top=EARLY) as r:
        r.teacher.handler = teacher_says("teacher says", pause_s=0.5)
        response = await r.ask(FAR, stream=True)
        assert response.text.startswith(": keep-alive\n\n")
        assert 3 <= response.text.count(": keep-alive\n\n") <= 6
        assert response.text.endswith("data: [DONE]\n\n")
        assert response.headers["x-understudy-served-by"] == "pending"
        assert response.headers["x-request-id"] == r.last().id
        assert r.last().status is Status.COMPLETE
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY) as client:
            stream = await client.chat.completions.create(
                model="banking-intents", stream=True, messages=[{"role": "user", "content": FAR}]
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == "teacher says"


async def test_what_is_quick_is_as_without(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"limits": {"keepalive_after_s": 5}}) as r:
        response = await r.ask(IN_DOMAIN, stream=True)
        assert response.headers["x-understudy-served-by"] == "student"
        assert "keep-alive" not in response.text
        r.teacher.handler = refuses
        assert (await r.ask(FAR, stream=True)).status_code == 502
        assert (await r.ask(FAR)).status_code == 502


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_late_error_is_an_event_that_the_sdk_raises(tmp_path: Path, path: str) -> None:
    async with rig(tmp_path, top=EARLY, teacher={"retries": 0}) as r:
        r.teacher.handler = late_refusal
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY, max_retries=0) as client:
            with pytest.raises((APIError, RuntimeError), match="boom"):
                if path.endswith("responses"):
                    events = await client.responses.create(
                        model="banking-intents", input=FAR, stream=True
                    )
                    async for event in events:
                        if event.type == "error":
                            raise RuntimeError(event.message)
                else:
                    chunks = await client.chat.completions.create(
                        model="banking-intents", stream=True,
                        messages=[{"role": "user", "content": FAR}],
                    )  # fmt: skip
                    async for _ in chunks:
                        pass
        assert r.last().status is Status.ERROR


async def gone(r: Rig, after_s: float) -> None:
    """A client that leaves."""
    body = {"model": "banking-intents", "stream": True,
            "messages": [{"role": "user", "content": FAR}]}  # fmt: skip
    with contextlib.suppress(httpx.ReadTimeout):
        async with r.client.stream(
            "POST", "/v1/chat/completions", json=body, timeout=leaves_after(after_s)
        ) as response:
            async for _ in response.aiter_raw():
                await asyncio.sleep(after_s)
                break


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.35])
async def test_a_client_that_leaves_frees_the_upstream_and_is_kept(
    tmp_path: Path, after_s: float
) -> None:
    async with rig(tmp_path, top=EARLY, teacher={"first_byte_timeout_s": 30}) as r:
        r.teacher.handler = hangs
        await gone(r, after_s)
        await r.settled()
        (row,) = await r.stored_soon(1)
        assert (row.status, row.error) == (Status.INCOMPLETE, "client_gone")
        assert r.service.load.total == 0
        assert r.task.teacher.slots.used == 0


async def test_leaving_as_the_answer_comes_leaks_nothing(tmp_path: Path) -> None:
    """Clients leave around the very moment at which the reply is there."""
    async with rig(tmp_path, top=EARLY) as r:
        r.teacher.handler = teacher_says("teacher says", pause_s=0.15)
        await asyncio.gather(*(gone(r, 0.13 + 0.002 * n) for n in range(20)))
        await r.settled()
        rows = await r.stored_soon(20)
        assert {row.status for row in rows} <= {Status.INCOMPLETE, Status.COMPLETE}
        assert r.service.load.total == 0
        assert r.task.teacher.slots.used == 0
