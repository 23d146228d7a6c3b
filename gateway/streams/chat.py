"""Chat completion chunks: merged into a whole answer, and cleaned for the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from gateway.errors import GatewayError
from gateway.sse import DONE, encode
from gateway.streams.mould import Mould
from gateway.streams.shape import Parse, error_event, is_error

_KEPT = ("index", "delta", "finish_reason")
"""Of a student's choice. vLLM's own fields (stop_reason, token_ids, …) are no part of the API."""


@dataclass(slots=True)
class _Choice:
    message: dict[str, Any] = field(default_factory=lambda: {"role": "assistant", "content": None})
    texts: list[str] = field(default_factory=list)
    """The content, in the pieces that it came in: joined once, however many they are."""
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    tools: dict[int, dict[str, Any]] = field(default_factory=dict)


MOULDS = 4
"""So many are made for a stream at most."""

_NOTHING: tuple[Any, ...] = ("", None, [])
_FINISH_REASON = attrgetter("finish_reason")


@dataclass(slots=True)
class Assembler:
    """Joins the deltas of a stream into the completion that the same call would have given."""

    choices: dict[int, _Choice] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    upstream_model: str | None = None

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk."""
        usage = chunk.get("usage")
        self.usage = usage if isinstance(usage, Mapping) else self.usage
        self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
        self.upstream_model = chunk.get("model") or self.upstream_model
        for raw in chunk.get("choices") or ():
            index = int(raw.get("index", 0))
            choice = self.choices.get(index)
            if choice is None:
                choice = self.choices[index] = _Choice()
            choice.finish_reason = raw.get("finish_reason") or choice.finish_reason
            if logprobs := raw.get("logprobs"):
                choice.logprobs += logprobs.get("content") or ()
            self._merge(choice, raw.get("delta") or {})

    def add(self, chunk: Mapping[str, Any]) -> list[str] | None:
        """Take a chunk that ``Relay.plain`` found plain, unless it says anything that is new beside
        its text; ``feed`` would do the same, in three times the time. Gives the choice's texts."""
        raw = chunk["choices"][0]
        choice = self.choices.get(raw["index"])
        if (
            choice is None
            or chunk.get("model") != self.upstream_model
            or chunk.get("system_fingerprint") != self.fingerprint
        ):
            return None
        choice.texts.append(raw["delta"]["content"])
        return choice.texts

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return bool(self.choices) and all(map(_FINISH_REASON, self.choices.values()))

    @property
    def text(self) -> str:
        """Content of the first choice so far."""
        choice = self.choices.get(0)
        return "".join(choice.texts) if choice else ""

    def completion(self, head: Mapping[str, Any], logprobs: int | None) -> dict[str, Any]:
        """The whole answer; ``head`` gives id, created and model, ``logprobs`` the number of
        alternatives that the client asked for (None: no log-probabilities)."""
        return {
            **head,
            "object": "chat.completion",
            "choices": [
                self._whole(index, choice, logprobs)
                for index, choice in sorted(self.choices.items())
            ],
            "usage": self.usage,
            "system_fingerprint": self.fingerprint,
        }

    def _whole(self, index: int, choice: _Choice, logprobs: int | None) -> dict[str, Any]:
        message = dict(choice.message)
        if choice.texts:
            message["content"] = "".join(choice.texts)
        if choice.tools:
            message["tool_calls"] = [call for _, call in sorted(choice.tools.items())]
        message.setdefault("refusal", None)
        kept = trimmed({"content": choice.logprobs}, logprobs)
        return {
            "index": index,
            "message": message,
            "logprobs": kept,
            "finish_reason": choice.finish_reason,
        }

    def _merge(self, choice: _Choice, delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                self._merge_tools(choice, value or ())
            elif name == "content" and isinstance(value, str):
                choice.texts.append(value)
            elif name == "refusal" and isinstance(value, str):
                choice.message[name] = (choice.message.get(name) or "") + value
            elif name == "role":
                choice.message["role"] = value or "assistant"
            elif isinstance(value, str) and isinstance(choice.message.get(name), str):
                choice.message[name] += value
            elif value is not None:
                choice.message[name] = value

    def _merge_tools(self, choice: _Choice, calls: Any) -> None:
        for call in calls:
            whole = choice.tools.setdefault(
                int(call.get("index", 0)),
                {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
            )
            whole["id"] = call.get("id") or whole["id"]
            function = call.get("function") or {}
            whole["function"]["name"] += function.get("name") or ""
            whole["function"]["arguments"] += function.get("arguments") or ""


@dataclass(slots=True)
class Relay:
    """Rewrites chunks of one upstream stream into the one clean stream that the client sees: one
    id, one role, the model that was asked for, usage only where wanted."""

    head: Mapping[str, Any]
    logprobs: int | None
    include_usage: bool
    strict: bool
    """Student chunks carry vLLM's own fields and log-probabilities that nobody asked for."""
    _roles: set[int] = field(default_factory=set)
    _closing: Mapping[str, Any] = field(default_factory=dict)
    _fingerprint: str | None = None

    def plain(self, raw: Mapping[str, Any]) -> bool:
        """Whether a chunk does nothing but add text to one choice that has begun, as nearly every
        one does."""
        choices = raw.get("choices")
        if self.strict or type(choices) is not list or len(choices) != 1:
            return False
        if raw.get("usage") is not None:
            return False
        choice = choices[0]
        if type(choice) is not dict or choice.get("finish_reason") or choice.get("logprobs"):
            return False
        index, delta = choice.get("index"), choice.get("delta")
        if type(index) is not int or index not in self._roles:
            return False
        if type(delta) is not dict or len(delta) != 1:
            return False
        text = delta.get("content")
        return type(text) is str and text != ""

    def named(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A chunk under the client's names, its choices as they are: all that a plain one needs."""
        out: dict[str, Any] = {**raw, **self.head, "object": "chat.completion.chunk"}
        out.setdefault("system_fingerprint", None)
        out.pop("usage", None)
        if self.include_usage:
            out["usage"] = None
        return out

    def chunk(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """One client chunk, or None where nothing is left to say."""
        self._fingerprint = raw.get("system_fingerprint") or self._fingerprint
        if not self.strict and not raw.get("choices"):
            self._closing = raw
        choices = [self._choice(choice) for choice in raw.get("choices") or ()]
        choices = [choice for choice in choices if not _empty(choice)]
        if not choices:
            return None
        out = self.named({} if self.strict else raw)
        out |= {"choices": choices, "system_fingerprint": raw.get("system_fingerprint")}
        return out

    def usage(self, usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The closing usage chunk, if the client asked for it."""
        if not self.include_usage or usage is None:
            return None
        return {
            **self._closing,
            **self.head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": dict(usage),
            "system_fingerprint": self._fingerprint,
        }

    def _choice(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        choice = {name: raw.get(name) for name in _KEPT} if self.strict else dict(raw)
        index = int(raw.get("index") or 0)
        delta = dict(raw.get("delta") or {})
        if index in self._roles:
            delta.pop("role", None)
        elif delta:
            delta = {"role": "assistant", **delta}
            self._roles.add(index)
        choice |= {"index": index, "delta": delta}
        if self.strict:
            choice["logprobs"] = trimmed(raw.get("logprobs"), self.logprobs)
        return choice


@dataclass(slots=True)
class ChatStream:
    """One chat completion on its way out: chunks flow, the end is held back.

    ``whole`` is learned by ``learn``, or elsewhere where the student's gate does it.
    """

    relay: Relay
    whole: Assembler
    _tail: list[dict[str, Any]] = field(default_factory=list)
    _plain: Mapping[str, Any] | None = None
    """The event learned last, if it was a plain one."""
    _mould: Mould | None = None
    """Of a plain event: the next will differ in its text alone."""
    _texts: list[str] = field(default_factory=list)
    """Of the choice that it is about."""
    _moulds: int = 0

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return self.whole.finished

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """What the upstream counted."""
        return self.whole.usage

    def failed(self, event: Mapping[str, Any]) -> bool:
        """Whether the upstream reports an error."""
        return is_error(event)

    def learn(self, event: Mapping[str, Any]) -> None:
        """Merge a chunk."""
        if not self._tail and self.relay.plain(event) and self.whole.add(event):
            self._plain = event
        else:
            self._plain = self._mould = None
            self.whole.feed(event)

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> bytes:
        """A cleaned chunk; nothing from the finish reason on."""
        if event is self._plain:
            return self._named(event)
        chunk = self.relay.chunk(event)
        if chunk is None:
            return b""
        if self._tail or any(choice.get("finish_reason") for choice in chunk["choices"]):
            self._tail.append(chunk)
            return b""
        return encode(chunk)

    def at_once(self, raw: bytes, parsed: Parse) -> bytes:
        """A chunk that only adds text."""
        if self._mould is not None and (found := self._mould.text(raw)) is not None:
            text, part = found
            self._texts.append(text)
            return part
        event = parsed(raw)
        if event is None or self._tail or is_error(event) or not self.relay.plain(event):
            return b""
        part = self._named(event)
        texts = self.whole.add(event)
        if texts is None:
            return b""
        # Chunks that all differ in more than their text are not to cost more than they must.
        self._moulds += 1
        self._mould = Mould.of(raw, event, self._named) if self._moulds <= MOULDS else None
        self._texts = texts
        return part

    def _named(self, event: Mapping[str, Any]) -> bytes:
        return encode(self.relay.named(event))

    def answer(self) -> dict[str, Any]:
        """The completion that the same call would have given unstreamed."""
        return self.whole.completion(self.relay.head, self.relay.logprobs)

    def close(self, note: Mapping[str, Any] | None) -> bytes:
        """Finish reasons, usage where it was asked for, ``[DONE]``."""
        if note is not None and self._tail:
            self._tail[-1]["understudy"] = note
        usage = self.relay.usage(self.whole.usage)
        parts = [*self._tail, *([] if usage is None else [usage])]
        return b"".join(encode(chunk) for chunk in parts) + DONE

    def fail(self, error: GatewayError) -> bytes:
        """An error event and no ``[DONE]``."""
        return error_event(error)


def spent_tokens(usage: Any) -> tuple[int, int]:
    """Prompt and completion tokens of a usage object, under the names of either API."""
    return (
        usage_tokens(usage, "prompt_tokens") or usage_tokens(usage, "input_tokens"),
        usage_tokens(usage, "completion_tokens") or usage_tokens(usage, "output_tokens"),
    )


def usage_tokens(usage: Any, name: str) -> int:
    """A count from a usage object; 0 where the upstream sends something else."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def trimmed(logprobs: Mapping[str, Any] | None, alternatives: int | None) -> dict[str, Any] | None:
    """Log-probabilities with as many alternatives as the client asked for, or none at all."""
    if alternatives is None or logprobs is None:
        return None
    content = [
        {**token, "top_logprobs": (token.get("top_logprobs") or [])[:alternatives]}
        for token in logprobs.get("content") or ()
    ]
    return {"content": content, "refusal": None}


def _empty(choice: Mapping[str, Any]) -> bool:
    """Nothing but an empty text: vLLM's closing tokens leave such deltas behind."""
    if choice.get("finish_reason") or choice.get("logprobs"):
        return False
    return all(map(_NOTHING.__contains__, choice["delta"].values()))
