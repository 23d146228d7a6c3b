"""What if: another budget, threshold or artefact on traffic that was logged.

Draws hold both answers, so that any rule can be tried on them; each stands for 1/p requests. Of the
rest only the verdict can be known, and not always: a prompt that the student was never asked about
has no score. Such requests are counted as *open*, and bound the coverage from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.store.records import DrawState, Exchange
from gateway.store.training import prefix_tokens, student_json_of
from gateway.streams.whole import answer_text, request_of
from gateway.task_settings import Task
from router.binomial import upper_bound
from router.certify import Budget, Calibration, Certificate, certify, risk_p_value, threshold_grid
from router.comparator import comparator
from router.confidence import Prefix
from router.data import kept_at_one_rate
from router.judge import Judge
from router.rows import StudentAnswer, student_from_json, usable

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

OUTSIDE = frozenset(
    {"override", "no_student", "teacher_down", "unsupported_feature", "deadline", "imported"}
)
"""Reasons of exchanges that no judge decided: in no coverage and no risk."""
CURVE_POINTS = 60


@dataclass(frozen=True, slots=True)
class Case:
    """One judged exchange under the rule that is tried.

    ``score`` is infinite where the rule sends it to the teacher before the student is asked, and
    NaN where that cannot be known. ``disagrees`` is None unless both answers are there.
    """

    score: float
    disagrees: bool | None
    p: float | None
    part: str
    teacher_usd: float
    spent_usd: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: a threshold, or alpha to certify on the draws; neither is the artefact's
    own threshold."""

    alpha: float
    delta: float
    threshold: float | None
    certify: bool


def cases(exchanges: Iterable[Exchange], judge: Judge, task: Task, slice_by: str) -> list[Case]:
    """Every judged, whole exchange, scored by ``judge``."""
    agree = None
    found = []
    for exchange in exchanges:
        if exchange.reason in OUTSIDE:
            continue
        agree = agree or comparator(task.risk.comparator, judge.encoders)
        found.append(_case(exchange, judge, task, slice_by, agree))
    return found


def report(found: Sequence[Case], judge: Judge, wish: Wish) -> dict[str, Any]:
    """Coverage, risk, cost and slices as plain values."""
    draws = [c for c in found if c.disagrees is not None and c.p and not math.isnan(c.score)]
    certificate = _certificate(draws, judge, wish) if wish.certify else None
    tau = wish.threshold
    if tau is None:
        tau = certificate.tau if certificate is not None else judge.threshold
    tau = 0.0 if tau is None else tau
    return {
        "router": judge.version,
        "requests": len(found),
        "draws": len(draws),
        "alpha": wish.alpha,
        "delta": wish.delta,
        "threshold": tau,
        "certificate": certificate.to_json() if certificate is not None else None,
        "coverage": _coverage(found, draws, tau),
        "risk": _risk(draws, tau, wish),
        "cost": _cost(found, tau),
        "slices": {
            part: {
                **_coverage(mine, [c for c in draws if c.part == part], tau),
                **_risk([c for c in draws if c.part == part], tau, wish),
            }
            for part, mine in _parts(found).items()
        },
        "curve": _curve(draws, wish),
    }


def _case(
    exchange: Exchange, judge: Judge, task: Task, slice_by: str, agree: Any
) -> Case:  # fmt: skip
    draw = exchange.draw
    answers = {exchange.served_by: exchange.answer}
    if draw is not None and draw.state is DrawState.DONE:
        answers[draw.wants] = draw.answer
    student = _student(exchange, answers.get("student"))
    disagrees = None
    if draw is not None and draw.state is DrawState.DONE and student is not None:
        teacher = answer_text(answers.get("teacher") or {})
        disagrees = not agree(answer_text(answers.get("student") or {}), teacher)
    tokens = _tokens(exchange)
    return Case(
        _score(exchange, judge, student),
        disagrees,
        exchange.draw_p,
        _part(exchange, answers, slice_by),
        task.teacher.price.cost_usd(*tokens),
        sum(a.cost_usd for a in exchange.attempts),
    )


def _student(exchange: Exchange, answer: Mapping[str, Any] | None) -> StudentAnswer | Prefix | None:
    """The student's whole answer, or what is known of its beginning."""
    if answer is not None:
        return student_from_json(student_json_of(answer, exchange), exchange.id)
    if exchange.prefix is None:
        return None
    whole = student_from_json(
        {"text": exchange.prefix["text"], **prefix_tokens(exchange.prefix)}, exchange.id
    )
    return Prefix(whole.tokens, whole.text, bool(exchange.prefix["finished"]))


def _score(exchange: Exchange, judge: Judge, student: StudentAnswer | Prefix | None) -> float:
    if not exchange.bodies:  # dropped for want of room: what the judge said then is all there is
        score = exchange.score if exchange.router == judge.version else None
        return math.nan if score is None else score
    request = request_of(exchange.api, exchange.request)
    pre = judge.prejudge(request.messages, request.tools, request.response_format)
    if isinstance(student, StudentAnswer):
        student = Prefix.of(student, judge.gate_tokens) if usable(student) else None
    elif student is None:
        if pre.undecided:
            pre = judge.refine(pre)
        return math.inf if pre.out or not pre.known_template else math.nan
    return judge.resolve(pre, student)[1]


