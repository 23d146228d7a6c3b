"""Tables of the reference pages, read from the code that they document."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

import typer
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gateway.cli import COMMANDS
from gateway.errors import CODES
from gateway.metrics import Metrics
from gateway.settings import Config
from gateway.store.audits import EventKind
from gateway.verdict import Reason
from router.comparator import KINDS

REASONS: Mapping[Reason, str] = {
    Reason.IN_DISTRIBUTION: "The student answered: near enough and confident enough.",
    Reason.OOD: "The prompt is plainly outside what the student was trained on; it was not asked.",
    Reason.NEW_TEMPLATE: "The fixed part of the prompt is one that the student never saw.",
    Reason.LOW_CONFIDENCE: "P(disagree) reached the threshold; the student was cancelled.",
    Reason.UNSUPPORTED_FEATURE: "Tools, images, sampling outside the profile, too long a prompt, …",
    Reason.STUDENT_ERROR: "The student failed, was cut, or gave no complete answer.",
    Reason.STUDENT_TIMEOUT: "The student took longer than `student.timeout_s`.",
    Reason.CIRCUIT_OPEN: "Every student replica failed repeatedly and is left alone for a while.",
    Reason.GATE_CLOSED: "No certificate covers the risk budget, the audit refuted it, or an operator closed it.",
    Reason.NO_STUDENT: "The task has no student; also every pass-through request.",
    Reason.TEACHER_DOWN: "The student stood in for a dead teacher (`on_teacher_down: student`).",
    Reason.DEADLINE: "The request's deadline left no time for the student before the teacher.",
    Reason.HEDGE_WON: "The teacher, started alongside the student, answered first.",
    Reason.IMPORTED: "Not asked of the gateway: read in by `understudy captures import`.",
    Reason.OVERRIDE: "The client chose the side, by header or by `task:teacher`, `task:student`.",
}
EVENTS: Mapping[EventKind, str] = {
    EventKind.AUDIT_BEGAN: "A version, or a changed budget, began its audit; so does reopening.",
    EventKind.CONFIRMED: "The upper bound on the risk came to alpha or below.",
    EventKind.UNPROVEN: "A confirmed version is so no longer: errors came, or a change is suspected.",
    EventKind.REFUTED: "The lower bound rose above alpha, or the change detector fired.",
    EventKind.GATE_CLOSED: "By the audit or by an operator.",
    EventKind.GATE_OPENED: "By an operator.",
    EventKind.TEACHER_CHANGED: "The probe set's answers differ from the first run's significantly.",
    EventKind.BUDGET_UNDER_NOISE: "The teacher disagrees with itself more often than alpha allows.",
    EventKind.CANARY: "A new version answers for a share of the traffic.",
    EventKind.PROMOTED: "A version answers for all of it.",
    EventKind.ROLLED_BACK: "The version before answers again: by an operator, the audit, or failing answers.",
    EventKind.RUN_REFUSED: "A distillation run kept the incumbent, and why.",
    EventKind.RUN_WAITS: "A run's candidate waits for fresh draws to be certified on.",
    EventKind.RUN_FAILED: "A distillation run ended in an error.",
    EventKind.DRIFT: "A block of 500 judged prompts does not look like the calibration rows.",
}
REQUEST_HEADERS: Mapping[str, str] = {
    "authorization": "`Bearer KEY`.",
    "x-understudy-route": "`teacher` or `student`: overrides the judge; needs `may_override`.",
    "x-understudy-hold": "Tokens held back before a stream is released, or `all`; never fewer than "
    "the gated prefix.",
    "x-understudy-deadline-ms": "Milliseconds in which the client needs its answer.",
    "x-understudy-teacher-key": "The client's own key for the teacher, where `teacher.accept_client_key` "
    "allows it. It is used for the first upstream and kept nowhere.",
    "x-understudy-training": "`no`: this exchange is stored, and never becomes training data.",
    "idempotency-key": "A request that comes again with the same key, principal and body gets the same "
    "answer, and is one exchange; for ten minutes, within one process.",
    "traceparent": "With `telemetry`: the trace that this request belongs to, and whether it is sampled.",
    "x-understudy-explain": "`1` adds an `understudy` object to the body or the last chunk.",
}
RESPONSE_HEADERS: Mapping[str, str] = {
    "x-request-id": "The exchange's id; `understudy captures show ID` finds it.",
    "x-understudy-served-by": "`student` or `teacher`.",
    "x-understudy-reason": "One of the reasons below.",
    "x-understudy-score": "P(student and teacher disagree), where the student was judged.",
    "x-understudy-threshold": "The certified threshold on that score.",
    "x-understudy-student": "Student version.",
    "x-understudy-router": "Version and digest of the routing artefact.",
    "x-understudy-captured": "`yes`, `no`, `partial` (a student's, without request and answer, for want of "
    "room), or `pending` on streams: there an exchange that is not, or not wholly, stored is marked by the "
    "comment `: understudy-captured no` (or `partial`) before the end.",
    "x-should-retry": "`false` where our own retries are used up; the SDKs obey it.",
    "retry-after": "Passed on from the teacher.",
}


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def settings() -> str:
    """Every key of the configuration file."""
    return table(("key", "type", "default", "meaning"), _settings(Config, ""))


def errors() -> str:
    """Every error code."""
    rows = ((f"`{code}`", str(i.status), f"`{i.type}`", i.meaning) for code, i in CODES.items())
    return table(("code", "status", "type", "meaning"), rows)


def reasons() -> str:
    """Every reason."""
    return table(("reason", "meaning"), ((f"`{r}`", text) for r, text in REASONS.items()))


def comparators() -> str:
    """Every kind of comparator."""
    return table(("comparator", "meaning"), _pairs(KINDS))


def events() -> str:
    """Every kind of event."""
    return table(("event", "meaning"), ((f"`{k}`", text) for k, text in EVENTS.items()))


def headers() -> str:
    """Request and response headers."""
    asked = table(("request header", "meaning"), _pairs(REQUEST_HEADERS))
    return asked + "\n\n" + table(("response header", "meaning"), _pairs(RESPONSE_HEADERS))


def metrics() -> str:
    """Every metric family."""
    return table(("metric", "type", "labels", "meaning"), map(_metric, families()))


def families() -> list[Metric]:
    """The families of a fresh registry."""
    return sorted(Metrics().registry.collect(), key=lambda family: family.name)


def commands() -> str:
    """Every command with its options."""
    parts = []
    for name, click_command in all_commands():
        help_text = (click_command.help or "").strip().splitlines()[0]
        rows = ((_flag(p), getattr(p, "help", None) or "") for p in click_command.params
                if p.name != "help")  # fmt: skip
        parts.append(
            f"### `understudy {name}`\n\n{help_text}\n\n" + table(("option", "meaning"), rows)
        )
    return "\n\n".join(parts)


def all_commands() -> Iterator[tuple[str, Any]]:
    """(full name, click command) of every leaf command."""
    for name, (module, _) in COMMANDS.items():
        root: Any = typer.main.get_command(importlib.import_module(module).app)
        children = getattr(root, "commands", {})
        if not children:
            yield name, root
        elif name in children:
            yield name, children[name]
        else:
            yield from ((f"{name} {child}", command) for child, command in children.items())


def _pairs(values: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    return ((f"`{name}`", text) for name, text in values.items())


def _metric(family: Metric) -> tuple[str, ...]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    # A missing name has to be an error: StopIteration would end the table without a word.
    known = {
        metric._name: metric
        for value in vars(Metrics()).values()
        if hasattr(metric := getattr(value, "metric", value), "_name")
    }
    # A family that a collector made tells its own.
    teller = family if hasattr(family, "_labelnames") else known[family.name]
    labels = ", ".join(f"`{label}`" for label in teller._labelnames)
    return f"`{name}`", family.type, labels, family.documentation


def _flag(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    plain = parameter.param_type_name == "argument"
    return f"`{parameter.metavar or parameter.name.upper()}`" if plain else f"`{' / '.join(names)}`"


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section, many = _section(field.annotation)
        yield f"`{key}`", _type(field.annotation), _default(field), field.description or ""
        if section is not None:
            yield from _settings(section, f"{key}[]." if many else f"{key}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    many = get_origin(annotation) is list
    for part in get_args(annotation):
        section, deeper = _section(part)
        if section is not None:
            return section, many or deeper
    return None, False


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(p) for p in parts if p is not type(None))
    if origin is list:
        return f"list of {_type(parts[0])}"
    if str(origin) == "typing.Annotated" or hasattr(annotation, "__metadata__"):
        return _type(parts[0])
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{p}`" for p in parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false",
            "Path": "path"}.get(getattr(annotation, "__name__", ""), "text")  # fmt: skip


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    return "see below" if isinstance(field.default, BaseModel) else f"`{field.default}`"
