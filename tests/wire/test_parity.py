"""The official SDK gets the same parsed objects from us as from the bare upstream.

Everything but id, model and created is compared, whole answers and streams chunk by chunk, for
requests that the teacher serves; the student's side is in ``test_streams`` and ``test_endpoints``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI
from pydantic import BaseModel

from tests.fakes.openai_api import openai_api
from tests.fakes.rig import FAR, KEY, Rig, rig
from tests.wire.cases import CASES, user


def plain(item: BaseModel) -> dict[str, Any]:
    """A parsed object without what is ours to name."""
    return item.model_dump(exclude={"id", "model", "created"})


async def asked(client: AsyncOpenAI, model: str, stream: bool, case: dict[str, Any]) -> Any:
    """What an application gets to see: parsed objects, or the exception's facts."""
    request: dict[str, Any] = {"model": model, **user(FAR), **case}
    try:
        answer: Any = await client.chat.completions.create(**request, stream=stream)
        if not stream:
            return plain(answer)
        return await _merged(answer)
    except APIStatusError as error:
        return type(error).__name__, error.status_code, error.code, error.param, error.body


async def _merged(chunks: AsyncIterator[Any]) -> dict[str, Any]:
    """A stream's sum: where chunks are cut, and which of them hold nothing, is nobody's promise."""
    deltas: dict[int, dict[str, Any]] = {}
    usage, ids = [], set()
    async for chunk in chunks:
        ids.add((chunk.id, chunk.model, chunk.created, chunk.object, chunk.system_fingerprint))
        usage += [chunk.usage.model_dump()] if chunk.usage else []
        for choice in chunk.choices:
            whole = deltas.setdefault(choice.index, {"role": [], "text": "", "calls": {},
                                                     "finish": [], "logprobs": []})  # fmt: skip
            delta = choice.delta
            whole["role"] += [delta.role] if delta.role else []
            whole["text"] += delta.content or ""
            whole["finish"] += [choice.finish_reason] if choice.finish_reason else []
            whole["function"] = delta.function_call or whole.get("function")
            listed = choice.logprobs.content if choice.logprobs else None
            whole["logprobs"] += [token.model_dump() for token in listed or ()]
            for call in delta.tool_calls or ():
                known = whole["calls"].setdefault(call.index, {"id": [], "name": [], "args": ""})
                known["id"] += [call.id] if call.id else []
                known["name"] += [call.function.name] if call.function.name else []
                known["args"] += call.function.arguments or ""
    assert len(ids) == 1
    for whole in deltas.values():
        assert whole["role"] == ["assistant"]
        assert len(whole["finish"]) == 1
    return {"choices": deltas, "usage": usage, "fingerprint": ids.pop()[-1]}


def clients(r: Rig) -> tuple[AsyncOpenAI, AsyncOpenAI]:
    """Ours and the bare upstream's; the SDK's own retries are off."""
    ours = AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY, max_retries=0)
    return ours, AsyncOpenAI(base_url=r.teacher.url, api_key="any", max_retries=0)


@pytest.mark.parametrize("hold", ["all", 32])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_case_parses_to_the_same(tmp_path: Path, stream: bool, hold: Any) -> None:
    async with rig(tmp_path, router={"hold": hold}) as r:
        r.teacher.handler = openai_api
        ours, bare = clients(r)
        async with ours, bare:
            for name, case in CASES.items():
                expected = await asked(bare, "big-1", stream, case)
                sent = r.teacher.requests[-1].body
                got = await asked(ours, "banking-intents", stream, case)
                assert got == expected, name
                told = dict(r.teacher.requests[-1].body)
                if "stream_options" not in sent:
                    told.pop("stream_options", None)
                assert told == sent, name


async def test_usage_in_streams_is_the_upstream_s(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = openai_api
        ours, bare = clients(r)
        wanted = {"stream_options": {"include_usage": True}}
        async with ours, bare:
            got = await asked(ours, "banking-intents", True, wanted)
            assert got == await asked(bare, "big-1", True, wanted)
            assert len(got["usage"]) == 1
