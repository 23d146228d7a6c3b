"""A student's chat stream, written as the events of ``/v1/responses``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import GatewayError
from gateway.streams.chat import Assembler, spent_tokens
from gateway.streams.responses import failure, typed
from gateway.streams.shape import Parse, is_error

_ECHOED: Mapping[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "temperature": 1.0,
    "top_p": 1.0, "text": {"format": {"type": "text"}}, "user": None, "store": True,
}  # fmt: skip
_PLAIN: Mapping[str, Any] = {
    "background": False, "error": None, "incomplete_details": None, "parallel_tool_calls": True,
    "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
    "service_tier": "default", "tool_choice": "auto", "tools": [], "truncation": "disabled",
}  # fmt: skip


@dataclass(slots=True)
class ResponsesWriter:
    """``id`` is the response's, ``message_id`` its one output item's; ``asked`` the client's body.

    ``whole`` is learned elsewhere where the student's gate does it.
    """

    id: str
    message_id: str
    created_at: int
    asked: Mapping[str, Any]
    whole: Assembler
    _number: int = 0
    _begun: bool = False

    @property
    def finished(self) -> bool:
        """Whether the chat answer is whole."""
        return self.whole.finished

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """As the student counted."""
        return self.whole.usage

    def failed(self, event: Mapping[str, Any]) -> bool:
        """Whether vLLM reports an error."""
        return is_error(event)

    def learn(self, event: Mapping[str, Any]) -> None:
        """Merge a chat chunk."""
        self.whole.feed(event)

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> bytes:
        """The text of a chunk as a delta; the first comes with the response's opening."""
        choice = (event.get("choices") or [{}])[0]
        text = (choice.get("delta") or {}).get("content")
        if not text:
            return b""
        opening = b"" if self._begun else self._opening()
        return opening + self._event(
            "response.output_text.delta", **self._place, delta=text, logprobs=[]
        )

    def at_once(self, raw: bytes, parsed: Parse) -> bytes:
        """Every event is learned and taken."""
        return b""

    def answer(self) -> dict[str, Any]:
        """The whole response object."""
        whole = self.whole.finished
        status = "completed" if whole else "incomplete"
        return self._response(status, [self._message(status)], self._usage())

    def close(self, note: Mapping[str, Any] | None) -> bytes:
        """Everything from ``output_text.done`` to ``response.completed``."""
        answer = self.answer()
        if note is not None:
            answer["understudy"] = note
        message = answer["output"][0]
        return (b"" if self._begun else self._opening()) + b"".join(
            (
                self._event("response.output_text.done", **self._place,
                            text=self.whole.text, logprobs=[]),
                self._event("response.content_part.done", **self._place,
                            part=message["content"][0]),
                self._event("response.output_item.done", output_index=0, item=message),
                self._event("response.completed", response=answer),
            )
        )  # fmt: skip

    def fail(self, error: GatewayError) -> bytes:
        """``response.failed``."""
        return failure(self.answer(), error, self._number)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _opening(self) -> bytes:
        self._begun = True
        response = self._response("in_progress", [], None)
        item = {**self._message("in_progress"), "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return b"".join(
            (
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place, part=part),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return typed({"type": kind, "sequence_number": number, **fields})

    def _message(self, status: str) -> dict[str, Any]:
        text = {"type": "output_text", "text": self.whole.text, "annotations": [], "logprobs": []}
        return {"id": self.message_id, "type": "message", "status": status, "role": "assistant",
                "content": [text]}  # fmt: skip

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        echoed = {k: v if self.asked.get(k) is None else self.asked[k] for k, v in _ECHOED.items()}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "model": self.asked["model"],
            "output": output,
            "usage": usage,
            **_PLAIN,
            **echoed,
        }

    def _usage(self) -> dict[str, Any] | None:
        if self.whole.usage is None:
            return None
        prompt, completion = spent_tokens(self.whole.usage)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }
