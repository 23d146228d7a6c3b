"""``understudy review``: the answers whose label would help most, decided on in the terminal."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gateway.config_file import environment, find_task, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.review_queue import Item, queue
from gateway.scrub import Scrubber
from gateway.showing import prompt_of
from gateway.store.feedback import OPERATOR, Feedback, FeedbackState, FeedbackStore
from gateway.store.keeping import Reading
from gateway.store.records import Exchange
from gateway.store.repository import Repository
from gateway.store.training import answers_of
from gateway.streams.whole import answer_text
from gateway.task_settings import Task
from gateway.terminal import ConfigFile, fail, since_time

app = typer.Typer(
    no_args_is_help=True, add_completion=False,
    help="Decide on the answers whose label would help most.",
)  # fmt: skip

TaskName = Annotated[str | None, typer.Option("--task", help="Task; the first by default.")]
Since = Annotated[str, typer.Option(help="Only the last 30m, 24h or 7d.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
_CHOICES = (
    "[t]eacher is right  [s]tudent is right  [c]orrect  [a]ccept suggestion  [r]eject it  "
    "[k] skip  [q]uit"
)


@dataclass(frozen=True, slots=True)
class Desk:
    """What a review works on."""

    task: Task
    store: Repository
    feedback: FeedbackStore


@app.command("list")
def list_command(
    config: ConfigFile, task: TaskName = None, since: Since = "7d", limit: Limit = 50
) -> None:
    """Print the queue as JSON Lines, first things first."""
    with _desk(config, task) as desk:
        for item in _queue(desk, since, limit):
            exchange = _exchange(desk, item.exchange_id)
            answers = {k: answer_text(v) for k, v in answers_of(exchange).items()}
            row = {"id": item.exchange_id, "kind": item.kind, "prompt": prompt_of(exchange)}
            said = [f.correction for f in desk.feedback.of(item.exchange_id) if f.correction]
            typer.echo(json.dumps({**row, "answers": answers, "suggested": said}))


@app.command()
def decide(
    config: ConfigFile,
    exchange_id: Annotated[str, typer.Argument(metavar="ID")],
    label: Annotated[str | None, typer.Option(help="The right answer, word for word.")] = None,
    side: Annotated[
        str | None, typer.Option(help="Whose answer is right: teacher or student.")
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="What was suggested is right.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="It is not.")] = False,
    task: TaskName = None,
) -> None:
    """Decide on one exchange without a dialogue."""
    if sum((label is not None, side is not None, accept, reject)) != 1:
        fail("say one of --label, --side, --accept, --reject")
    with _desk(config, task) as desk:
        exchange = _exchange(desk, exchange_id)
        if accept or reject:
            count = _settle(desk, exchange, accept)
            if not count:
                fail(f"nothing is suggested of {exchange_id}")
        else:
            _correct(desk, exchange, label if label is not None else _said(exchange, side or ""))
    typer.echo(f"decided {exchange_id}")


@app.command()
def start(
    config: ConfigFile, task: TaskName = None, since: Since = "7d", limit: Limit = 50
) -> None:
    """Go through the queue: one exchange, one key. Everything decided is kept at once."""
    console = Console()
    with _desk(config, task) as desk:
        items = _queue(desk, since, limit)
        for number, item in enumerate(items, start=1):
            exchange = _exchange(desk, item.exchange_id)
            _show(console, desk, exchange, f"{number} of {len(items)}, {item.kind}")
            if not _ask(desk, exchange):
                break
        else:
            console.print("Nothing is left to decide.")


def _ask(desk: Desk, exchange: Exchange) -> bool:
    """One decision; False at the end of the session."""
    while True:
        try:
            key = str(typer.prompt(_CHOICES)).strip().lower()[:1]
        except typer.Abort:
            return False
        if key in {"q", "k"}:
            return key == "k"
        try:
            if key in {"t", "s"}:
                _correct(desk, exchange, _said(exchange, "teacher" if key == "t" else "student"))
            elif key == "c":
                _correct(desk, exchange, typer.prompt("the right answer"))
            elif key in {"a", "r"} and _settle(desk, exchange, key == "a"):
                pass
            else:
                typer.echo("that is not possible here")
                continue
        except _NoAnswer as error:
            typer.echo(str(error))
            continue
        return True


class _NoAnswer(Exception):
    """That side gave none."""


def _queue(desk: Desk, since: str, limit: int) -> list[Item]:
    return queue(desk.feedback.candidates(desk.task.name, since_time(since) or 0.0), limit)


def _exchange(desk: Desk, exchange_id: str) -> Exchange:
    found = desk.store.of_ids([exchange_id])
    if not found or found[0].task != desk.task.name:
        fail(f"there is no exchange {exchange_id} of task {desk.task.name}")
    return found[0]


def _said(exchange: Exchange, side: str) -> str:
    answer = answers_of(exchange).get(side)
    if answer is None:
        known = ", ".join(answers_of(exchange)) or "nobody"
        raise _NoAnswer(f"{side!r} did not answer this one; {known} did")
    return answer_text(answer)


def _correct(desk: Desk, exchange: Exchange, label: str) -> None:
    """The operator's word: the label from now on; open suggestions are settled by it."""
    text = Scrubber(desk.task).feedback(exchange.request, label)
    feedback = Feedback(
        exchange.id, OPERATOR, exchange.task, None, text, None, FeedbackState.ACCEPTED, time.time()
    )
    with desk.feedback.transaction():
        desk.feedback.settle(exchange.id, FeedbackState.REJECTED)
        desk.feedback.put(feedback)


def _settle(desk: Desk, exchange: Exchange, accept: bool) -> int:
    with desk.feedback.transaction():
        state = FeedbackState.ACCEPTED if accept else FeedbackState.REJECTED
        return desk.feedback.settle(exchange.id, state)


def _show(console: Console, desk: Desk, exchange: Exchange, head: str) -> None:
    console.rule(head)
    console.print(f"[bold]{escape(prompt_of(exchange))}[/bold]")
    for side, answer in answers_of(exchange).items():
        console.print(f"{side:8} {escape(answer_text(answer))}")
    for said in desk.feedback.of(exchange.id):
        parts = (said.rating, said.correction, said.comment)
        text = ", ".join(part for part in parts if part)
        console.print(f"{said.state.value:8} {escape(said.principal)}: {escape(text)}")
    if exchange.score is not None:
        console.print(f"score {exchange.score:.4f}, threshold {exchange.threshold or 0:.4f}")


@contextlib.contextmanager
def _desk(config: Path, task: str | None) -> Iterator[Desk]:
    try:
        settings = load_config(config)
        place = place_of(settings, environment())
        with (
            contextlib.closing(place.reader()) as store,
            contextlib.closing(place.feedback()) as feedback,
            contextlib.closing(place.keeping()) as keeping,
        ):
            detail = {"task": task} if task else {}
            keeping.add_reading(Reading(time.time(), f"cli {getpass.getuser()}", "review", detail))
            yield Desk(find_task(settings, task), store, feedback)
    except (ConfigError, StoreError, _NoAnswer) as error:
        fail(str(error))
