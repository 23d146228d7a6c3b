"""The HTTP side of the reference teacher: ``/v1/chat/completions`` and ``/knobs``."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from deploy.reference_teacher.answers import Answers
from deploy.reference_teacher.knobs import Knobs

MODEL = "reference-teacher-labelled-data"
_PIECES = re.compile(r"\s*[^\s_]+_?|\s+")


class Teacher:
    """Answers, knobs, and a count of what was asked."""

    def __init__(self, answers: Answers, knobs: Knobs, api_key: str | None) -> None:
        self.answers = answers
        self.knobs = knobs
        self.rng = random.Random(knobs.seed)
        self.requests = 0
        self._api_key = api_key

    def authorised(self, header: str | None) -> bool:
        """Whether the bearer key fits, if one is wanted."""
        return self._api_key is None or header == f"Bearer {self._api_key}"


def create_teacher(teacher: Teacher) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    @app.get("/knobs")
    async def knobs() -> dict[str, Any]:
        return {name: getattr(teacher.knobs, name) for name in Knobs.__slots__} | {
            "requests": teacher.requests
        }

    @app.post("/knobs")
    async def turn(request: Request) -> Response:
        try:
            teacher.knobs = teacher.knobs.changed(await request.json())
        except (ValueError, TypeError) as error:
            return _error(400, str(error))
        return JSONResponse({"ok": True})

    @app.post("/aliases")
    async def rename(request: Request) -> Response:
        """Another word for some labels: ``{"old": "new"}``."""
        names = await request.json()
        if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
            return _error(400, "The body is an object of labels and their new names.")
        teacher.answers.rename(names)
        return JSONResponse({"ok": True})

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        teacher.requests += 1
        if not teacher.authorised(request.headers.get("authorization")):
            return _error(401, "Incorrect API key provided.", code="invalid_api_key")
        try:
            body = json.loads(await request.body())
            text = _last_user(body)
        except (ValueError, KeyError, TypeError):
            return _error(400, "The body is not a chat completion request.")
        knobs, rng = teacher.knobs, teacher.rng
        await asyncio.sleep(knobs.think_s(rng))
        if rng.random() < knobs.error_rate:
            headers = {"retry-after": str(knobs.retry_after_s)} if knobs.retry_after_s else {}
            return _error(knobs.error_status, "The reference teacher was told to fail.", headers)
        answer = teacher.answers.answer(text, knobs.noise, rng)
        usage = _usage(body, answer)
        if body.get("stream"):
            wants = bool((body.get("stream_options") or {}).get("include_usage"))
            stream = _stream(answer, usage if wants else None, knobs, rng)
            return StreamingResponse(stream, media_type="text/event-stream")
        return JSONResponse(_completion(answer, usage))

    return app


def _last_user(body: dict[str, Any]) -> str:
    content = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content)


def tokens(text: str) -> int:
    """A rough token count: four characters each. It only drives price and pace."""
    return max(1, (len(text) + 3) // 4)


def _usage(body: dict[str, Any], answer: str) -> dict[str, int]:
    prompt = sum(tokens(str(m.get("content", ""))) + 4 for m in body["messages"])
    completion = tokens(answer)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{time.time_ns():x}", "object": kind, "created": int(time.time()),
            "model": MODEL, "system_fingerprint": "fp_reference"}  # fmt: skip


def _completion(answer: str, usage: dict[str, int]) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**_head("chat.completion"), "choices": [choice], "usage": usage}


async def _stream(
    answer: str, usage: dict[str, int] | None, knobs: Knobs, rng: random.Random
) -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk")
    fault = knobs.stream_fault if rng.random() < knobs.stream_fault_rate else "none"
    pieces = _PIECES.findall(answer) or [answer]
    yield _chunk(head, {"role": "assistant", "content": ""})
    for number, piece in enumerate(pieces):
        await asyncio.sleep(knobs.token_ms / 1000)
        yield _chunk(head, {"content": piece})
        if number == len(pieces) // 2 and fault in {"cut", "stall", "error", "malformed"}:
            async for last in _faulty(fault):
                yield last
            return
    yield _chunk(head, {}, "stop")
    if usage is not None:
        yield _event({**head, "choices": [], "usage": usage})
    if fault != "no_done":
        yield b"data: [DONE]\n\n"


async def _faulty(fault: str) -> AsyncIterator[bytes]:
    if fault == "cut":
        raise ConnectionResetError("the reference teacher was told to die")
    if fault == "stall":
        await asyncio.sleep(3600)
    if fault == "error":
        yield _event({"error": {"message": "told to fail", "type": "server_error", "code": 500}})
        yield b"data: [DONE]\n\n"
    else:
        yield b"data: {not json\n\n"


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event({**head, "choices": [choice]})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _error(
    status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers)
