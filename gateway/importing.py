"""``understudy captures import``: logs that a team has already, as exchanges of a task.

Understood, by what a line holds: OpenAI's stored completions (the completion object with its
``messages``), rows of LiteLLM's spend logs, and plain JSON Lines of chats. Ids follow from task
and content, so that the same log read twice is stored once.

Sources: platform.openai.com/docs/api-reference/chat/list; the table LiteLLM_SpendLogs in
schema.prisma of LiteLLM 1.80.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import orjson

from gateway.api.chat import chat_request
from gateway.errors import GatewayError
from gateway.scrub import Scrubber, end_user_of
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from gateway.store.repository import Repository
from gateway.streams.whole import is_whole
from gateway.task_settings import Task
from gateway.verdict import Reason, ServedBy
from router.template import fingerprint

PRINCIPAL = "import"
BATCH = 500
SHOWN = 20
"""Lines that are named; the others are only counted."""


class NotARow(Exception):
    """A line is no exchange that can be used; says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a line says."""

    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    source_id: str | None = None
    created_at: float | None = None
    tokens: tuple[int, int] = (0, 0)
    cost_usd: float = 0.0
    end_user: str | None = None


@dataclass(slots=True)
class Outcome:
    """How an import went. ``problems``: the first lines that were left out, and why."""

    read: int = 0
    stored: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def import_log(
    store: Repository, task: Task, path: Path, now: float, step: Callable[[int], None],
    sample: bool = False,
) -> Outcome:  # fmt: skip
    """Store every usable line of a file (``.gz`` by its ending); ``step`` hears of bytes read.
    A ``sample`` of the task's traffic may calibrate too, not only train.

    Raises:
        StoreError: the store does not take them; what was stored before stays.
        OSError: the file cannot be read.
    """
    outcome, scrubber, batch = Outcome(), Scrubber(task), list[Exchange]()
    for number, line in enumerate(_lines(path, step), start=1):
        if not line.strip():
            continue
        outcome.read += 1
        try:
            batch.append(exchange_of(_found(line), task, scrubber, now, sample))
        except NotARow as error:
            outcome.skipped += 1
            if len(outcome.problems) < SHOWN:
                outcome.problems.append(f"{path}:{number}: {error}")
        if len(batch) == BATCH:
            outcome.stored += store.put(batch)
            batch = []
    outcome.stored += store.put(batch)
    return outcome


def _lines(path: Path, step: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as raw, contextlib.ExitStack() as stack:
        source: IO[bytes] = raw
        if path.suffix == ".gz":
            source = cast(IO[bytes], stack.enter_context(gzip.open(raw)))
        place = 0
        for line in source:
            yield line
            step(raw.tell() - place)
            place = raw.tell()


def _found(line: bytes) -> Found:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise NotARow(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise NotARow("not a JSON object")
    if "call_type" in row or "startTime" in row:
        return _litellm(row)
    return _stored_completion(row) if "choices" in row else _plain(row)


def _stored_completion(row: Mapping[str, Any]) -> Found:
    messages = row.get("messages") or row.get("input")
    if isinstance(messages, Mapping):  # as the messages endpoint lists them
        messages = messages.get("data")
    names = ("tools", "tool_choice", "response_format", "temperature", "top_p", "seed", "metadata")
    request = {name: row[name] for name in names if row.get(name) is not None}
    user = row.get("input_user") or row.get("user")
    if user:
        request["user"] = user
    chat = {**request, "model": row.get("model") or "unknown", "messages": _bare(messages)}
    keys = ("id", "object", "created", "model", "choices", "usage", "system_fingerprint")
    answer = {name: row[name] for name in keys if name in row}
    return Found(chat, answer, _text(row.get("id")), _seconds(row.get("created")), _usage(row))


def _litellm(row: Mapping[str, Any]) -> Found:
    if row.get("status") not in (None, "success"):
        raise NotARow(f"the call ended with {row['status']!r}")
    asked = _held(row.get("proxy_server_request")) or {}
    messages = _held(row.get("messages")) or asked.get("messages")
    answer = _held(row.get("response"))
    if not messages or not isinstance(answer, Mapping) or not answer.get("choices"):
        raise NotARow("holds no messages or no response (store_prompts_in_spend_logs was off?)")
    model = _text(row.get("model")) or "unknown"
    request = {**asked, "model": model, "messages": _bare(messages)}
    request.pop("stream", None)
    if row.get("end_user"):
        request.setdefault("user", row["end_user"])
    tokens = _count(row.get("prompt_tokens")), _count(row.get("completion_tokens"))
    return Found(
        request, answer, _text(row.get("request_id")), _seconds(row.get("startTime")), tokens,
        _money(row.get("spend")),
    )  # fmt: skip


def _plain(row: Mapping[str, Any]) -> Found:
    completion = row.get("completion", row.get("label"))
    messages = row.get("messages", row.get("prompt"))
    if messages is None and isinstance(row.get("text"), str):
        messages = row["text"]
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    said: Any = {"role": "assistant", "content": completion}
    if completion is None and isinstance(messages, list) and messages:
        *messages, said = messages
    if not isinstance(said, Mapping) or said.get("role") != "assistant":
        raise NotARow("needs 'completion', or messages that end with the assistant's")
    spoken = isinstance(said.get("content"), str) and said["content"]
    if not spoken and not said.get("tool_calls"):
        raise NotARow("the assistant says nothing")
    names = ("tools", "response_format", "user", "metadata", "temperature")
    request = {name: row[name] for name in names if row.get(name) is not None}
    finish = "tool_calls" if said.get("tool_calls") else "stop"
    choice = {"index": 0, "message": dict(said), "finish_reason": finish}
    chat = {**request, "model": _text(row.get("model")) or "unknown", "messages": messages}
    return Found(
        chat, {"object": "chat.completion", "choices": [choice]}, _text(row.get("id")),
        _seconds(row.get("created_at", row.get("created"))), _usage(row),
    )  # fmt: skip


def exchange_of(
    found: Found, task: Task, scrubber: Scrubber, now: float, sample: bool = False
) -> Exchange:
    """An exchange of the task, as the gateway would have stored it; of a ``sample`` of the task's
    traffic it is a draw, of probability 1.

    Raises:
        NotARow: it cannot be used.
    """
    try:
        request = chat_request(found.request)
    except GatewayError as error:
        raise NotARow(str(error)) from None
    if not is_whole(found.answer):
        raise NotARow("the answer was cut or refused; such rows are no training data")
    source = found.source_id or orjson.dumps([found.request, found.answer]).decode()
    created_at = now if found.created_at is None else found.created_at
    kept = scrubber.scrubbed(request.model, found.request, found.answer)
    attempt = Attempt("import", "teacher", "ok", 200, *found.tokens, found.cost_usd, 0.0)
    return Exchange(
        id=imported_id(task.name, source, found.created_at),
        created_at=created_at,
        task=task.name,
        principal=PRINCIPAL,
        model=kept.model,
        stream=False,
        status=Status.COMPLETE,
        served_by=ServedBy.TEACHER.value,
        reason=Reason.IMPORTED.value,
        would_be_reason=Reason.IMPORTED.value,
        request=kept.request,
        answer=kept.answer,
        template=fingerprint(
            scrubber.redactor.messages(request.messages), request.tools, request.response_format
        ),
        attempts=(attempt,),
        draw_p=1.0 if sample else None,
        draw=Draw(1.0, "student", DrawState.ALONE) if sample else None,
        end_user=end_user_of(found.request),
    )


def imported_id(task: str, source: str, created_at: float | None = None) -> str:
    """As ``new_id`` makes them: milliseconds, so that ids sort by time, and then the content's
    digest, so that the same line is the same exchange. A line without a time sorts first."""
    digest = hashlib.sha256(f"{task}\0{source}".encode("utf-8", "replace")).hexdigest()
    return f"{int((created_at or 0.0) * 1000):012x}{digest[:20]}"


def _bare(messages: Any) -> list[dict[str, Any]]:
    """Messages without the fields that only listings have."""
    if not isinstance(messages, list) or not messages:
        raise NotARow("holds no messages; stored completions list them apart: join them first")
    extra = {"id", "content_parts"}
    return [
        {k: v for k, v in message.items() if k not in extra and v is not None}
        for message in messages
        if isinstance(message, Mapping)
    ]


def _held(value: Any) -> Any:
    """A JSON column: a value, or text that holds one."""
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    return value


def _usage(row: Mapping[str, Any]) -> tuple[int, int]:
    usage = row.get("usage") or {}
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**40 else 0


def _money(value: Any) -> float:
    try:
        money = float(value or 0.0)
    except (TypeError, ValueError):
        return 0.0
    return money if 0 <= money < math.inf else 0.0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _seconds(value: Any) -> float | None:
    """Unix seconds of a number or an ISO 8601 time; a time without a zone is UTC."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if 0 < value < 1e11 else None
    try:
        parsed = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
