"""How a task stands with its promise: what the audit last said, as the request path and ops see
it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router.audit import AuditStatus
from router.noise import Comparison


@dataclass(frozen=True, slots=True)
class Standing:
    """A version's audit and gate at one moment.

    ``missing`` is how many labels lack until confirmed if errors come at the present rate (None:
    never), ``missing_at_best`` if no further error comes; ``eta_s`` how long the former take at the
    present rate of draws. ``suspicion`` is the change
    detector's statistic: it reaches x by chance at most once in x labels on average. ``closed``
    says why the gate is shut.
    """

    number: int
    status: AuditStatus
    labels: int
    errors: int
    lower: float
    upper: float
    suspicion: float
    missing: int | None
    missing_at_best: int | None
    eta_s: float | None
    opened_at: float
    refuted: str | None = None
    closed: str | None = None
    drift: float | None = None
    drifting: bool = False

    @property
    def proven(self) -> bool:
        """Whether draws may go down to their floor."""
        return self.status is AuditStatus.CONFIRMED and not self.drifting

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``/admin/tasks``."""
        return {
            "number": self.number,
            "status": self.status.value,
            "labels": self.labels,
            "errors": self.errors,
            "risk_lower_bound": self.lower,
            "risk_upper_bound": self.upper,
            "suspicion": self.suspicion,
            "labels_missing": self.missing,
            "labels_missing_without_error": self.missing_at_best,
            "eta_s": self.eta_s,
            "opened_at": self.opened_at,
            "refuted": self.refuted,
            "drift": self.drift,
            "drifting": self.drifting,
        }


@dataclass(frozen=True, slots=True)
class Noise:
    """What the probe set shows. ``floor`` is None before its second run."""

    floor: Comparison | None
    latest: Comparison | None
    change_p: float | None
    last_run: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``/admin/tasks``."""
        return {
            "self_disagreement": self.floor.rate if self.floor else None,
            "prompts": self.floor.prompts if self.floor else None,
            "latest_disagreement": self.latest.rate if self.latest else None,
            "change_p_value": self.change_p,
            "last_run": self.last_run,
        }
