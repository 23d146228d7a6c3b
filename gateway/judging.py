"""What the gateway knows of the router: one small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from router.certify import Certificate
from router.confidence import Prefix
from router.drift import Reference
from router.encoder import Encoders
from router.judge import DecodeProfile, Prejudgement, Score
from router.redact import Redactor
from router.template import Message


class Judge(Protocol):
    """One task's deployed rule."""

    version: str
    gate_tokens: int
    threshold: float | None
    certificate: Certificate
    profile: DecodeProfile
    reference: Reference | None
    encoders: Encoders
    redactor: Redactor

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the certificate rests on."""
        ...

    def prejudge(
        self, messages: Sequence[Message], tools: Any = None, response_format: Any = None
    ) -> Prejudgement:
        """Template, and what the static tier says of a prompt."""
        ...

    def remember(self, prompts: int) -> None:
        """Keep the looks of so many prompts."""
        ...

    def quick(self, pre: Prejudgement) -> bool:
        """Whether ``refine`` may run on the event loop."""
        ...

    def refine(self, pre: Prejudgement) -> Prejudgement:
        """The sentence encoder's word on it."""
        ...

    def score(self, pre: Prejudgement, prefix: Prefix) -> Score:
        """P(disagree) of a student answer, or that the prompt needs refining first."""
        ...

    def resolve(self, pre: Prejudgement, prefix: Prefix | None) -> tuple[Prejudgement, float]:
        """The final score in one go; infinite where the request is the teacher's in any case."""
        ...


def gate_closed(judge: Judge, alpha: float, delta: float, comparator: str) -> str | None:
    """Why the student may not serve under the operator's budget; None when it may."""
    certificate = judge.certificate
    if judge.threshold is None or not certificate.certified:
        return f"the artefact has no certificate: {certificate.reason}"
    if certificate.alpha > alpha or certificate.delta > delta:
        return (
            f"certified for alpha {certificate.alpha:g}, delta {certificate.delta:g}; the budget "
            f"asks for {alpha:g}, {delta:g}"
        )
    if certificate.comparator != comparator:
        return f"certified with comparator {certificate.comparator}; the budget says {comparator}"
    return None
