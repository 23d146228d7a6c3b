"""Collect: every exchange of a task up to a watermark that may be learned from or measured on.

Everything that may not is counted under its reason, and left behind here: no later stage sees it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from distill.examples import Example
from gateway.api.request import Api
from gateway.errors import GatewayError
from gateway.store.feedback import corrections
from gateway.store.records import Exchange, Filter, Status
from gateway.store.repository import CHUNK, Repository, batches
from gateway.store.samples import Label
from gateway.store.training import answers_of, messages_of
from gateway.streams.whole import answer_text, is_whole
from gateway.task_settings import Teacher
from router.comparator import plain_comparator
from router.noise import SIGNIFICANT, Comparison, change_p_value
from router.template import Message


class LeftOut(StrEnum):
    """Why an exchange is not used."""

    NOT_FOR_TRAINING = "not_for_training"
    LICENCE = "licence"
    OVERRIDE = "override"
    NO_TEACHER_ANSWER = "no_teacher_answer"
    NOT_COMPLETE = "not_complete"
    NOT_PLAIN = "not_plain"
    """Tools, a response format, images, several choices: the student is not asked for these."""
    NO_TEXT = "no_text"


@dataclass(frozen=True, slots=True)
class Collected:
    """Examples by time, how many exchanges were left out for which reason, and what the teacher
    cost."""

    examples: list[Example]
    left_out: Mapping[str, int]
    teacher: Mapping[str, float | None]


def collect(
    store: Repository,
    task: str,
    until: float,
    teacher: Teacher,
    labels: Mapping[str, Label],
    changed_at: float | None,
    since: float = 0.0,
) -> Collected:
    """Read a task's exchanges from ``since`` to before ``until`` (Unix seconds), of one moment of
    the store.

    Args:
        store: where they are.
        task: whose.
        until: the watermark.
        teacher: whose terms decide what may be trained on.
        labels: what the teacher said when asked again, by exchange id.
        changed_at: when the teacher changed; labels from before are stale.
        since: what is older is no longer like today's traffic.
    """
    left: Counter[str] = Counter()
    found: list[Example] = []
    which, bill = Filter(task=task, since=since, until=until), Bill()
    with store.snapshot():
        for batch in batches(store.read(which), CHUNK):
            corrected = corrections(store, [e.id for e in batch])
            for exchange in batch:
                bill.add(exchange)
                made = _example(exchange, corrected.get(exchange.id), teacher)
                if isinstance(made, LeftOut):
                    left[made.value] += 1
                else:
                    found.append(made)
    current = relabelled(found, labels, changed_at)
    return Collected(current, dict(sorted(left.items())), bill.told())


def relabelled(
    examples: Iterable[Example], labels: Mapping[str, Label], changed_at: float | None
) -> list[Example]:
    """The examples with what the teacher said when asked again; those that only its predecessor
    labelled are stale."""
    return [_current(example, labels.get(example.id), changed_at) for example in examples]


@dataclass(slots=True)
class Bill:
    """What an answer of the teacher's costs and takes, as it was billed and timed, and what of the
    traffic the student served."""

    usd: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    count: int = 0
    student: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, exchange: Exchange) -> None:
        """One more exchange, in order of time."""
        self.count += 1
        self.first, self.last = self.first or exchange.created_at, exchange.created_at
        self.student += exchange.served_by == "student"
        if exchange.served_by != "teacher" or exchange.status is not Status.COMPLETE:
            return
        calls = [a for a in exchange.attempts if a.role == "teacher"]
        self.usd.append(sum(a.cost_usd for a in calls))
        self.took += [a.duration_ms for a in calls][-1:]

    def told(self) -> dict[str, float | None]:
        """For the ledger."""
        span = self.last - self.first
        return {
            "usd_per_1000": round(1000 * sum(self.usd) / len(self.usd), 6) if self.usd else None,
            "p50_ms": round(statistics.median(self.took), 1) if self.took else None,
            "student_share": round(self.student / self.count, 4) if self.count else None,
            "requests_per_s": round(self.count / span, 4) if span > 0 else None,
        }


def teacher_changed_at(runs: Sequence[Mapping[str, str]], times: Sequence[float],
                       comparator_name: str) -> float | None:  # fmt: skip
    """When the probe set last showed another teacher than the run before: the time of that run.

    ``runs`` are the answers of each run of the set, oldest first; the first two give the teacher's
    own noise, to which later neighbours are compared.
    """
    if len(runs) < 3:
        return None
    agree = plain_comparator(comparator_name)
    floor = Comparison.of(runs[0], runs[1], agree)
    for number in range(len(runs) - 1, 1, -1):
        step = Comparison.of(runs[number - 1], runs[number], agree)
        if change_p_value(floor, step) < SIGNIFICANT:
            return times[number]
    return None


def _example(exchange: Exchange, correction: str | None, teacher: Teacher) -> Example | LeftOut:
    why = _unfit(exchange)
    if why is not None:
        return why
    answers = {side: a for side, a in answers_of(exchange).items() if is_whole(a)}
    label, by = correction, "human"
    if label is None:
        answer = answers.get("teacher")
        if answer is None:
            return LeftOut.NO_TEACHER_ANSWER
        if not _licensed(exchange, teacher):
            return LeftOut.LICENCE
        label, by = answer_text(answer), "teacher"
    try:
        messages = tuple(_plain(m) for m in messages_of(exchange))
    except (GatewayError, KeyError, TypeError):
        return LeftOut.NOT_PLAIN
    drawn = exchange.draw is not None and exchange.draw_p
    p = exchange.draw_p if drawn else None
    made = Example(
        exchange.id, exchange.created_at, messages, label, by, p, exchange.served_by,
        exchange.reason,
    )  # fmt: skip
    return made if made.row.text.strip() and label.strip() else LeftOut.NO_TEXT


def _unfit(exchange: Exchange) -> LeftOut | None:
    if exchange.no_train:
        return LeftOut.NOT_FOR_TRAINING
    if exchange.reason == "override":
        return LeftOut.OVERRIDE
    if exchange.status is not Status.COMPLETE or not exchange.bodies:
        return LeftOut.NOT_COMPLETE
    return LeftOut.NOT_PLAIN if _special(exchange) else None


def _special(exchange: Exchange) -> bool:
    request = exchange.request
    return exchange.api is Api.COMPLETIONS or any(
        request.get(name) for name in ("tools", "functions", "response_format", "audio")
    ) or request.get("n", 1) not in (1, None)  # fmt: skip


def _licensed(exchange: Exchange, teacher: Teacher) -> bool:
    """Whether the upstream that gave the teacher's answer allows training on it."""
    places = (teacher, *teacher.fallbacks)
    if all(place.terms == "open" for place in places):
        return True
    if exchange.served_by != "teacher":
        return False  # a second answer does not say which of the upstreams gave it
    by = next((a.upstream for a in reversed(exchange.attempts) if a.role == "teacher"), "")
    number = by.rpartition("/teacher")[2]
    index = int(number) if number.isdigit() else 0
    return index < len(places) and places[index].terms == "open"


def _plain(message: Mapping[str, Any]) -> Message:
    content = message["content"]
    if isinstance(content, list):
        if any(part.get("type") not in ("text", "input_text") for part in content):
            raise TypeError("not text")
        content = " ".join(part["text"] for part in content)
    if not isinstance(content, str) or message.get("tool_calls"):
        raise TypeError("not text")
    return Message(message["role"], content)


def _current(example: Example, label: Label | None, changed_at: float | None) -> Example:
    if example.by == "human" or changed_at is None:
        return example
    if label is not None and label.at >= changed_at:
        return replace(example, completion=label.completion, stale=False)
    return replace(example, stale=example.created_at < changed_at)
