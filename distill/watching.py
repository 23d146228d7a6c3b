"""``understudy distill watch``: when a run is due, and when it must not begin."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from distill.collecting import teacher_changed_at
from distill.job import Job
from distill.runner import Busy, Result, start
from gateway.distill_settings import Distill
from gateway.errors import ConfigError
from gateway.store.audits import EventKind
from gateway.store.ledger import DAY_S, Run, RunState
from gateway.store.probes import all_runs
from gateway.store.records import Filter, Status


@dataclass(frozen=True, slots=True)
class Seen:
    """How things stand. ``runs`` are the latest, newest first; ``since`` is when the last run
    began; ``events`` what happened since; ``checked`` when it was last looked, all in Unix
    seconds."""

    now: float
    checked: float
    runs: Sequence[Run]
    leased: bool
    new_rows: int
    events: frozenset[EventKind]
    spent_today: float


@dataclass(frozen=True, slots=True)
class Due:
    """Why a run begins now, or why it does not although something asks for it."""

    trigger: str | None
    held_back: str | None = None


def due(seen: Seen, wanted: Distill) -> Due:
    """Whether a run is to begin.

    A run that was cut short goes on at once; the schedule and the other triggers respect cooldown,
    failures and spend.
    """
    if seen.leased:
        return Due(None)
    if seen.runs and seen.runs[0].state is RunState.RUNNING:
        return Due("resume")
    trigger = _trigger(seen, wanted)
    if trigger is None:
        return Due(None)
    last = seen.runs[0].started_at if seen.runs else -DAY_S
    if seen.now - last < wanted.cooldown_s:
        return Due(None, f"{trigger}: the last run began {seen.now - last:.0f} s ago")
    failed = _failed_in_a_row(seen.runs)
    if failed >= wanted.failures and seen.now - last < DAY_S:
        return Due(None, f"{trigger}: the last {failed} runs failed; see understudy distill status")
    if seen.spent_today >= wanted.usd_per_day:
        return Due(None, f"{trigger}: {seen.spent_today:.2f} USD are spent today")
    return Due(trigger)


def look(job: Job, checked: float, now: float) -> Seen:
    """Read how a task stands.

    Raises:
        StoreError: the store does not answer.
    """
    task, place = job.task.name, job.place
    with closing(place.ledger()) as ledger:
        runs = ledger.runs(task, 10)
        leased = ledger.leased(task, now) is not None
        spent = ledger.spent_today(task, now)
    since = runs[0].started_at if runs else 0.0
    with closing(place.audits()) as audits:
        events = {e.kind for e in audits.events(task) if e.at > since}
        # Every run of the probe set tells that the teacher is not the first one any more; what
        # matters is whether it has changed since the last run.
        probes = all_runs(audits, task)
    changed = teacher_changed_at(
        [p.answers for p in probes], [p.at for p in probes], job.task.risk.comparator
    )
    if changed is None or changed <= since:
        events.discard(EventKind.TEACHER_CHANGED)
    which = Filter(
        task=task, served_by="teacher", status=Status.COMPLETE.value, since=since, until=now
    )
    with closing(place.reader()) as store:
        rows = store.count(which)
    return Seen(now, checked, runs, leased, rows, frozenset(events), spent)


def watch_once(job: Job, checked: float, now: float) -> Result | None:
    """Begin a run if one is due, and carry it to its end.

    Raises:
        StoreError: the store does not answer.
    """
    found = due(look(job, checked, now), job.task.distill)
    if found.held_back is not None:
        job.say(f"{job.task.name}: not begun: {found.held_back}")
    if found.trigger is None:
        return None
    try:
        return start(job, found.trigger)
    except Busy as error:
        job.say(str(error))
        return None


def check_schedule(wanted: Distill) -> None:
    """Refuse a cron expression that never fires.

    Raises:
        ConfigError: what is wrong with it.
    """
    from croniter import croniter

    if wanted.schedule is not None and not croniter.is_valid(wanted.schedule):
        raise ConfigError([f"distill.schedule: {wanted.schedule!r} is no cron expression"])


def _trigger(seen: Seen, wanted: Distill) -> str | None:
    if wanted.schedule is not None and _fired(wanted.schedule, seen.checked, seen.now):
        return "schedule"
    if wanted.on_teacher_change and EventKind.TEACHER_CHANGED in seen.events:
        return "teacher_changed"
    if wanted.on_drift and EventKind.DRIFT in seen.events:
        return "drift"
    if wanted.rows_trigger is not None and seen.new_rows >= wanted.rows_trigger:
        return "rows"
    return None


def _fired(expression: str, checked: float, now: float) -> bool:
    """Whether a time of the schedule lies after ``checked`` and not after ``now``."""
    from croniter import croniter

    after = croniter(expression, datetime.fromtimestamp(checked)).get_next(datetime)
    return bool(after.timestamp() <= now)


def _failed_in_a_row(runs: Sequence[Run]) -> int:
    count = 0
    for run in runs:
        if run.state is not RunState.FAILED:
            break
        count += 1
    return count
