"""``understudy captures``: read what was captured, beside a running gateway, and use it."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TimeRemainingColumn,
)
from rich.table import Table

from gateway.config_file import environment, find_task, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.exporting import Format, export_lines, export_parquet, lines
from gateway.forgetting import forget_user
from gateway.importing import import_log
from gateway.scrub import end_user_digest
from gateway.showing import line_of, summary_of, table_of
from gateway.statistics import statistics
from gateway.store.feedback import FeedbackStore
from gateway.store.keeping import Export, Keeping, Reading
from gateway.store.place import Place
from gateway.store.records import Filter, Status
from gateway.store.repository import Repository
from gateway.terminal import ConfigFile, fail, since_time
from gateway.verdict import Reason, ServedBy

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What was captured.")

TaskName = Annotated[str | None, typer.Option("--task", help="Only this task.")]
Server = Annotated[ServedBy | None, typer.Option(help="Only answers of this side.")]
Why = Annotated[Reason | None, typer.Option(help="Only this reason.")]
Since = Annotated[str | None, typer.Option(help="Only the last 30m, 24h or 7d.")]
Until = Annotated[str | None, typer.Option(help="Only what is older than 30m, 24h or 7d.")]
Who = Annotated[str | None, typer.Option("--principal", help="Only this key's.")]
Ended = Annotated[Status | None, typer.Option(help="Only those that ended so.")]
Text = Annotated[str | None, typer.Option("--grep", help="Only with this text in them.")]
Json = Annotated[bool, typer.Option("--json", help="JSON Lines.")]
_POLL_S = 0.5


@app.command("list")
def list_command(
    config: ConfigFile,
    task: TaskName = None,
    served_by: Server = None,
    reason: Why = None,
    status: Ended = None,
    principal: Who = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    fallbacks: Annotated[bool, typer.Option(help="Only training data.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List exchanges, newest first."""
    which = Filter(
        task, principal, served_by, reason, status, since_time(since), fallbacks, limit=limit,
        newest_first=True, until=since_time(until), text=text,
    )  # fmt: skip
    with _recorded(config, "list", which) as store:
        rows = list(store.read(which))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(summary_of(row)))
    else:
        console = Console()
        console.width = max(console.width, 160) if not console.is_terminal else console.width
        console.print(table_of(rows))


@app.command()
def show(config: ConfigFile, exchange_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show one exchange in full, as JSON. ID may be the beginning of an id, or the answer's id."""
    wanted = exchange_id.removeprefix("chatcmpl-")
    with _recorded(config, "show", Filter(ids=(wanted,))) as store:
        found = store.starting_with(wanted)
        said = _feedback(store, found[0].id) if len(found) == 1 else []
    if len(found) != 1:
        fail(f"{len(found)} exchanges have an id that starts with {wanted!r}")
    whole = {**dataclasses.asdict(found[0]), "feedback": said}
    typer.echo(json.dumps(whole, indent=2, default=str))


@app.command()
def tail(
    config: ConfigFile,
    task: TaskName = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many; else with Ctrl-C.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow exchanges as they are committed."""
    with _recorded(config, "tail", Filter(task=task)) as store:
        seen, place = 0, store.last_row()
        with contextlib.suppress(KeyboardInterrupt):
            while count is None or seen < count:
                rows, place = store.rows_after(place, task)
                for row in rows[: None if count is None else count - seen]:
                    typer.echo(json.dumps(summary_of(row)) if as_json else line_of(row))
                    seen += 1
                if not rows:
                    time.sleep(_POLL_S)


@app.command()
def stats(
    config: ConfigFile,
    task: TaskName = None,
    since: Since = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Count exchanges, draws, feedback, tokens and money, by task."""
    with _store(config) as (_, store):
        found = statistics(store, task, since_time(since))
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console()
    for name, numbers in found.items():
        table = Table("", "requests", "share", title=name, box=None, title_justify="left")
        for row in numbers["by_reason"]:
            share = f"{row['requests'] / max(numbers['requests'], 1):.1%}"
            table.add_row(f"{row['served_by']}, {row['reason']}", str(row["requests"]), share)
        console.print(table)
        rest = {k: v for k, v in numbers.items() if k != "by_reason"}
        console.print("  ".join(f"{name} {value:g}" for name, value in rest.items()))


@app.command()
def export(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="File to write; - is standard output.")] = Path("-"),
    form: Annotated[
        Format,
        typer.Option("--format", help="rows (for `router fit`), openai (fine-tuning) or parquet."),
    ] = Format.ROWS,
    task: TaskName = None,
    served_by: Server = None,
    reason: Why = None,
    principal: Who = None,
    since: Since = None,
    until: Until = None,
    fallbacks: Annotated[bool, typer.Option(help="Only training data.")] = False,
    drawn: Annotated[bool, typer.Option(help="Only draws, with both answers.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on where a cut export stopped.")] = False,
) -> None:
    """Export whole answers, with accepted corrections in their place, from one snapshot. Parquet
    holds every exchange, whole or not."""
    status = None if form is Format.PARQUET else Status.COMPLETE
    which = Filter(
        task, principal, served_by, reason, status, since_time(since), fallbacks, drawn,
        until=since_time(until),
    )  # fmt: skip
    with _recorded(config, "export", which) as store:
        count = _exported(store, which, form, out, resume)
    if str(out) != "-":
        _remember(config, Export(out.resolve(), form.value, time.time(), count))
    typer.echo(f"{count} rows", err=True)


