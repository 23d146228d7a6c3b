"""``understudy report``: what a span of time brought: who answered, what it cost and saved, whether
the promise held, and what the student learned."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from distill.html import money, page, percent, table
from distill.plots import stacked_days
from gateway.config_file import environment, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.store.audits import Event
from gateway.store.ledger import DAY_S, Ledger, Run, RunState
from gateway.store.place import Place
from gateway.store.students import Version
from gateway.store.usage import Use
from gateway.task_settings import Risk, Task
from gateway.terminal import ConfigFile, fail, since_time
from router.certify import rows_without_error

app = typer.Typer(no_args_is_help=True, add_completion=False)
MAX_DAYS = 366
EVENTS = 500
LEARNED = 12
_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the test rows, before and after a promotion: shares that agreed."""

    name: str
    rows: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Overview:
    """One task over one span (Unix seconds). ``days`` are (begin, use), a UTC day each."""

    task: Task
    since: float
    until: float
    use: Use
    days: Sequence[tuple[float, Use]]
    median_ms: Mapping[str, float | None]
    feedback: Mapping[str, int]
    events: Sequence[Event]
    runs: Sequence[Run]
    versions: Sequence[Version]
    learned: Sequence[Slice]
    night_usd: float

    @property
    def avoided_usd(self) -> float:
        """What the teacher would have charged for what the student served."""
        return self.task.teacher.price.cost_usd(*self.use.avoided_tokens)

    @property
    def served(self) -> float | None:
        """The student's share of the requests; None without any."""
        return self.use.by_student / self.use.total if self.use.total else None

    def facts(self) -> dict[str, Any]:
        """As one JSON object."""
        reasons: dict[str, int] = {}
        for (_, reason), count in sorted(self.use.requests.items()):
            reasons[reason] = reasons.get(reason, 0) + count
        return {
            "task": self.task.name,
            "since": self.since,
            "until": self.until,
            "requests": self.use.total,
            "served_by_student": self.use.by_student,
            "share": self.served,
            "reasons": reasons,
            "teacher_usd": self.use.teacher_usd,
            "avoided_usd": self.avoided_usd,
            "nights_usd": self.night_usd,
            "median_ms": dict(self.median_ms),
            "audited": self.use.labels,
            "disagreements": self.use.disagreements,
            "agreement": self.use.agreement,
            "alpha": self.task.risk.alpha,
            "feedback": dict(self.feedback),
            "events": [
                {"at": e.at, "kind": e.kind.value, "detail": dict(e.detail)} for e in self.events
            ],
            "runs": [
                {"id": r.id, "state": r.state.value, "reason": r.reason, "at": r.started_at}
                for r in self.runs
            ],
            "versions": [v.name for v in self.versions],
            "learned": [
                {"slice": s.name, "rows": s.rows, "before": s.before, "after": s.after}
                for s in self.learned
            ],
        }


@app.command("report")
def report(
    config: ConfigFile,
    since: Annotated[str, typer.Option(help="A span such as 7d, or a time.")] = "7d",
    task: Annotated[str | None, typer.Option(help="Task; all by default.")] = None,
    html: Annotated[bool, typer.Option("--html", help="A page to mail, with plots.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where to write page or JSON; standard output by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array.")] = False,
) -> None:
    """Say who answered, what it cost and saved, whether the promise held, what was learned."""
    begin, now = since_time(since), time.time()
    assert begin is not None
    if not 0 < (now - begin) / DAY_S <= MAX_DAYS:
        fail(f"--since: between now and {MAX_DAYS} days ago")
    try:
        settings = load_config(config)
        place = place_of(settings, environment())
        tasks = [t for t in settings.tasks if task in (None, t.name)]
        if not tasks:
            fail(f"there is no task {task!r}")
        found = [look(place, each, begin, now) for each in tasks]
    except ConfigError as error:
        fail(*error.problems)
    except StoreError as error:
        fail(str(error))
    if html or as_json:
        facts = [each.facts() for each in found]
        _put(page("Understudy", _parts(found)) if html else json.dumps(facts) + "\n", out)
    else:
        for each in found:
            Console().print(_terminal(each))


