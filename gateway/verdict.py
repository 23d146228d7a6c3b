"""Words of the routing decision, as they appear in headers, metrics and the store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ServedBy(StrEnum):
    """Who answered."""

    STUDENT = "student"
    TEACHER = "teacher"


class Reason(StrEnum):
    """Why. Closed: metrics and dashboards count on it."""

    IN_DISTRIBUTION = "in_distribution"
    OOD = "ood"
    NEW_TEMPLATE = "new_template"
    LOW_CONFIDENCE = "low_confidence"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    STUDENT_ERROR = "student_error"
    STUDENT_TIMEOUT = "student_timeout"
    CIRCUIT_OPEN = "circuit_open"
    GATE_CLOSED = "gate_closed"
    NO_STUDENT = "no_student"
    TEACHER_DOWN = "teacher_down"
    DEADLINE = "deadline"
    HEDGE_WON = "hedge_won"
    OVERRIDE = "override"
    IMPORTED = "imported"


@dataclass(slots=True)
class Verdict:
    """The decision for one request.

    ``score`` and ``threshold`` are P(disagree) and its certified limit; ``ood_score`` is
    P(out of distribution). ``would_be_reason`` is what the judge said before an override, an
    outage or an error had its way.
    """

    served_by: ServedBy
    reason: Reason
    would_be_reason: Reason
    score: float | None = None
    threshold: float | None = None
    ood_score: float | None = None
    template: str | None = None
    student: str | None = None
    router: str | None = None
    arm: str = "incumbent"
