"""``understudy captures``: read what was captured, beside a running gateway."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from gateway.api.request import Api
from gateway.config_file import load_config, store_path
from gateway.errors import ConfigError, StoreError
from gateway.store.records import Exchange, Filter, Status
from gateway.store.sqlite import SqliteStore
from gateway.streams.whole import answer_text, is_whole, request_of
from gateway.verdict import Reason, ServedBy

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What was captured.")

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")]
TaskName = Annotated[str | None, typer.Option("--task", help="Only this task.")]
Server = Annotated[ServedBy | None, typer.Option(help="Only answers of this side.")]
Why = Annotated[Reason | None, typer.Option(help="Only this reason.")]
Since = Annotated[str | None, typer.Option(help="Only the last 30m, 24h or 7d.")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command("list")
def list_command(
    config: ConfigFile,
    task: TaskName = None,
    served_by: Server = None,
    reason: Why = None,
    since: Since = None,
    fallbacks: Annotated[bool, typer.Option(help="Only training data.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Newest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines.")] = False,
) -> None:
    """List exchanges, newest first."""
    which = Filter(
        task, None, _value(served_by), _value(reason), None, since_time(since), fallbacks,
        limit=limit, newest_first=True,
    )  # fmt: skip
    with _store(config) as store:
        rows = list(store.read(which))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(_summary(row)))
    else:
        console = Console()
        console.width = max(console.width, 160) if not console.is_terminal else console.width
        console.print(_table(rows))


@app.command()
def show(config: ConfigFile, exchange_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show one exchange in full, as JSON. ID may be the beginning of an id, or the answer's id."""
    wanted = exchange_id.removeprefix("chatcmpl-")
    with _store(config) as store:
        found = list(store.read(Filter(ids=(wanted,)))) or [
            e for e in store.read(Filter()) if e.id.startswith(wanted)
        ]
    if len(found) != 1:
        _fail(f"{len(found)} exchanges have an id that starts with {wanted!r}")
    typer.echo(json.dumps(dataclasses.asdict(found[0]), indent=2, default=str))


@app.command()
def export(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="JSON Lines file; - is standard output.")] = Path("-"),
    task: TaskName = None,
    served_by: Server = None,
    reason: Why = None,
    since: Since = None,
    fallbacks: Annotated[bool, typer.Option(help="Only training data.")] = False,
    drawn: Annotated[bool, typer.Option(help="Only draws, with both answers.")] = False,
) -> None:
    """Export whole, untruncated answers as rows that `router fit` and `student train` read."""
    which = Filter(
        task, None, _value(served_by), _value(reason), Status.COMPLETE, since_time(since),
        fallbacks, drawn,
    )  # fmt: skip
    with _store(config) as store:
        rows = (row for exchange in store.read(which) if (row := _row(exchange)) is not None)
        count = _write(out, rows)
    typer.echo(f"{count} rows", err=True)


def _row(exchange: Exchange) -> dict[str, Any] | None:
    """One training row; None where no side gave a whole answer."""
    answers = _answers(exchange)
    completed_by = "teacher" if "teacher" in answers else exchange.served_by
    if completed_by not in answers:
        return None
    row: dict[str, Any] = {
        "id": exchange.id,
        "messages": messages_of(exchange),
        "completion": answer_text(answers[completed_by]),
        "completed_by": completed_by,
        "served_by": exchange.served_by,
        "reason": exchange.reason,
    }
    if exchange.draw is not None and exchange.draw_p:
        row["weight"] = 1.0 / exchange.draw_p
    if "student" in answers:
        row["student"] = student_json_of(answers["student"], exchange)
    return row


def _answers(exchange: Exchange) -> dict[str, Any]:
    """Whole answers by side; a cut one is no training data."""
    draw = exchange.draw
    both = {exchange.served_by: exchange.answer}
    if draw is not None:
        both[draw.wants] = draw.answer
    return {side: answer for side, answer in both.items() if answer and is_whole(answer)}


def prefix_tokens(prefix: Mapping[str, Any]) -> dict[str, Any]:
    """A stored prefix's tokens as rows hold them."""
    return {
        "tokens": [{"token": token, "logprob": logprob} for token, logprob, _ in prefix["tokens"]],
        "top_logprobs": [top for _, _, top in prefix["tokens"]],
    }


def student_json_of(answer: Any, exchange: Exchange) -> dict[str, Any]:
    """A student's answer as rows hold it. The gated prefix of an answer that the student served
    has all its alternatives; the answer itself only those that the client asked for."""
    choice = (answer.get("choices") or [{}])[0]
    content = (choice.get("logprobs") or {}).get("content") or []
    prefix = exchange.prefix if exchange.served_by == "student" else None
    row: dict[str, Any] = {
        "text": answer_text(answer),
        "finish_reason": choice.get("finish_reason") or "stop",
    }
    if prefix is not None and prefix["finished"]:
        row |= prefix_tokens(prefix)
    elif content:
        row["tokens"] = [{"token": t["token"], "logprob": t["logprob"]} for t in content]
        row["top_logprobs"] = [[a["logprob"] for a in t["top_logprobs"]] for t in content]
    return row


def _write(out: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    handle = sys.stdout if str(out) == "-" else out.open("w", encoding="utf-8")
    try:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    finally:
        if handle is not sys.stdout:
            handle.close()
    return count


def _summary(row: Exchange) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": row.created_at,
        "task": row.task,
        "principal": row.principal,
        "status": row.status,
        "served_by": row.served_by,
        "reason": row.reason,
        "score": row.score,
        "ood_score": row.ood_score,
        "drawn": row.draw is not None,
        "prompt": _prompt(row),
        "answer": answer_text(row.answer or {}),
    }


def _table(rows: list[Exchange]) -> Table:
    table = Table(box=None)
    for name in ("id", "time", "task", "served by", "reason", "score", "prompt", "answer"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        when = time.strftime("%H:%M:%S", time.localtime(row.created_at))
        score = "" if row.score is None else f"{row.score:.3f}"
        table.add_row(
            row.id[:16], when, row.task, row.served_by, row.reason, score, _prompt(row)[:40],
            answer_text(row.answer or {})[:24],
        )  # fmt: skip
    return table


def _prompt(row: Exchange) -> str:
    messages = messages_of(row) or [{}]
    content = messages[-1].get("content")
    return content if isinstance(content, str) else json.dumps(content)


def messages_of(exchange: Exchange) -> list[dict[str, Any]]:
    """What was asked, as chat messages: those of the request, or of its text."""
    if exchange.api is Api.CHAT:
        messages: list[dict[str, Any]] = exchange.request["messages"]
        return messages
    request = request_of(exchange.api, exchange.request)
    return [{"role": m.role, "content": m.content} for m in request.messages]


def since_time(text: str | None) -> float | None:
    """Unix seconds of so long ago; ends the command where the text cannot be read."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        _fail(f"--since {text!r}: write a number and s, m, h or d, such as 24h")
    return time.time() - int(match[1]) * _UNITS[match[2]]


def _value(item: ServedBy | Reason | None) -> str | None:
    return None if item is None else item.value


@contextmanager
def _store(config: Path) -> Iterator[SqliteStore]:
    try:
        store = SqliteStore.read_only(store_path(load_config(config)))
    except (ConfigError, StoreError) as error:
        _fail(str(error))
    try:
        yield store
    finally:
        store.close()


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
