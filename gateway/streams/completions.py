"""The stream of ``/v1/completions``: pieces of text instead of deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import GatewayError
from gateway.sse import DONE, encode
from gateway.streams.shape import Parse, error_event, is_error

_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@dataclass(slots=True)
class _Choice:
    text: str = ""
    finish_reason: str | None = None
    logprobs: dict[str, list[Any]] | None = None


@dataclass(slots=True)
class CompletionStream:
    """Relays a teacher's chunks under our id and the asked-for model name."""

    head: Mapping[str, Any]
    include_usage: bool
    usage: Mapping[str, Any] | None = None
    _choices: dict[int, _Choice] = field(default_factory=dict)
    _fingerprint: str | None = None
    _tail: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return bool(self._choices) and all(c.finish_reason for c in self._choices.values())

    def failed(self, event: Mapping[str, Any]) -> bool:
        """Whether the upstream reports an error."""
        return is_error(event)

    def learn(self, event: Mapping[str, Any]) -> None:
        """Join the pieces."""
        usage = event.get("usage")
        self.usage = usage if isinstance(usage, Mapping) else self.usage
        self._fingerprint = event.get("system_fingerprint") or self._fingerprint
        for raw in event.get("choices") or ():
            choice = self._choices.setdefault(int(raw.get("index", 0)), _Choice())
            choice.text += raw.get("text") or ""
            choice.finish_reason = raw.get("finish_reason") or choice.finish_reason
            if raw.get("logprobs"):
                choice.logprobs = _joined(choice.logprobs, raw["logprobs"])

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> bytes:
        """A chunk as it came but for id, model and usage."""
        choices = [dict(choice) for choice in event.get("choices") or ()]
        if not choices:
            return b""
        chunk = {**event, **self.head, "choices": choices}
        chunk.pop("usage", None)
        if self.include_usage:
            chunk["usage"] = None
        if self._tail or any(choice.get("finish_reason") for choice in choices):
            self._tail.append(chunk)
            return b""
        return encode(chunk)

    def at_once(self, raw: bytes, parsed: Parse) -> bytes:
        """Every event is learned and taken."""
        return b""

    def answer(self) -> dict[str, Any]:
        """The completion that the same call would have given unstreamed."""
        return {
            **self.head,
            "object": "text_completion",
            "choices": [
                {"index": index, "text": choice.text, "logprobs": choice.logprobs,
                 "finish_reason": choice.finish_reason}
                for index, choice in sorted(self._choices.items())
            ],
            "usage": self.usage,
            "system_fingerprint": self._fingerprint,
        }  # fmt: skip

    def close(self, note: Mapping[str, Any] | None) -> bytes:
        """Finish reasons, usage where it was asked for, ``[DONE]``."""
        if note is not None and self._tail:
            self._tail[-1]["understudy"] = note
        if self.include_usage and self.usage is not None:
            closing = {"object": "text_completion", "choices": [], "usage": dict(self.usage)}
            self._tail.append({**self.head, **closing})
        return b"".join(encode(chunk) for chunk in self._tail) + DONE

    def fail(self, error: GatewayError) -> bytes:
        """An error event and no ``[DONE]``."""
        return error_event(error)


def _joined(known: dict[str, list[Any]] | None, more: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [*(known or {}).get(name, ()), *(more.get(name) or ())] for name in _LISTS}
