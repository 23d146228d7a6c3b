"""Classifier students behind OpenAI's wire format: ``understudy student serve``.

Versions are loaded and unloaded while it runs, by the requests that vLLM takes for LoRA adapters:
to the gateway and to the nightly loop the two servers are the same.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from distill.classifier import Classifier, ClassifierError, load_classifier
from router.encoder import Encoders
from router.template import Message, variable_text


class ChatMessage(BaseModel):
    """One message; content as text or as text parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> Message:
        """Its text."""
        if isinstance(self.content, list):
            return Message(self.role, " ".join(str(p.get("text", "")) for p in self.content))
        return Message(self.role, self.content or "")


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class Chat(BaseModel):
    """What of a chat completion request matters here; a classifier samples nothing."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = 0


class Loading(BaseModel):
    """Body of ``/v1/load_lora_adapter``."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: Annotated[str, Field(min_length=1)]


class Unloading(BaseModel):
    """Body of ``/v1/unload_lora_adapter``."""

    lora_name: Annotated[str, Field(min_length=1)]


def create_classifier_app(encoders: Encoders) -> FastAPI:
    """The ASGI application, with no version loaded."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    loaded: dict[str, Classifier] = {}

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Any, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _error(400, f"{where}: {first['msg']}")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "owned_by": "understudy"} for name in loaded]
        return {"object": "list", "data": data}

    @app.post("/v1/load_lora_adapter")
    async def load(body: Loading) -> Response:
        if body.lora_name in loaded:
            return _error(400, f"{body.lora_name} has already been loaded")
        try:
            loaded[body.lora_name] = await asyncio.to_thread(
                load_classifier, Path(body.lora_path), encoders
            )
        except ClassifierError as error:
            return _error(404, str(error))
        return Response(f"Success: {body.lora_name} is loaded.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: Unloading) -> Response:
        if loaded.pop(body.lora_name, None) is None:
            return _error(404, f"{body.lora_name} is not loaded")
        return Response(f"Success: {body.lora_name} is gone.")

    @app.post("/v1/chat/completions")
    async def complete(body: Chat) -> Response:
        student = loaded.get(body.model)
        if student is None:
            return _error(404, f"The model `{body.model}` does not exist.", "NotFoundError")
        text = variable_text([m.plain() for m in body.messages])
        if not text.strip():
            return _error(400, "messages: no user text to classify")
        # The encoder releases the interpreter's lock; requests do not wait for each other.
        found = await asyncio.to_thread(student.alternatives, text)
        said = _Said(body, found, text)
        if body.stream:
            return StreamingResponse(said.stream(), media_type="text/event-stream")
        return Response(orjson.dumps(said.completion()), media_type="application/json")

    return app


class _Said:
    """One answer in the shapes of the API."""

    def __init__(self, asked: Chat, found: list[tuple[str, float]], text: str) -> None:
        self.asked = asked
        self.found = found
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
        }
        prompt = max(1, len(text) // 4)  # about; it decides nothing here
        self.usage = {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1}

    def completion(self) -> dict[str, Any]:
        """A whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.found[0][0]},
            "logprobs": self._logprobs(),
            "finish_reason": "stop",
        }
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    async def stream(self) -> AsyncIterator[bytes]:
        """The same as events."""
        for event in self._events():
            yield b"data: " + orjson.dumps(event) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _events(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""}, None, None)
        yield self._chunk({"content": self.found[0][0]}, self._logprobs(), None)
        yield self._chunk({}, None, "stop")
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            head = {**self.head, "object": "chat.completion.chunk"}
            yield {**head, "choices": [], "usage": self.usage}

    def _chunk(self, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        label, logprob = self.found[0]
        top = [
            {"token": token, "logprob": value, "bytes": list(token.encode())}
            for token, value in self.found[: self.asked.top_logprobs or 0]
        ]
        token = {"token": label, "logprob": logprob, "bytes": list(label.encode())}
        return {"content": [{**token, "top_logprobs": top}]}


def _error(status: int, message: str, kind: str = "BadRequestError") -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(body, status)
