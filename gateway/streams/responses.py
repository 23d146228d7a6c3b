"""The stream of ``/v1/responses``: typed events, no ``[DONE]``.

Reference: platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.streams.shape import Parse

_COMPLETE = frozenset({"response.completed", "response.incomplete"})
_FAILED = frozenset({"response.failed", "error"})
_ENDS = frozenset(
    {
        "response.output_text.done",
        "response.refusal.done",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.done",
        *_COMPLETE,
    }
)
"""From the first of these on a client may take the answer for whole."""


@dataclass(slots=True)
class ResponsesStream:
    """Relays a teacher's events under the asked-for model name; ids stay the teacher's, since
    ``previous_response_id`` refers to them."""

    model: str
    _response: Mapping[str, Any] | None = None
    _texts: dict[tuple[int, int], str] = field(default_factory=dict)
    _complete: bool = False
    _sequence: int = -1
    """Of the last event that went out: a failure's number follows it."""
    _tail: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the closing event came."""
        return self._complete

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """Of the closing event."""
        usage = (self._response or {}).get("usage")
        return usage if isinstance(usage, Mapping) else None

    def failed(self, event: Mapping[str, Any]) -> bool:
        """Whether the upstream reports a failure."""
        return event.get("type") in _FAILED or "type" not in event

    def learn(self, event: Mapping[str, Any]) -> None:
        """Keep the latest snapshot, and the text meanwhile."""
        kind = event["type"]
        if "response" in event:
            self._response = dict(event["response"])
        if kind == "response.output_text.delta":
            place = int(event.get("output_index", 0)), int(event.get("content_index", 0))
            self._texts[place] = self._texts.get(place, "") + event["delta"]
        self._complete = self._complete or kind in _COMPLETE

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> bytes:
        """An event as it came but for the model's name."""
        number = int(event.get("sequence_number", 0))
        out = dict(event)
        if "response" in out:
            out["response"] = {**out["response"], "model": self.model}
        if self._tail or out["type"] in _ENDS:
            self._tail.append(out)
            return b""
        self._sequence = max(self._sequence, number)
        return typed(out)

    def at_once(self, raw: bytes, parsed: Parse) -> bytes:
        """Every event is learned and taken."""
        return b""

    def answer(self) -> dict[str, Any]:
        """The response of the closing event; before it, what there is."""
        response = dict(self._response or {"object": "response"})
        if not self._complete:
            response |= {"status": "incomplete", "output": self._so_far()}
        return {**response, "model": self.model}

    def close(self, note: Mapping[str, Any] | None) -> bytes:
        """The held events."""
        if note is not None and "response" in self._tail[-1]:
            self._tail[-1]["response"]["understudy"] = note
        return b"".join(typed(event) for event in self._tail)

    def fail(self, error: GatewayError) -> bytes:
        """``response.failed``, the API's own honest end."""
        return failure(self.answer(), error, self._sequence + 1)

    def _so_far(self) -> list[dict[str, Any]]:
        parts = [
            {"type": "output_text", "text": text, "annotations": []}
            for _, text in sorted(self._texts.items())
        ]
        if not parts:
            return []
        return [{"type": "message", "role": "assistant", "status": "incomplete", "content": parts}]


def typed(event: Mapping[str, Any]) -> bytes:
    """An event with its type in both places, as the API has it."""
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + b"\n\n"


def failure(response: Mapping[str, Any], error: GatewayError, number: int) -> bytes:
    """The event that ends a response which cannot be completed."""
    told = {"code": "server_error", "message": f"{error.message} ({error.code})"}
    return typed(
        {
            "type": "response.failed",
            "sequence_number": number,
            "response": {**response, "status": "failed", "error": told},
        }
    )
