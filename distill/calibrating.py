"""The candidate's judge: fitted on combine rows, certified on draws that decided nothing before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.examples import Example
from distill.job import Job
from gateway.store.students import Version
from gateway.task_settings import redaction_rules
from router.artefact import Artefact, load_artefact
from router.certify import Budget, first_served
from router.data import Data
from router.fit import fit_artefact
from router.judge import Judge
from router.manifest import FitSettings
from router.rows import Row

ROOM = 1.25
"""Calibration rows for each that the strictest threshold is to serve."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a judge is fitted on; combine and calibrate rows carry the student's answers."""

    train: Sequence[Row]
    combine: Sequence[Row]
    calibrate: Sequence[Row]


def at_best_rate(examples: Sequence[Example]) -> list[Example]:
    """The draws of those times in which the draw rate was high enough: as many rows at one equal
    probability as can be had.

    A rate follows from the audit's state, never from a request, so this leaves out stretches of
    time and looks at no content. Within the rest the fit thins to the lowest rate.
    """
    rates = sorted({e.p for e in examples if e.p is not None})
    if not rates:
        return []

    def left(lowest: float) -> float:
        return sum(lowest / e.p for e in examples if e.p is not None and e.p >= lowest)

    best = max(rates, key=left)
    return [e for e in examples if e.p is not None and e.p >= best]


def rows_wanted(alpha: float, delta: float, promotion: int | None) -> int:
    """Fresh calibration draws from which a certificate is tried: so many that the strictest
    threshold need not serve all of them. Rows decide only once, and too few are wasted."""
    budget = Budget.promised(alpha, delta, "label", promotion)
    return math.ceil(ROOM * first_served(budget.alpha, budget.delta))


def fit_judge(
    job: Job,
    version: Version,
    material: Material,
    out: Path,
    promotion: int | None,
    say: Callable[[str], None],
) -> Artefact:
    """Fit and certify; an artefact that is there already was fitted by this run, and stays.

    ``promotion`` counts the certificates that share the operator's delta; None where each version
    has its own.

    Raises:
        FitError: the rows cannot support a fit.
        ArtefactError: ``out`` cannot be written.
    """
    if out.exists():
        return load_artefact(out)
    risk = job.task.risk
    settings = FitSettings(
        task=job.task.name,
        version=out.name,
        comparator=risk.comparator,
        alpha=risk.alpha,
        delta=risk.delta,
        gate_tokens=(job.task.router.gate_tokens if job.task.router else None) or 32,
        promotion=promotion,
        student=version.name,
        student_sha256=version.sha256,
        redact=redaction_rules(job.task.redact),
        seed=job.task.distill.seed,
    )
    data = Data(material.train, material.combine, material.calibrate)
    return fit_artefact(data, settings, job.encoders(), out, say)


def scores(judge: Judge, rows: Sequence[Row]) -> list[float]:
    """P(disagree) of each row's student answer by the whole rule; 2 where an earlier rule sends
    the request to the teacher."""
    found = (judge.decide(row.messages, row.student).score for row in rows)
    return [score if math.isfinite(score) else 2.0 for score in found]
