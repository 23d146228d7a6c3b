"""Requests whose answers have to look the same from every side: what the parity suites ask."""

from __future__ import annotations

from typing import Any

from tests.fakes.rig import FAR

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