def _put(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{out}: {error.strerror}")
    typer.echo(str(out))


def look(place: Place, task: Task, since: float, until: float) -> Overview:
    """Everything about one task.

    Raises:
        StoreError: the store cannot be read.
    """
    name = task.name
    with ExitStack() as stack:
        usage = stack.enter_context(closing(place.usage()))
        audits = stack.enter_context(closing(place.audits()))
        ledger = stack.enter_context(closing(place.ledger()))
        registry = stack.enter_context(closing(place.registry()))
        runs = [r for r in ledger.runs(name, _RUNS) if r.started_at >= since]
        versions = [v for v in registry.versions(name) if v.created_at >= since]
        return Overview(
            task, since, until,
            usage.of(name, since, until),
            [(a, usage.of(name, max(a, since), min(b, until))) for a, b in _days(since, until)],
            {by: usage.median_ms(name, by, since, until) for by in ("student", "teacher")},
            usage.feedback(name, since, until),
            [e for e in audits.events(name, EVENTS) if e.at >= since],
            runs,
            versions,
            _learned(task, runs, ledger),
            sum(stage.cost_usd for run in runs for stage in ledger.stages(run.id)),
        )  # fmt: skip


def _days(since: float, until: float) -> Iterator[tuple[float, float]]:
    day = math.floor(since / DAY_S) * DAY_S
    while day < until:
        yield day, day + DAY_S
        day += DAY_S


def _learned(task: Task, runs: Sequence[Run], ledger: Ledger) -> list[Slice]:
    """Parts of the traffic in which the latest promoted student beats the one before it, by the
    run's own test rows; a run whose files are gone tells nothing."""
    for run in runs:
        if run.state is not RunState.PROMOTED:
            continue
        path = task.distill.folder / task.name / "runs" / run.id / "evaluation.json"
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        before, said = found["incumbent"]["agrees"], found["candidates"].get(_promoted(ledger, run))
        if not before or said is None:
            continue
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(found["rows"]):
            groups.setdefault(row["slice"], []).append(number)
        slices = [
            Slice(name, len(members), _share(before, members), _share(said["agrees"], members))
            for name, members in groups.items()
        ]
        gained = [s for s in slices if s.after > s.before]
        return sorted(gained, key=lambda s: (s.before - s.after) * s.rows)[:LEARNED]
    return []


def _promoted(ledger: Ledger, run: Run) -> str | None:
    stages = {stage.name: stage.outputs or {} for stage in ledger.stages(run.id)}
    student: str | None = stages.get("promote", {}).get("student")
    return student


def _share(agrees: Sequence[bool], members: Sequence[int]) -> float:
    return sum(agrees[i] for i in members) / len(members)


def _summary(found: Overview) -> list[tuple[str, str]]:
    """What there is to say in a line each."""
    use = found.use
    rows = [
        ("requests", str(use.total)),
        ("answered by the student", f"{use.by_student} ({percent(found.served)})"),
        ("teacher", f"{money(use.teacher_usd)} USD"),
        ("saved by the student", f"{money(found.avoided_usd)} USD"),
        ("spent on nights", f"{money(found.night_usd)} USD"),
        ("promise", _promise(use, found.task.risk)),
    ]
    took = [f"{by} {ms:.0f} ms" for by, ms in found.median_ms.items() if ms is not None]
    if took:
        rows.append(("median answer", ", ".join(took)))
    if found.feedback:
        said = ", ".join(f"{count} {state}" for state, count in found.feedback.items())
        rows.append(("feedback", said))
    return rows


def _promise(use: Use, budget: Risk) -> str:
    if use.agreement is None:
        return "nothing was audited"
    enough = rows_without_error(budget.alpha, budget.delta)
    doubt = "" if use.labels >= enough else f" (fewer than {enough} prove nothing)"
    return (
        f"{percent(use.agreement)} of {use.labels} audited answers of the student agreed with the "
        f"teacher{doubt}; the budget asks for {percent(1 - budget.alpha)}"
    )


def _terminal(found: Overview) -> Table:
    shown = Table("", "", title=_title(found), box=None, title_justify="left", show_header=False)
    for name, text in _summary(found):
        shown.add_row(name, text)
    for run in found.runs:
        shown.add_row(f"run {run.number}", f"{run.state.value}: {run.reason}")
    for part in found.learned:
        shown.add_row("learned", f"{part.name}: {part.before:.0%} to {part.after:.0%}")
    return shown


def _title(found: Overview) -> str:
    return f"{found.task.name}, {_day(found.since)} to {_day(found.until)}"


def _parts(overviews: Sequence[Overview]) -> list[str]:
    parts = ["<h1>Understudy</h1>"]
    for found in overviews:
        parts += [f"<h2>{escape(_title(found))}</h2>", table(("", ""), _summary(found))]
        parts += [_by_day(found), _by_reason(found), _gains(found), _nights(found), _news(found)]
    return parts


def _by_day(found: Overview) -> str:
    days = [(_day(at)[5:], use) for at, use in found.days]
    return "<h3>Who answered</h3>" + stacked_days(
        [day for day, _ in days],
        [use.by_student for _, use in days],
        [use.total - use.by_student for _, use in days],
        [use.agreement for _, use in days],
        found.task.risk.alpha,
    )


def _by_reason(found: Overview) -> str:
    rows = [
        (by, why, count, percent(count / found.use.total))
        for (by, why), count in sorted(found.use.requests.items(), key=lambda item: -item[1])
    ]
    head = ("answered by", "why", "requests", "share")
    return "<h3>Why</h3>" + table(head, rows) if rows else ""


def _gains(found: Overview) -> str:
    if not found.learned:
        return ""
    rows = [(s.name, s.rows, percent(s.before), percent(s.after)) for s in found.learned]
    head = ("part", "test rows", "agreed before", "agrees now")
    return "<h3>What the student learned</h3>" + table(head, rows)


def _nights(found: Overview) -> str:
    if not found.runs:
        return ""
    rows = [(_time(r.started_at), r.id, r.state.value, r.reason) for r in found.runs]
    return "<h3>Nights</h3>" + table(("began", "run", "came to", "why"), rows)


def _news(found: Overview) -> str:
    if not found.events:
        return ""
    rows = [
        (_time(e.at), e.kind.value, ", ".join(f"{k} {v}" for k, v in e.detail.items()))
        for e in found.events
    ]
    return "<h3>Events</h3>" + table(("when (UTC)", "what", "detail"), rows)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
