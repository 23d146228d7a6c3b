"""``understudy distill``: make tonight's student, and see what became of it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill.bootstrap import BootstrapStopped, bootstrap, distinct, expand
from distill.executor import ExecutorError
from distill.job import Job, load_job, load_jobs
from distill.runner import Busy, Result, resume, start
from distill.watching import check_schedule, watch_once
from gateway.errors import ConfigError, StoreError
from gateway.store.ledger import Ledger, Run, RunState, open_run, run_of
from gateway.terminal import ConfigFile, fail
from router.errors import RouterError
from router.rows import read_rows

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Distil a task's student, night by night."
)

TaskName = Annotated[str | None, typer.Option("--task", help="Task; the first by default.")]
RunId = Annotated[str | None, typer.Argument(help="Run id, such as banking-intents-3.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def run(
    config: ConfigFile,
    task: TaskName = None,
    trigger: Annotated[str, typer.Option(help="Why it runs; kept in the ledger.")] = "operator",
    as_json: Json = False,
) -> None:
    """Collect, train, measure, decide, certify, promote; a run that was killed goes on instead.

    Ends with 0 where it promoted, refused, waits or had nothing to learn, with 1 where it failed,
    and with 3 where the task is being run already."""
    job = _job(config, task)
    try:
        result = start(job, trigger)
    except Busy as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3) from None
    except (StoreError, ExecutorError) as error:
        fail(str(error))
    _end(job, result, as_json)


@app.command("bootstrap")
def bootstrap_(
    config: ConfigFile,
    prompts: Annotated[
        Path, typer.Option(help="JSON Lines: {'text'} or {'messages'}; .gz is unpacked.")
    ],
    task: TaskName = None,
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Most prompts to ask about.")] = 2000,
    usd: Annotated[float, typer.Option(min=0.0, help="Most to spend on the teacher, in USD.")] = (
        10.0
    ),
    sample: Annotated[
        bool,
        typer.Option(
            "--traffic-sample",
            help="They are a random sample of the task's traffic: they may calibrate and test too.",
        ),
    ] = False,
    expand_to: Annotated[
        int, typer.Option(min=0, help="Have the teacher invent prompts up to so many.")
    ] = 0,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Calls in flight.")] = 8,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Calls begun in a minute; unpaced by default.")
    ] = None,
) -> None:
    """Ask the teacher for a task's first pairs: sixteen as a smoke, then the rest, within a
    budget. What is stored is not asked again: run it again to go on."""
    if sample and expand_to:
        fail("--traffic-sample and --expand-to: invented prompts are no sample of the traffic")
    job = _job(config, task)
    try:
        rows = distinct(read_rows(prompts, system))
        spent = 0.0
        if expand_to > len(rows):
            new, spent = expand(job, rows, expand_to - len(rows), usd, job.task.distill.seed)
            rows += new
        total = min(pairs, len(rows))
        with _bar(total) as step:
            found = bootstrap(
                job, rows, pairs=pairs, usd=usd - spent, sample=sample, at_once=at_once,
                per_minute=per_minute, step=step,
            )  # fmt: skip
    except (RouterError, BootstrapStopped, StoreError) as error:
        fail(str(error))
    for problem in sorted(set(found.problems))[:5]:
        _say(f"no answer: {problem}")
    told = asdict(found) | {"prompts": total, "usd": round(found.usd + spent, 6)}
    del told["problems"]
    typer.echo(json.dumps(told))
    if found.out_of_budget:
        _say(f"the budget of {usd:g} USD is spent; run it again with more to go on")
        raise typer.Exit(1)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("asking the teacher"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        yield lambda step: progress.advance(bar, step)


@app.command("resume")
def resume_(config: ConfigFile, run_id: RunId = None, task: TaskName = None) -> None:
    """Go on with a run that was killed or failed, at the stage where it stopped."""
    job = _job(config, task)
    try:
        with _ledger(job) as ledger:
            found = run_of(ledger, run_id) if run_id else _latest(ledger, job.task.name)
        result = resume(job, found)
    except Busy as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3) from None
    except (StoreError, ExecutorError) as error:
        fail(str(error))
    _end(job, result, False)


@app.command()
def cancel(config: ConfigFile, run_id: RunId = None, task: TaskName = None) -> None:
    """Ask a run to stop; what it trained so far is refused. A killed run ends at once."""
    job = _job(config, task, to_run=False)
    try:
        with _ledger(job) as ledger:
            found = run_of(ledger, run_id) if run_id else _latest(ledger, job.task.name)
            if not ledger.cancel(found.id):
                fail(f"{found.id} is over: {found.state.value}")
            if ledger.leased(job.task.name, time.time()) is None:
                ledger.end(found, RunState.CANCELLED, "cancelled by an operator", time.time())
    except StoreError as error:
        fail(str(error))
    typer.echo(f"{found.id}: asked to stop")


@app.command()
def watch(
    config: ConfigFile,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks.")] = 30.0,
    once: Annotated[
        bool, typer.Option(help="Look once: for a timer that runs more often than the schedule.")
    ] = False,
) -> None:
    """Begin runs when they are due: by schedule, new answers, drift, a changed teacher; for every
    task that the registry serves. The file is read again at each look."""
    signal.signal(signal.SIGTERM, _leave)
    checked = time.time() - every
    while True:
        now = time.time()
        try:
            for job in load_jobs(config, _say):
                check_schedule(job.task.distill)
                watch_once(job, checked, now)
        except ConfigError as error:
            if once:
                fail(*error.problems)
            for problem in error.problems:
                _say(f"error: {problem}")
        except StoreError as error:
            if once:
                fail(str(error))
            _say(f"error: {error}")
        checked = now
        if once:
            return
        time.sleep(every)


@app.command()
def status(config: ConfigFile, task: TaskName = None, as_json: Json = False) -> None:
    """The latest runs: how each ended, and why."""
    job = _job(config, task, to_run=False)
    with _ledger(job) as ledger:
        runs = ledger.runs(job.task.name)
        holder = ledger.leased(job.task.name, time.time())
        found = [_told(ledger, run) for run in runs]
    if as_json:
        typer.echo(json.dumps({"task": job.task.name, "running_on": holder, "runs": found}))
        return
    if not found:
        typer.echo(f"{job.task.name}: no run yet; understudy distill run makes one")
    for row in found:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started_at"]))
        stage = f" at {row['stage']}" if row["state"] == "running" else ""
        typer.echo(f"{at}  {row['id']}  {row['state']}{stage}  {row['reason']}")


@app.command()
def show(
    config: ConfigFile, run_id: RunId = None, task: TaskName = None, as_json: Json = False
) -> None:
    """One run, stage by stage."""
    job = _job(config, task, to_run=False)
    try:
        with _ledger(job) as ledger:
            found = run_of(ledger, run_id) if run_id else _latest(ledger, job.task.name)
            stages = ledger.stages(found.id)
    except StoreError as error:
        fail(str(error))
    report = job.folder / "runs" / found.id / "report.html"
    if as_json:
        rows = [
            {"name": s.name, "state": s.state.value, "tries": s.tries, "inputs": s.inputs,
             "outputs": s.outputs, "cost_usd": s.cost_usd, "started_at": s.started_at,
             "ended_at": s.ended_at, "error": s.error}
            for s in stages
        ]  # fmt: skip
        typer.echo(
            json.dumps(
                {
                    "id": found.id,
                    "state": found.state.value,
                    "reason": found.reason,
                    "trigger": found.trigger,
                    "code": found.code,
                    "config": found.config,
                    "report": str(report) if report.exists() else None,
                    "stages": rows,
                }
            )
        )
        return
    typer.echo(f"{found.id}  {found.state.value}  {found.reason}")
    for s in stages:
        took = f"{(s.ended_at or time.time()) - s.started_at:.1f} s"
        typer.echo(f"  {s.name:12} {s.state.value:8} {took:>9}  {s.error or ''}")
    if report.exists():
        typer.echo(f"report: {report}")


def _leave(number: int, frame: object) -> None:
    """A run under way is cut, and goes on at the next start."""
    raise SystemExit(0)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _job(config: Path, task: str | None, to_run: bool = True) -> Job:
    try:
        return load_job(config, task, _say, to_run)
    except ConfigError as error:
        fail(*error.problems)


@contextmanager
def _ledger(job: Job) -> Iterator[Ledger]:
    if not job.place.shared and not job.place.path.is_file():
        fail(f"{job.place.path}: no such store; has the gateway run with this file?")
    with closing(job.place.ledger()) as ledger:
        yield ledger


def _latest(ledger: Ledger, task: str) -> Run:
    runs = ledger.runs(task, 1)
    found = open_run(ledger, task) or (runs[0] if runs else None)
    if found is None:
        raise StoreError(f"{task}: no run yet")
    return found


def _told(ledger: Ledger, run: Run) -> dict[str, Any]:
    stages = ledger.stages(run.id)
    return {
        "id": run.id,
        "state": run.state.value,
        "reason": run.reason,
        "trigger": run.trigger,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "stage": stages[-1].name if stages else None,
        "cost_usd": sum(s.cost_usd for s in stages),
    }


def _end(job: Job, result: Result, as_json: bool) -> None:
    if as_json:
        report = job.folder / "runs" / result.run.id / "report.html"
        typer.echo(
            json.dumps(
                {
                    "run": result.run.id,
                    "state": result.state.value,
                    "reason": result.reason,
                    "report": str(report),
                }
            )
        )
    if result.state is RunState.FAILED:
        raise typer.Exit(1)
