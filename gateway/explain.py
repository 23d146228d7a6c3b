"""What the judge thinks of one prompt, without a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from gateway.api.chat import parse_chat
from gateway.api.request import ApiRequest
from gateway.config_file import environment, place_of
from gateway.deployed import serving_task
from gateway.eligibility import unsupported
from gateway.errors import ConfigError, StoreError
from gateway.gate import Gate
from gateway.http1 import Pool
from gateway.judging import gate_closed
from gateway.settings import Config
from gateway.store.audits import AuditStore
from gateway.student import StudentFault, ask_student, student_body
from gateway.task_settings import Task
from gateway.upstream import Upstream
from gateway.verdict import Reason, ServedBy
from router.encoder import load_encoders
from router.judge import Judge, Prejudgement


@dataclass(frozen=True, slots=True)
class _Case:
    settings: Task
    judge: Judge
    request: ApiRequest
    pre: Prejudgement


def explain(
    config: Config, text: str, task: str | None, system: str | None, ask: bool
) -> dict[str, Any]:
    """Verdict, scores, contributions and nearest prompts as plain values.

    Raises:
        ConfigError: no such task, or it has no judge.
        RouterError: the artefact cannot be used.
    """
    settings, artefact = serving_task(config, task)
    judge = Judge.load(artefact, load_encoders(config.cache))
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    body = {"model": settings.name, "messages": messages, "temperature": 0}
    request = parse_chat(json.dumps(body).encode())
    pre = judge.prejudge(request.messages)
    case = _Case(settings, judge, request, judge.refine(pre) if pre.undecided else pre)
    reason = _reason_before(case, system, config)
    gate, note = None, None
    if ask and settings.student is not None and reason in {None, Reason.GATE_CLOSED}:
        gate, note = asyncio.run(_student(case))
    return _result(case, reason, gate, note)


def _reason_before(case: _Case, system: str | None, config: Config) -> Reason | None:
    settings, judge = case.settings, case.judge
    if settings.student is None:
        return Reason.NO_STUDENT
    if unsupported(case.request, settings, judge.profile):
        return Reason.UNSUPPORTED_FEATURE
    if system is not None and not case.pre.known_template:
        return Reason.NEW_TEMPLATE
    if case.pre.out:
        return Reason.OOD
    risk = settings.risk
    closed = gate_closed(judge, risk.alpha, risk.delta, risk.comparator) or _shut(
        config, settings.name, judge.version
    )
    return Reason.GATE_CLOSED if closed else None


def _shut(config: Config, task: str, version: str) -> bool:
    """Whether the audit or an operator has closed the gate, as far as a store is there to say."""
    try:
        with contextlib.closing(place_of(config, environment()).reader()) as opened:
            gate = AuditStore(opened).gate(task, version)
    except (ConfigError, StoreError, sqlite3.Error):  # none yet, or of an older schema
        return False
    return gate is not None and gate.closed


async def _student(case: _Case) -> tuple[Gate | None, str | None]:
    settings = case.settings.student
    assert settings is not None
    upstream = Upstream("student", settings.base_urls[0], None)
    body = student_body(case.request, settings, case.judge.profile)
    try:
        async with Pool() as pool:
            answer = await ask_student(
                pool,
                upstream,
                body,
                gate_tokens=case.judge.gate_tokens,
                hold="all",
                timeout_s=settings.timeout_s,
            )
            with contextlib.closing(answer.response):
                await answer.until_ended()
    except StudentFault as fault:
        return None, f"the student gave no answer: {fault}"
    return answer.gate, None


def _result(
    case: _Case, reason: Reason | None, gate: Gate | None, note: str | None
) -> dict[str, Any]:
    judge, pre = case.judge, case.pre
    prefix = gate.prefix if gate is not None and not gate.fault else None
    score = None
    if prefix is not None and not pre.out:
        pre, settled = judge.settle(pre, prefix)
        score = judge.score(pre, prefix).value
        served, why = _verdict(judge, reason, settled, gate)
    else:
        served, why = _verdict(judge, reason, None, gate)
    weighed = judge.contributions(pre, None if pre.out else prefix)
    flips = judge.flips(pre, prefix) if reason is None and prefix is not None else {}
    return {
        "task": case.settings.name,
        "served_by": served,
        "reason": why,
        "score": score,
        "threshold": judge.threshold,
        "ood_score": pre.ood_score,
        "ood_cut": judge.cut(pre),
        "tier": "sentence" if pre.second is not None else "static",
        "router": judge.version,
        "student_answer": gate.answer.text if gate is not None else None,
        "note": note,
        "weighed": dict(sorted(weighed.items(), key=lambda item: -abs(item[1]))),
        "would_flip": flips,
        "nearest": [
            {"similarity": similarity, **prompt}
            for similarity, prompt in judge.nearest(case.request.messages[-1].content)
        ],
    }


def _verdict(
    judge: Judge, reason: Reason | None, score: float | None, gate: Gate | None
) -> tuple[str, str]:
    if reason is not None:
        return ServedBy.TEACHER, reason
    if gate is None:
        return "undecided", "the student's confidence decides"
    if gate.fault is not None:
        return ServedBy.TEACHER, Reason.STUDENT_ERROR
    if score is not None and judge.threshold is not None and score < judge.threshold:
        return ServedBy.STUDENT, Reason.IN_DISTRIBUTION
    return ServedBy.TEACHER, Reason.LOW_CONFIDENCE