@app.command("import")
def import_command(
    config: ConfigFile,
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines; .gz is unpacked.", exists=True)
    ],
    task: Annotated[str, typer.Option(help="The task that they are of.")],
    sample: Annotated[
        bool,
        typer.Option(
            "--traffic-sample",
            help="They are a random sample of the task's traffic: they may calibrate and test too.",
        ),
    ] = False,
) -> None:
    """Take in logs of before: OpenAI stored completions, LiteLLM spend logs, chats as JSON Lines.
    Each line is stored once, however often it is read; redaction applies."""
    try:
        settings = load_config(config)
        wanted = find_task(settings, task)
        store = place_of(settings, environment()).repository()
        with contextlib.closing(store), _bar(source.stat().st_size, in_bytes=True) as step:
            outcome = import_log(store, wanted, source, time.time(), step, sample)
    except (ConfigError, StoreError, OSError) as error:
        fail(str(error))
    for problem in outcome.problems:
        typer.echo(f"left out: {problem}", err=True)
    left = outcome.skipped - len(outcome.problems)
    if left:
        typer.echo(f"left out: {left} more", err=True)
    typer.echo(f"{outcome.read} lines, {outcome.stored} new exchanges, {outcome.skipped} left out")
    if outcome.read and outcome.skipped == outcome.read:
        raise typer.Exit(1)


@app.command()
def forget(
    config: ConfigFile,
    user: Annotated[str, typer.Option(help="The end user's id, as `user` named it.")],
    vacuum: Annotated[
        bool, typer.Option(help="Rewrite the store, so that no page keeps a trace; writers wait.")
    ] = True,
) -> None:
    """Delete an end user's exchanges: from the store and its log, from exported files, and from
    the routing artefacts' prompts and indexes; training sets forget them from now on."""
    try:
        settings = load_config(config)
        place = place_of(settings, environment())
        told = forget_user(settings, place, end_user_digest(user), getpass.getuser(), vacuum)
    except (ConfigError, StoreError) as error:
        fail(str(error))
    for line in told:
        typer.echo(line)


@app.command("no-train")
def no_train(
    config: ConfigFile,
    task: Annotated[str, typer.Option(help="The task that they are of.")],
    exchange: Annotated[
        list[str] | None, typer.Option("--id", help="Only this exchange; may be repeated.")
    ] = None,
    reason: Why = None,
    principal: Who = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
) -> None:
    """Mark exchanges as not for training, for good: no run learns from them or measures on them
    again. They stay stored; versions that were trained before stay as they are."""
    if not (exchange or reason or principal or since or until or text):
        fail("name at least one of --id, --reason, --principal, --since, --until, --grep")
    which = Filter(
        task, principal, None, reason, None, since_time(since), until=since_time(until),
        text=text, ids=tuple(exchange or ()),
    )  # fmt: skip
    with _recorded(config, "no-train", which) as store:
        ids = [row.id for row in store.read(which)]
        with contextlib.closing(_place(config).samples()) as samples:
            count = samples.withhold(task, ids)
    typer.echo(f"{count} exchanges are not for training from now on, {len(ids) - count} were not")


@app.command()
def reads(
    config: ConfigFile,
    limit: Annotated[int, typer.Option(min=1, help="Latest so many.")] = 50,
) -> None:
    """Show who looked at what was captured, latest first, as JSON Lines."""
    with _keeping(config) as keeping:
        for reading in keeping.readings(limit):
            typer.echo(json.dumps(dataclasses.asdict(reading)))


def _exported(store: Repository, which: Filter, form: Format, out: Path, resume: bool) -> int:
    if str(out) == "-":
        if form is Format.PARQUET:
            fail("--format parquet needs --out FILE")
        count = 0
        for line in lines(store, which, form):
            sys.stdout.buffer.write(line)
            count += 1
        sys.stdout.buffer.flush()
        return count
    with _bar(store.count(which)) as step:
        if form is Format.PARQUET:
            return export_parquet(store, which, out, step)
        return export_lines(store, which, form, out, resume, step)


@contextlib.contextmanager
def _bar(total: int, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error; nothing elsewhere."""
    counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
    console = Console(stderr=True)
    columns = BarColumn(), counted, TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda step: progress.advance(task, step)


def _remember(config: Path, export_: Export) -> None:
    with _keeping(config) as keeping:
        keeping.add_export(export_)


def _feedback(store: Repository, exchange_id: str) -> list[dict[str, Any]]:
    return [dataclasses.asdict(f) for f in FeedbackStore(store).of(exchange_id)]


@contextlib.contextmanager
def _recorded(config: Path, what: str, which: Filter) -> Iterator[Repository]:
    """The store, once it is recorded who reads what of it. A store that cannot be written can
    still be read: that it was is said on standard error then."""
    asked = {k: v for k, v in dataclasses.asdict(which).items() if v not in (None, False, ())}
    reading = Reading(time.time(), f"cli {getpass.getuser()}", what, asked)
    with _store(config) as (place, store):
        try:
            with contextlib.closing(place.keeping()) as keeping:
                keeping.add_reading(reading)
        except StoreError as error:
            typer.echo(f"warning: this reading is not recorded: {error}", err=True)
        yield store


def _place(config: Path) -> Place:
    return place_of(load_config(config), environment())


@contextlib.contextmanager
def _keeping(config: Path) -> Iterator[Keeping]:
    try:
        with contextlib.closing(_place(config).keeping()) as keeping:
            yield keeping
    except (ConfigError, StoreError) as error:
        fail(str(error))


@contextlib.contextmanager
def _store(config: Path) -> Iterator[tuple[Place, Repository]]:
    try:
        place = _place(config)
        with contextlib.closing(place.reader()) as store:
            yield place, store
    except (ConfigError, StoreError, OSError) as error:
        fail(str(error))
