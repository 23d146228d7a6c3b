"""Hold and release: what of a student's stream may go to the client, and when.

A pure state machine. It takes parsed stream events and says: *judge* (the gated prefix is
complete), *release* (accepted, and enough is held back no longer), *fault* (the answer must not
be served as it stands). No clock, no socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from gateway.formats import Fits, anything
from gateway.streams.chat import Assembler
from router.confidence import TOP_LOGPROBS, Prefix
from router.rows import TokenLogprob

COMPLETE = frozenset({"stop"})
"""Finish reasons of an answer that may be served as complete."""


class Signal(StrEnum):
    """What the flow has to do next."""

    JUDGE = "judge"
    RELEASE = "release"
    FAULT = "fault"


@dataclass(slots=True)
class Gate:
    """State of one student answer.

    ``gate_tokens`` are judged; ``hold`` tokens (at least as many), or all, are held back. The
    judge is asked one token later, or at the end: only then is it known, as at fit time, whether
    the prefix is the whole answer.
    """

    gate_tokens: int
    hold: int | Literal["all"]
    fits: Fits = anything
    answer: Assembler = field(default_factory=Assembler)
    tokens: list[TokenLogprob] = field(default_factory=list)
    fault: str | None = None
    accepted: bool = False
    released: bool = False
    _judged: bool = False
    _ended: bool = False
    _prefix_text: str | None = None

    def feed(self, chunk: Mapping[str, Any]) -> list[Signal]:
        """Take one parsed event (a chunk, or vLLM's in-band error object)."""
        if self.fault or self._ended:
            return []
        if chunk.get("error") is not None or chunk.get("object") == "error":
            return self._fail("in_band_error")
        self.answer.feed(chunk)
        self._collect(chunk)
        return self._advance()

    def end(self) -> list[Signal]:
        """The stream is over: an answer with its finish reason is whole, any other was cut."""
        if self.fault or self._ended:
            return []
        if not self.answer.finished:
            return self._fail("cut" if self.answer.choices else "empty")
        self._ended = True
        return self._advance()

    def accept(self) -> list[Signal]:
        """The judge let the answer pass."""
        self.accepted = True
        return self._advance()

    @property
    def ended(self) -> bool:
        """Whether the whole answer has arrived."""
        return self._ended

    @property
    def prefix(self) -> Prefix:
        """What the judge sees: the same tokens whether streamed or not."""
        finished = self.answer.finished and len(self.tokens) <= self.gate_tokens
        tokens = tuple(self.tokens[: self.gate_tokens])
        text = self.answer.text if finished else "".join(t.token for t in tokens)
        return Prefix(tokens, text, finished)

    @property
    def whole(self) -> Prefix:
        """Every token of the answer: what is stored of a served one."""
        return Prefix(tuple(self.tokens), self.answer.text, self.answer.finished)

    def _collect(self, chunk: Mapping[str, Any]) -> None:
        for choice in chunk.get("choices") or ():
            for raw in (choice.get("logprobs") or {}).get("content") or ():
                # A client may ask for more alternatives than the features were fitted on.
                listed = (raw.get("top_logprobs") or ())[:TOP_LOGPROBS]
                top = tuple(float(item["logprob"]) for item in listed)
                self.tokens.append(TokenLogprob(str(raw["token"]), float(raw["logprob"]), top))

    def _advance(self) -> list[Signal]:
        finished = self.answer.finished
        if finished and (reason := self._unservable()):
            return self._fail(reason)
        signals: list[Signal] = []
        if not self._judged and (finished or len(self.tokens) > self.gate_tokens):
            self._judged = True
            signals.append(Signal.JUDGE)
        if self.accepted and not self.released and self._may_release():
            self.released = True
            signals.append(Signal.RELEASE)
        return signals

    def _may_release(self) -> bool:
        if self.hold == "all":
            return self._ended
        return self._ended or len(self.tokens) > max(self.hold, self.gate_tokens)

    def _unservable(self) -> str | None:
        reasons = {choice.finish_reason for choice in self.answer.choices.values()}
        if reasons - COMPLETE:
            return f"finish_{next(iter(reasons - COMPLETE))}"
        if not self.answer.text.strip():
            return "empty"
        return None if self.fits(self.answer.text) else "wrong_format"

    def _fail(self, fault: str) -> list[Signal]:
        self.fault = fault
        return [Signal.FAULT]
