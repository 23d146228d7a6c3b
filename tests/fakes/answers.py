"""Answers as vLLM and a teacher send them, for the fake upstreams to play."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.fakes.upstream import Handler, Received, Wire

SURE = -0.001
UNSURE = -3.0
USAGE = {"prompt_tokens": 23, "completion_tokens": 3, "total_tokens": 26}


def vllm_token(text: str, logprob: float, content: str | None = None) -> dict[str, Any]:
    """A chunk with one token, in the shape that vLLM 0.32 gives, its own fields included."""
    other = min(-0.05, logprob - 6.0) if logprob > -1 else logprob - 0.1
    top = [
        {"token": text, "logprob": logprob, "bytes": []},
        {"token": "x", "logprob": other, "bytes": []},
    ]
    return vllm_chunk(
        {"content": text if content is None else content},
        {"content": [{"token": text, "logprob": logprob, "bytes": [], "top_logprobs": top}]},
    )


def vllm_chunk(
    delta: dict[str, Any], logprobs: Any = None, finish: str | None = None
) -> dict[str, Any]:
    """Any chunk of a vLLM stream."""
    choice = {
        "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
        "stop_reason": None, "token_ids": None,
    }  # fmt: skip
    return {"id": "chatcmpl-vllm", "object": "chat.completion.chunk", "created": 1, "model": "m@v1",
            "choices": [choice], "prompt_token_ids": None}  # fmt: skip


def vllm_events(
    tokens: Sequence[str], logprob: float = SURE, finish: str = "stop"
) -> list[dict[str, Any]]:
    """A whole stream: role chunk, tokens, end-of-turn token with the finish reason, usage."""
    last = vllm_token("<|im_end|>", logprob, "")
    last["choices"][0]["finish_reason"] = finish
    usage = {**vllm_chunk({}), "choices": [], "usage": USAGE}
    return [
        vllm_chunk({"role": "assistant", "content": ""}),
        *(vllm_token(token, logprob) for token in tokens),
        last,
        usage,
    ]


def student_says(
    tokens: Sequence[str], logprob: float = SURE, finish: str = "stop", pause_s: float = 0.0
) -> Handler:
    """A student that streams these tokens."""

    async def handler(received: Received, wire: Wire) -> None:
        await wire.stream()
        for event in vllm_events(tokens, logprob, finish):
            await asyncio.sleep(pause_s)
            await wire.event(event)
        await wire.done()

    return handler


def completion(content: str, **message: Any) -> dict[str, Any]:
    """A teacher's whole answer."""
    whole = {"role": "assistant", "content": content, "refusal": None, **message}
    choice = {"index": 0, "message": whole, "logprobs": None, "finish_reason": "stop"}
    return {"id": "chatcmpl-teacher", "object": "chat.completion", "created": 1, "model": "big-1",
            "choices": [choice], "usage": USAGE, "system_fingerprint": "fp_1"}  # fmt: skip


def teacher_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """A chunk of a teacher's stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-teacher", "object": "chat.completion.chunk", "created": 1,
            "model": "big-1", "choices": [choice], "system_fingerprint": "fp_1"}  # fmt: skip


def teacher_events(pieces: Sequence[str], usage: bool) -> list[dict[str, Any]]:
    """A whole teacher stream."""
    last = [{**teacher_chunk({}), "choices": [], "usage": USAGE}] if usage else []
    return [
        teacher_chunk({"role": "assistant", "content": ""}),
        *(teacher_chunk({"content": piece}) for piece in pieces),
        teacher_chunk({}, "stop"),
        *last,
    ]


def teacher_says(content: str, pause_s: float = 0.0) -> Handler:
    """A teacher that gives one answer, streamed or not."""

    async def handler(received: Received, wire: Wire) -> None:
        await asyncio.sleep(pause_s)
        if not received.body.get("stream"):
            await wire.json(200, completion(content))
            return
        options = received.body.get("stream_options") or {}
        await wire.stream()
        half = len(content) // 2
        for event in teacher_events(
            [content[:half], content[half:]], bool(options.get("include_usage"))
        ):
            await wire.event(event)
        await wire.done()

    return handler


async def refuses(received: Received, wire: Wire) -> None:
    """An upstream that answers 500."""
    await wire.json(
        500, {"error": {"message": "boom", "type": "server_error", "param": None, "code": None}}
    )


async def hangs(received: Received, wire: Wire) -> None:
    """An upstream that never answers."""
    await asyncio.sleep(3600)


async def resets(received: Received, wire: Wire) -> None:
    """An upstream that cuts the connection."""
    wire.reset()
