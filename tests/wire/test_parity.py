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

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}  # fmt: skip
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}


def user(content: Any) -> dict[str, Any]:
    """A request of one user message."""
    return {"messages": [{"role": "user", "content": content}]}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"messages": [{"role": "system", "content": "s"}, *user(FAR)["messages"]]},
    "developer": {"messages": [{"role": "developer", "content": "s"}, *user(FAR)["messages"]]},
    "several_turns": {"messages": [*user("a")["messages"], {"role": "assistant", "content": "b"},
                                   *user(FAR)["messages"]]},
    "parts": user([{"type": "text", "text": FAR}, {"type": "text", "text": "more"}]),
    "image_url": user([{"type": "image_url", "image_url": {"url": "http://x.test/a.png"}}]),
    "image_base64": user([{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]),
    "audio": user([{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]),
    "tools_auto": {"tools": [WEATHER]},
    "tools_parallel": {"tools": [WEATHER, TIME], "parallel_tool_calls": True},
    "tools_required": {"tools": [WEATHER], "tool_choice": "required"},
    "tools_none": {"tools": [WEATHER], "tool_choice": "none"},
    "tools_named": {"tools": [WEATHER, TIME],
                    "tool_choice": {"type": "function", "function": {"name": "time"}}},
    "tool_history": {"tools": [WEATHER], "messages": [
        *user(FAR)["messages"], {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]},
    "functions": {"functions": [{"name": "old", "parameters": {"type": "object"}}]},
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {"response_format": SCHEMA},
    "text_format": {"response_format": {"type": "text"}},
    "logprobs": {"logprobs": True},
    "top_logprobs_0": {"logprobs": True, "top_logprobs": 0},
    "top_logprobs_5": {"logprobs": True, "top_logprobs": 5},
    "n_3": {"n": 3, "seed": 7},
    "max_tokens": {"max_tokens": 2},
    "max_completion_tokens": {"max_completion_tokens": 2},
    "stop": {"stop": "is"},
    "stops": {"stop": ["42", "nothing"]},
    "sampling": {"temperature": 0.3, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": -1},
    "logit_bias": {"logit_bias": {"50256": -100}},
    "newer_fields": {"service_tier": "flex", "store": True, "metadata": {"a": "b"}, "user": "u",
                     "reasoning_effort": "low", "extra_body": {
                         "prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low"}},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "unknown_field": {"extra_body": {"made_up": {"x": [1]}}},
    "web_search_options": {"web_search_options": {}},
    "refused": user("refuse me"),
}  # fmt: skip


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
