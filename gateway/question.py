"""What a teacher is asked, whichever endpoint it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from gateway.api.request import Api, ApiRequest
from gateway.streams.shape import AnswerStream
from gateway.streams.whole import teacher_stream, whole_answer
from router.values import value


class Question(Protocol):
    """A call that can be made at any of a teacher's upstreams (or only the first), again if need
    be. ``held`` streams have to be whole before anything of them is served."""

    @property
    def path(self) -> str:
        """Below the upstream's base URL."""
        ...

    @property
    def anywhere(self) -> bool:
        """Whether it names no model that only the first upstream knows."""
        ...

    @property
    def stream(self) -> bool:
        """Whether events come back."""
        ...

    @property
    def held(self) -> bool:
        """Whether a stream is read to its end first."""
        ...

    def payload(self, model: str) -> bytes:
        """The body for an upstream that calls its model by this name."""
        ...

    def whole(self, raw: bytes) -> dict[str, Any] | None:
        """A JSON answer, if it is whole."""
        ...

    def reader(self) -> AnswerStream:
        """Something to read a stream with."""
        ...


@value(frozen=True, slots=True)
class Asked:
    """A client's request. ``passthrough`` leaves the model's name as the client wrote it."""

    request: ApiRequest
    held: bool = False
    passthrough: bool = False

    @property
    def path(self) -> str:
        """Of the request's endpoint."""
        return self.request.api.path

    @property
    def anywhere(self) -> bool:
        """A passed-through model name means something at one upstream only."""
        return not self.passthrough

    @property
    def stream(self) -> bool:
        """As the client wants it."""
        return self.request.stream

    def payload(self, model: str) -> bytes:
        """The client's body under the upstream's model name; usage is always asked for in
        streams, because cost is counted. As the client sent it where nothing changes."""
        request = self.request
        wanted = request.model if self.passthrough else model
        usage = request.stream and request.api is not Api.RESPONSES and not request.include_usage
        if wanted == request.model and not usage and request.raw:
            return request.raw
        body = {**request.body, "model": wanted}
        if usage:
            options = request.body.get("stream_options") or {}
            body["stream_options"] = {**options, "include_usage": True}
        return orjson.dumps(body)

    def whole(self, raw: bytes) -> dict[str, Any] | None:
        """By the endpoint's shape."""
        return whole_answer(self.request.api, raw)

    def reader(self) -> AnswerStream:
        """By the endpoint's shape; nothing of it is sent."""
        return teacher_stream(self.request, {})


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole JSON answer from one path: embeddings, and chats of the gateway's own making.

    ``named`` bodies keep their own model name and go to the first upstream only.
    """

    path: str
    body: Mapping[str, Any]
    named: bool = False
    stream: bool = False
    held: bool = False

    @property
    def anywhere(self) -> bool:
        """Where the body names no model of its own."""
        return not self.named

    def payload(self, model: str) -> bytes:
        """The body under the upstream's model name."""
        return orjson.dumps(self.body if self.named else {**self.body, "model": model})

    def whole(self, raw: bytes) -> dict[str, Any] | None:
        """An object without an error."""
        if self.path == Api.CHAT.path:
            return whole_answer(Api.CHAT, raw)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        whole = isinstance(body, dict) and isinstance(body.get("data"), list)
        return body if whole else None

    def reader(self) -> AnswerStream:
        """There is no stream to read."""
        raise NotImplementedError("a plain question is not streamed")
