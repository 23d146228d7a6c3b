"""What the demo shows: a live table, and one JSON object at the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from deploy.demo.play import Tally
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from gateway.streams.chat import usage_tokens
from gateway.task_settings import Task


@dataclass(frozen=True, slots=True)
class Money:
    """USD spent with the student, and what the teacher alone would have cost."""

    spent: float
    teacher_only: float

    @property
    def saved_share(self) -> float:
        """Share of the teacher-only bill that was saved."""
        return 1 - self.spent / self.teacher_only if self.teacher_only else 0.0


def money(tally: Tally, task: Task, store: SqliteStore, student_s: float) -> Money:
    """Teacher by tokens, draws included; student by the hour its machine was rented."""
    exchanges = list(store.read(Filter()))
    teacher = sum(a.cost_usd for e in exchanges for a in e.attempts)
    drawn = sum(_draw_cost(e.draw.answer, task) for e in exchanges if e.draw)
    return Money(_rent(task, student_s) + teacher + drawn, _teacher_only(tally, task))


def _teacher_only(tally: Tally, task: Task) -> float:
    return sum(task.teacher.price.cost_usd(*s.teacher_tokens) for s in tally.seen)


def _draw_cost(answer: Mapping[str, Any] | None, task: Task) -> float:
    usage = (answer or {}).get("usage")
    if (answer or {}).get("model") == (task.student.model if task.student else None):
        return 0.0
    return task.teacher.price.cost_usd(
        usage_tokens(usage, "prompt_tokens"), usage_tokens(usage, "completion_tokens")
    )


def money_so_far(tally: Tally, task: Task, student_s: float) -> Money:
    """The same while requests are still coming, from what the clients saw; without draws."""
    fallbacks = Tally(tally.by("teacher"))
    spent = _rent(task, student_s) + _teacher_only(fallbacks, task)
    return Money(spent, _teacher_only(tally, task))


def _rent(task: Task, seconds: float) -> float:
    return (task.student.price_per_hour if task.student else 0.0) * seconds / 3600


def live_table(tally: Tally, total: int, cost: Money) -> Table:
    """The split so far."""
    table = Table(title=f"{len(tally.seen)} of {total} requests judged", title_justify="left")
    for name in ("slice", "requests", "student", "teacher", "student right"):
        table.add_column(name, justify="left" if name == "slice" else "right")
    for part in ("in_domain", "near", "oos"):
        rows = [s for s in tally.seen if s.utterance.slice == part]
        served = [s for s in rows if s.served_by == "student"]
        right = f"{sum(s.agrees for s in served)}/{len(served)}" if served else "-"
        table.add_row(part, str(len(rows)), str(len(served)), str(len(rows) - len(served)), right)
    reasons = "  ".join(f"{name} {count}" for name, count in tally.reasons().items())
    student, teacher = tally.median_ms("student"), tally.median_ms("teacher")
    agreement = tally.agreement()
    table.caption = (
        f"{reasons}\nagreement {'-' if agreement is None else f'{agreement:.1%}'}   "
        f"p50 student {student or '-'} ms, teacher {teacher or '-'} ms\n"
        f"cost {cost.spent:.4f} USD, teacher alone {cost.teacher_only:.4f} USD"
    )
    table.caption_justify = "left"
    return table


def commit_ms(exposition: str) -> float:
    """Mean wait for a commit, from the gateway's own metrics. An exchange cannot hold the time of
    its own commit, so the demo adds it to what the store says."""
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.labels.get("stage") == "capture"
    }
    count = samples.get("understudy_overhead_seconds_count", 0.0)
    return 1000 * samples["understudy_overhead_seconds_sum"] / count if count else 0.0


def summary(
    tally: Tally,
    store: SqliteStore,
    certificate: Mapping[str, Any],
    cost: Money,
    committed_ms: float,
) -> dict[str, Any]:
    """The last line of ``make demo ONCE=1``."""
    student = tally.by("student")
    near = [s for s in student if s.utterance.slice == "near"]
    overhead = [e.overhead_ms for e in store.read(Filter())]
    agreement = tally.agreement()
    return {
        "requests": len(tally.seen) + tally.failed,
        "student_served": len(student),
        "teacher_served": len(tally.by("teacher")),
        "reasons": tally.reasons(),
        "student_agreement": None if agreement is None else round(agreement, 4),
        "coverage_in_domain": round(tally.coverage("in_domain"), 4),
        "student_served_near": len(near),
        "student_served_near_wrong": sum(not s.agrees for s in near),
        "student_served_oos": sum(s.utterance.slice == "oos" for s in student),
        "captured": store.count(Filter(status="complete")),
        "captured_fallbacks": store.count(Filter(fallbacks=True)),
        "certificate": {name: certificate[name] for name in ("n", "k", "tau", "alpha", "delta")},
        "p50_ms_student": tally.median_ms("student"),
        "p50_ms_teacher": tally.median_ms("teacher"),
        "overhead_p50_ms": round(statistics.median(overhead) + committed_ms, 3),
        "cost_usd": round(cost.spent, 6),
        "cost_teacher_only_usd": round(cost.teacher_only, 6),
    }
