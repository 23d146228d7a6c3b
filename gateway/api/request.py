"""A validated request of any endpoint that the gateway judges and captures."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson

from gateway.errors import GatewayError
from router.template import Message
from router.values import value


class Api(StrEnum):
    """Endpoints, as the store names them."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"

    @property
    def path(self) -> str:
        """Path below an upstream's base URL."""
        return "/chat/completions" if self is Api.CHAT else f"/{self.value}"


@value(frozen=True, slots=True)
class ApiRequest:
    """One request.

    ``body`` is what the client sent, unknown fields included; ``raw`` the same as bytes. ``chat``
    is the same question as a chat completion: what a student is asked; None where a chat cannot
    ask it, and then ``foreign`` names the feature that stands in the way.
    """

    api: Api
    raw: bytes
    body: Mapping[str, Any]
    chat: Mapping[str, Any] | None
    model: str
    messages: tuple[Message, ...]
    text_only: bool
    stream: bool
    include_usage: bool
    logprobs: int | None = None
    """Alternatives per token that the client asked for; None: no log-probabilities."""
    foreign: str | None = None

    @property
    def max_tokens(self) -> int | None:
        """The client's bound on the answer, under either name."""
        chat = self.chat or {}
        value: int | None = chat.get("max_completion_tokens") or chat.get("max_tokens")
        return value

    @property
    def tools(self) -> Any:
        """The tool schemas, which belong to the template."""
        return (self.chat or {}).get("tools")

    @property
    def response_format(self) -> Any:
        """The asked-for format, which belongs to the template; None for plain text."""
        wanted = (self.chat or {}).get("response_format") or {}
        return wanted if wanted.get("type", "text") != "text" else None


def parse_object(raw: bytes) -> dict[str, Any]:
    """A body that must be a JSON object.

    Raises:
        GatewayError: ``invalid_json``.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise GatewayError(
            "invalid_json", f"The body is not valid JSON in UTF-8 ({error}); send a JSON object."
        ) from None
    if not isinstance(body, dict):
        raise GatewayError("invalid_json", "The body must be a JSON object; send {...}.")
    return body
