"""What of an exchange may reach the disk: personal data and key material stay out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonpath

from gateway.task_settings import Task, redaction_rules
from router.redact import LaterNames, Names, Redactor

_TOKEN_LISTS = ("content", "refusal")


def end_user_digest(user: str) -> str:
    """How the store names an end user: enough to find what is theirs, not who they are."""
    return hashlib.sha256(b"understudy end user\0" + user.encode("utf-8", "replace")).hexdigest()[
        :32
    ]


def end_user_of(body: Mapping[str, Any]) -> str | None:
    """The digest of who the application says asked: ``safety_identifier``, or ``user``."""
    for name in ("safety_identifier", "user"):
        value = body.get(name)
        if isinstance(value, str) and value:
            return end_user_digest(value)
    return None


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What clients and upstreams wrote of an exchange, as it may be stored."""

    model: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    prefix: Mapping[str, Any] | None


class Scrubber:
    """One task's rules."""

    def __init__(self, task: Task, secrets: Sequence[str] = ()) -> None:
        """``secrets`` are values that no file may hold: configured keys."""
        self.redactor = Redactor(redaction_rules(task.redact), secrets)
        self._paths = [jsonpath.compile(path) for path in task.drop_fields]

    def scrubbed(
        self,
        model: str,
        request: Mapping[str, Any],
        answer: Mapping[str, Any] | None,
        prefix: Mapping[str, Any] | None = None,
        raw: bytes = b"",
        raw_answer: bytes = b"",
    ) -> Scrubbed:
        """What of an exchange may be stored; ``raw`` is the request as it came, ``raw_answer`` the
        answer as JSON, where they are known."""
        names = Names()
        untouched = raw and not self._paths and self.redactor.clean(raw)
        kept = request if untouched else self._request(request, names)
        if answer is not None and not (raw_answer and self.redactor.clean(raw_answer)):
            answer = self._answer(answer, names)
        return Scrubbed(
            self.redactor.text(model, names),
            kept,
            answer,
            None if prefix is None else self._prefix(prefix, names),
        )

    def second_answer(
        self, request: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """A draw's second answer, its surrogates those of the stored request."""
        names = Names()
        self._request(request, names)
        return self._answer(answer, names)

    def feedback(self, request: Mapping[str, Any], value: Any) -> Any:
        """What a client says of an exchange later, its surrogates those of the stored request."""
        names = Names()
        self._request(request, names)
        return self.redactor.value(value, LaterNames(names))

    def _request(self, request: Mapping[str, Any], names: Names) -> Mapping[str, Any]:
        """Messages first: their surrogates must be those that the judge sees."""
        dropped = self._dropped(request)
        first = {n: dropped[n] for n in ("messages", "instructions", "input") if n in dropped}
        redacted: dict[str, Any] = {n: self.redactor.value(v, names) for n, v in first.items()}
        rest = {n: self.redactor.value(v, names) for n, v in dropped.items() if n not in first}
        return {name: redacted.get(name, rest.get(name)) for name in dropped}

    def _answer(self, answer: Mapping[str, Any], names: Names) -> dict[str, Any]:
        redacted: dict[str, Any] = self.redactor.value(answer, names)
        for choice, before in zip(
            redacted.get("choices") or (), answer.get("choices") or (), strict=True
        ):
            _blank_changed_tokens(choice, before)
        return redacted

    def _prefix(self, prefix: Mapping[str, Any], names: Names) -> dict[str, Any]:
        text = self.redactor.text(prefix["text"], names)
        tokens = prefix["tokens"]
        if text != prefix["text"]:  # a value cut into tokens is still there for who joins them
            tokens = [["", logprob, top] for _, logprob, top in tokens]
        return {**prefix, "text": text, "tokens": tokens}

    def _dropped(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self._paths:
            return dict(request)
        copy: dict[str, Any] = _copied(request)
        for path in self._paths:
            # Later elements of a list first, so that the places before them stay the same.
            for match in reversed(list(path.finditer(copy))):
                if match.parent is not None:
                    holder: Any = match.parent.obj
                    del holder[match.parts[-1]]
        return copy


def _blank_changed_tokens(choice: Any, before: Any) -> None:
    """Log-probabilities hold the answer a second time, token by token, and in bytes."""
    if not isinstance(choice, dict) or not isinstance(choice.get("logprobs"), dict):
        return
    if choice.get("message") == before.get("message") and choice.get("text") == before.get("text"):
        return
    logprobs = choice["logprobs"]
    for name in _TOKEN_LISTS:
        for item in logprobs.get(name) or ():
            for token in (item, *(item.get("top_logprobs") or ())):
                token.update(token="", bytes=None)
    for name in ("tokens", "text_offset", "top_logprobs"):  # completions
        if isinstance(logprobs.get(name), list):
            logprobs[name] = None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