def _part(exchange: Exchange, answers: Mapping[str, Any], slice_by: str) -> str:
    if slice_by == "answer":
        return answer_text(answers.get("teacher") or exchange.answer or {})[:40] or "(empty)"
    return str(getattr(exchange, slice_by) or "-")


def _tokens(exchange: Exchange) -> tuple[int, int]:
    """Prompt and completion tokens of the answer that was served, as its upstream counted."""
    for attempt in reversed(exchange.attempts):
        if attempt.role == exchange.served_by and attempt.outcome == "ok":
            return attempt.prompt_tokens, attempt.completion_tokens
    return 0, 0


def _parts(found: Sequence[Case]) -> dict[str, list[Case]]:
    parts: dict[str, list[Case]] = {}
    for case in found:
        parts.setdefault(case.part, []).append(case)
    largest = sorted(parts.items(), key=lambda item: -len(item[1]))
    return dict(largest[:20])


def _coverage(found: Sequence[Case], draws: Sequence[Case], tau: float) -> dict[str, Any]:
    """An estimate from the draws, and what every request, drawn or not, allows."""
    total = len(found)
    served = sum(c.score < tau for c in found)
    open_ = sum(math.isnan(c.score) for c in found)
    weight = sum(_weight(c) for c in draws)
    mine = sum(_weight(c) for c in draws if c.score < tau)
    return {
        "requests": total,
        "coverage_estimate": round(mine / weight, 4) if weight else None,
        "coverage_at_least": round(served / total, 4) if total else None,
        "coverage_at_most": round((served + open_) / total, 4) if total else None,
        "open": open_,
    }


def _risk(draws: Sequence[Case], tau: float, wish: Wish) -> dict[str, Any]:
    """The served risk: weighted estimate, and an upper bound at delta from rows thinned to one
    probability (Clopper & Pearson)."""
    served = [c for c in draws if c.score < tau]
    weight = sum(_weight(c) for c in served)
    lost = sum(_weight(c) for c in served if c.disagrees)
    even = _thinned(served)
    n, k = len(even), sum(bool(c.disagrees) for c in even)
    upper = upper_bound(k, n, wish.delta)
    return {
        "served_draws": len(served),
        "errors": sum(bool(c.disagrees) for c in served),
        "risk_estimate": round(lost / weight, 5) if weight else None,
        "risk_upper_bound": round(upper, 5),
        "holds": risk_p_value(n, k, wish.alpha) <= wish.delta,
    }


def _cost(found: Sequence[Case], tau: float) -> dict[str, Any]:
    """Teacher money. What the student would serve is avoided; open requests go either way."""
    whole = sum(c.teacher_usd for c in found)
    avoided = sum(c.teacher_usd for c in found if c.score < tau)
    open_ = sum(c.teacher_usd for c in found if math.isnan(c.score))
    return {
        "teacher_only_usd": round(whole, 6),
        "spent_usd": round(sum(c.spent_usd for c in found), 6),
        "teacher_usd_at_most": round(whole - avoided, 6),
        "teacher_usd_at_least": round(whole - avoided - open_, 6),
    }


def _certificate(draws: Sequence[Case], judge: Judge, wish: Wish) -> Certificate:
    """Learn then Test on the draws, as if they were the calibrate rows. The grid is laid on every
    second draw and tested on the others: one row must not do both."""
    even = _thinned(draws)
    laid, tested = even[::2], even[1::2]
    scores = np.array([c.score for c in laid], dtype=np.float64)
    budget = Budget(wish.alpha, wish.delta, judge.certificate.comparator)
    rows = Calibration(
        np.array([c.score for c in tested], dtype=np.float64),
        np.array([bool(c.disagrees) for c in tested], dtype=bool),
        [c.part for c in tested],
        [str(n) for n in range(len(tested))],
    )
    return certify(rows, threshold_grid(scores, budget, len(tested)), budget)


def _curve(draws: Sequence[Case], wish: Wish) -> list[dict[str, Any]]:
    """Risk and coverage over thresholds; bounds are pointwise."""
    finite = np.sort([c.score for c in draws if math.isfinite(c.score)])
    if not len(finite):
        return []
    whole = sum(_weight(c) for c in draws)
    steps = np.unique(np.linspace(0, len(finite) - 1, CURVE_POINTS).astype(int))
    points = []
    for tau in np.unique(np.nextafter(finite[steps], np.inf)):
        risk = _risk(draws, float(tau), wish)
        covered = sum(_weight(c) for c in draws if c.score < tau)
        points.append({"threshold": float(tau), "coverage": round(covered / whole, 4), **risk})
    return points


def _weight(case: Case) -> float:
    return 1.0 / case.p if case.p else 0.0


def _thinned(draws: Sequence[Case]) -> list[Case]:
    """Draws at the lowest probability that occurs."""
    if not draws:
        return []
    keep = kept_at_one_rate(np.array([_weight(c) for c in draws]), 0)
    return [c for c, kept in zip(draws, keep, strict=True) if kept]
