"""Rows of training and calibration data: JSON Lines, optionally gzipped.

A row is ``{"text", "label"}`` or ``{"messages", "completion"}``, optionally with the student's
own answer (``"student"``), its alternatives per token, and a sampling ``"weight"``.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import RowError
from router.template import Message, variable_text


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token: its log-probability and those of the most likely alternatives (nats)."""

    token: str
    logprob: float
    top: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StudentAnswer:
    """A whole student answer as vLLM gave it."""

    text: str
    tokens: tuple[TokenLogprob, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with the teacher's answer and, where known, the student's."""

    messages: tuple[Message, ...]
    completion: str | None
    student: StudentAnswer | None = None
    weight: float = 1.0
    slice: str | None = None
    out: bool | None = None
    """Stated membership for evaluation; where absent, the label decides."""
    agrees: bool | None = None
    """The comparator's word where it was applied already, as the judge comparator's must be."""
    equivalent: bool | None = None
    """Gold: whether the two answers really say the same, by a person or the data's own key."""

    @property
    def text(self) -> str:
        """The variable part: what is embedded."""
        return variable_text(self.messages)


def usable(answer: StudentAnswer | None) -> bool:
    """Whether an answer may be served at all: complete and not empty, whatever its score."""
    return answer is not None and answer.finish_reason == "stop" and bool(answer.text.strip())


def read_rows(path: Path, system: str | None = None) -> list[Row]:
    """Read every row of a JSON Lines file (``.gz`` by its ending).

    Args:
        path: the file.
        system: system message put before ``{"text"}`` rows.

    Raises:
        RowError: the file cannot be read, or a line is not a row; names file, line and reason.
    """
    rows = [_parse(obj, system, f"{path}:{number}") for number, obj in _objects(path)]
    if not rows:
        raise RowError(f"{path}: no rows")
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows; gzip output carries no time stamp, so equal rows give equal bytes."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def student_json(answer: StudentAnswer) -> dict[str, Any]:
    """The ``"student"`` member of a row."""
    return {
        "text": answer.text,
        "tokens": [{"token": t.token, "logprob": round(t.logprob, 6)} for t in answer.tokens],
        "top_logprobs": [[round(value, 6) for value in t.top] for t in answer.tokens],
        "finish_reason": answer.finish_reason,
    }


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, _loads(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RowError(f"{path}: cannot be read: {error}") from error


def _loads(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: not JSON: {error}") from error


def _parse(obj: Any, system: str | None, where: str) -> Row:
    if not isinstance(obj, dict):
        raise RowError(f"{where}: a row is a JSON object, not {type(obj).__name__}")
    messages = _messages(obj, system, where)
    completion = obj.get("label", obj.get("completion"))
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    if completion is not None and not isinstance(completion, str):
        raise RowError(f"{where}: 'label' or 'completion' must be a string")
    weight = obj.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise RowError(f"{where}: 'weight' must be a positive finite number")
    student = _student(obj["student"], where) if obj.get("student") is not None else None
    part = obj.get("slice")
    return Row(
        messages,
        completion,
        student,
        float(weight),
        part if isinstance(part, str) else None,
        *(_flag(obj, name, where) for name in ("out", "agrees", "equivalent")),
    )


def _flag(obj: Mapping[str, Any], name: str, where: str) -> bool | None:
    value = obj.get(name)
    if value is not None and not isinstance(value, bool):
        raise RowError(f"{where}: {name!r} must be true or false")
    return value


def _messages(obj: Mapping[str, Any], system: str | None, where: str) -> tuple[Message, ...]:
    if isinstance(obj.get("text"), str):
        head = (Message("system", system),) if system is not None else ()
        return (*head, Message("user", obj["text"]))
    raw = obj.get("messages", obj.get("prompt"))
    if not isinstance(raw, list) or not raw:
        raise RowError(f"{where}: needs 'text' (string) or 'messages' (non-empty list)")
    return tuple(_message(item, where) for item in raw)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise RowError(f"{where}: each message needs a 'role'")
    content = item.get("content")
    return Message(item["role"], content if isinstance(content, str) else json.dumps(content))


def student_from_json(raw: Any, where: str) -> StudentAnswer:
    """What ``student_json`` gave; ``where`` is named in errors.

    Raises:
        RowError: it is malformed.
    """
    return _student(raw, where)


def _student(raw: Any, where: str) -> StudentAnswer:
    if not isinstance(raw, dict) or not isinstance(raw.get("text"), str):
        raise RowError(f"{where}: 'student' needs 'text'")
    tokens, tops = raw.get("tokens", []), raw.get("top_logprobs", [])
    if not isinstance(tokens, list) or not isinstance(tops, list):
        raise RowError(f"{where}: 'student.tokens' and 'student.top_logprobs' are lists")
    try:
        return StudentAnswer(
            raw["text"], tuple(_tokens(tokens, tops)), str(raw.get("finish_reason", "stop"))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RowError(f"{where}: malformed student token: {error}") from error


def _tokens(tokens: Sequence[Any], tops: Sequence[Any]) -> Iterator[TokenLogprob]:
    for index, raw in enumerate(tokens):
        top = tops[index] if index < len(tops) else []
        alternatives = top.values() if isinstance(top, dict) else top
        values = tuple(_alternative(item) for item in alternatives)
        if isinstance(raw, str):
            # Plain token strings: greedy decoding chose the likeliest alternative.
            own = _own(raw, top)
            yield TokenLogprob(raw, max(values) if own is None else own, values)
        else:
            yield TokenLogprob(str(raw["token"]), float(raw["logprob"]), values)


def _own(token: str, top: Any) -> float | None:
    """The chosen token's log-probability, where the alternatives carry their texts."""
    if isinstance(top, dict):
        return float(top[token]) if token in top else None
    named = (item for item in top if isinstance(item, dict) and item.get("token") == token)
    return next((float(item["logprob"]) for item in named), None)


def _alternative(item: Any) -> float:
    return float(item["logprob"] if isinstance(item, dict) else item)
