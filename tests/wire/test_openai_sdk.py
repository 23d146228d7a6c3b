"""The official SDK, with only ``base_url`` and key changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI

from tests.fakes.answers import refuses, teacher_chunk
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, rig
from tests.wire.test_streams import encoded, scripted

CASES = pytest.mark.parametrize(
    ("text", "answer", "by"),
    [(IN_DOMAIN, "apr", "student"), (FAR, "teacher says", "teacher")],
    ids=["student", "teacher"],
)


def chat(text: str) -> Any:
    """Arguments of a call, as an application has them."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}


@CASES
async def test_async(tmp_path: Path, text: str, answer: str, by: str) -> None:
    async with rig(tmp_path) as r, AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY) as client:
        whole = await client.chat.completions.with_raw_response.create(**chat(text))
        assert whole.headers["x-understudy-served-by"] == by
        parsed = whole.parse()
        assert parsed.choices[0].message.content == answer
        assert parsed.model == "gpt-4o-mini"
        assert parsed.usage is not None
        assert parsed._request_id == r.stored()[0].id
        stream = await client.chat.completions.create(**chat(text), stream=True)
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        assert "".join(pieces) == answer
        async with client.chat.completions.stream(**chat(text)) as managed:
            final = await managed.get_final_completion()
        assert final.choices[0].message.content == answer
        assert final.choices[0].finish_reason == "stop"


@CASES
async def test_sync(tmp_path: Path, text: str, answer: str, by: str) -> None:
    def ask(url: str) -> tuple[str | None, str, list[str]]:
        with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            whole = client.chat.completions.create(**chat(text))
            stream = client.chat.completions.create(**chat(text), stream=True)
            pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
            return (
                whole.choices[0].message.content,
                "".join(pieces),
                [m.id for m in client.models.list()],
            )

    async with rig(tmp_path) as r:
        assert await asyncio.to_thread(ask, r.url) == (
            answer,
            answer,
            ["banking-intents", "gpt-4o-mini"],
        )


async def test_errors_are_the_sdk_s_own_classes(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key="wrong") as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.models.list()
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY) as client:
            with pytest.raises(NotFoundError) as caught:
                await client.chat.completions.create(**{**chat("x"), "model": "none"})
            assert caught.value.code == "model_not_found"
            r.teacher.handler = refuses
            before = len(r.teacher.requests)
            with pytest.raises(APIStatusError) as failed:
                await client.chat.completions.create(**chat(FAR))
            assert failed.value.status_code == 502
            # Two attempts of ours, none of the SDK's on top.
            assert len(r.teacher.requests) - before == 2


async def test_a_broken_stream_raises_instead_of_ending(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, router={"hold": 32}) as r,
        AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY) as client,
    ):
        begun = teacher_chunk({"role": "assistant", "content": "half an"})
        r.teacher.handler = scripted(encoded([begun], done=False), end=False)
        stream = await client.chat.completions.create(**chat(FAR), stream=True)
        with pytest.raises(APIError, match="cut before its end"):
            async for _ in stream:
                pass
