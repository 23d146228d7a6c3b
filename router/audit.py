"""The live audit: does the student still keep the promise, said after every label.

A pure state machine. Labels are 'student and teacher disagree' on drawn, student-served answers,
fed in the order of drawing. A draw's probability may depend on what was seen before it, never on
the request itself, so that each label is a fair look at the risk of what is being served.

Two instruments look at every label. The *confidence sequence* (``router.betting``) bounds the
risk since the version began, at any time, with the failure probability that the version was
given. The *change detector* is an e-process in Shiryaev-Roberts form (Shin, Ramdas & Rinaldo,
*E-detectors*, arXiv 2203.03532): it forgets a long good past, and while the risk is at most alpha
it raises a false alarm at most once in ``false_alarm_labels`` labels on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

import numpy as np

from router.betting import RiskEvidence, spent_delta

SUSPICION_LABELS = 2000
"""While the detector stands above this, 'confirmed' is withheld. Reached by chance at most once
in as many labels on average."""

_ALTERNATIVES = 12


class AuditStatus(StrEnum):
    """What the audit says of the version in service."""

    CONFIRMED = "confirmed"
    UNPROVEN = "unproven"
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True)
class AuditState:
    """Everything the audit remembers of one epoch: two counts and the detector.

    ``number`` counts the task's epochs (versions and restarts) from 1; delta is spent over it.
    ``detector`` holds the logarithm of one Shiryaev-Roberts statistic per alternative risk.
    ``refuted`` says which instrument did it, and stays: reopening begins a new epoch.
    """

    number: int
    labels: int = 0
    errors: int = 0
    detector: tuple[float, ...] = ()
    refuted: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Anytime-valid bounds on the risk of served traffic."""

    lower: float
    upper: float


class Audit:
    """The audit of one risk budget."""

    def __init__(self, alpha: float, delta: float, false_alarm_labels: int = 100_000) -> None:
        """``alpha`` and ``delta`` as promised; see the module for ``false_alarm_labels``."""
        self.alpha = alpha
        self.delta = delta
        self.false_alarm_labels = false_alarm_labels
        self._evidence = RiskEvidence(alpha)
        risks = np.geomspace(1.25 * alpha, 0.95, _ALTERNATIVES) if alpha < 0.7 else np.array([0.95])
        self._on_error = np.log(risks / alpha)
        self._on_agreement = np.log1p(-risks) - math.log1p(-alpha)

    def begin(self, number: int) -> AuditState:
        """A fresh epoch."""
        return AuditState(number, detector=(-math.inf,) * len(self._on_error))

    def feed(self, state: AuditState, labels: Iterable[bool]) -> AuditState:
        """The state after further labels (True: student and teacher disagree)."""
        for disagrees, run in groupby(labels):
            count = len(list(run))
            if disagrees:
                for _ in range(count):
                    state = self._error(state)
            else:
                state = self._agreements(state, count)
        return state

    def status(self, state: AuditState) -> AuditStatus:
        """Confirmed: the upper bound is at most alpha and nothing looks like a change."""
        if state.refuted is not None:
            return AuditStatus.REFUTED
        confirmed = self._evidence.log_below(state.labels, state.errors, self.alpha) >= -math.log(
            self._side(state)
        )
        if confirmed and self.suspicion(state) < SUSPICION_LABELS:
            return AuditStatus.CONFIRMED
        return AuditStatus.UNPROVEN

    def bounds(self, state: AuditState) -> Bounds:
        """Bounds on the risk, each at half of the epoch's delta."""
        side = self._side(state)
        n, k = state.labels, state.errors
        return Bounds(self._evidence.lower(n, k, side), self._evidence.upper(n, k, side))

    def labels_missing(self, state: AuditState, rate: float | None = None) -> int | None:
        """Labels until confirmed if errors come at ``rate``, by default the present one; None when
        never."""
        if self.status(state) is AuditStatus.CONFIRMED:
            return 0
        if state.refuted is not None:
            return None
        side = self._side(state)
        return self._evidence.labels_to_confirm(state.labels, state.errors, side, rate)

    def suspicion(self, state: AuditState) -> float:
        """The detector's statistic: reaches x by chance at most once in x labels on average."""
        peak = max(state.detector)
        if peak == -math.inf:
            return 0.0
        total = sum(math.exp(value - peak) for value in state.detector)
        return math.exp(min(peak + math.log(total / len(state.detector)), 700.0))

    def _agreements(self, state: AuditState, count: int) -> AuditState:
        """A run of agreements at once: M becomes a^n M + a + ... + a^n for its factor a < 1."""
        factor = self._on_agreement
        fresh = factor + np.log(np.expm1(count * factor) / np.expm1(factor))
        detector = np.logaddexp(np.array(state.detector) + count * factor, fresh)
        return replace(state, labels=state.labels + count, detector=tuple(map(float, detector)))

    def _error(self, state: AuditState) -> AuditState:
        """One disagreement: M becomes (M + 1) a for its factor a > 1. Only errors can raise the
        evidence against the promise."""
        detector = np.logaddexp(np.array(state.detector), 0.0) + self._on_error
        after = replace(
            state,
            labels=state.labels + 1,
            errors=state.errors + 1,
            detector=tuple(map(float, detector)),
        )
        return after if after.refuted else replace(after, refuted=self._against(after))

    def _against(self, state: AuditState) -> str | None:
        evidence = self._evidence.log_above(state.labels, state.errors, self.alpha)
        if evidence >= -math.log(self._side(state)):
            return "risk_above_budget"
        return "sudden_change" if self.suspicion(state) >= self.false_alarm_labels else None

    def _side(self, state: AuditState) -> float:
        return spent_delta(self.delta, state.number) / 2.0
