"""Answers of student versions, each asked for once: kept by weights and prompt."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.answers import StudentEndpoint, with_student_answers
from distill.executor import Executor, LocalExecutor
from router.errors import RowError
from router.folders import new_file
from router.rows import Row, StudentAnswer, student_from_json, student_json
from router.template import Message

AT_ONCE = 64
"""Answers between two notes on disk: what a kill can cost."""


class AnswerCache:
    """A JSON Lines file per version: prompt digest and answer. A torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, StudentAnswer] = {}
        if path.exists():
            self._read()

    def get(self, row: Row) -> StudentAnswer | None:
        """The answer to a row's prompt."""
        return self._known.get(_key(row))

    def keep(self, rows: Sequence[Row]) -> None:
        """Append answers."""
        lines = []
        for row in rows:
            if row.student is not None and self._known.get(_key(row)) is None:
                self._known[_key(row)] = row.student
                lines.append(json.dumps([_key(row), student_json(row.student)]) + "\n")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.writelines(lines)

    def _read(self) -> None:
        whole = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                key, answer = json.loads(line)
                self._known[key] = student_from_json(answer, str(self._path))
                whole.append(line)
            except (ValueError, TypeError, RowError):
                continue  # cut by a kill: asked again
        with new_file(self._path) as new:
            new.write_text("".join(whole), encoding="utf-8")


def answered(
    rows: Sequence[Row],
    endpoints: Sequence[StudentEndpoint],
    cache: AnswerCache,
    beat: Callable[[], None],
    executor: Executor | None = None,
) -> list[Row]:
    """The rows with the student's answers, from the cache where they are known; the others are
    spread over the replicas. ``beat`` is called now and then.

    Raises:
        FitError: a replica refuses or cannot be reached after its retries.
    """
    bare = [replace(row, student=cache.get(row)) for row in rows]
    missing = [i for i, row in enumerate(bare) if row.student is None]
    width = AT_ONCE * len(endpoints)
    for start in range(0, len(missing), width):
        part = missing[start : start + width]
        found = _found([bare[i] for i in part], endpoints, executor or LocalExecutor())
        cache.keep(found)
        for i, row in zip(part, found, strict=True):
            bare[i] = row
        beat()
    return bare


def _found(
    rows: Sequence[Row], endpoints: Sequence[StudentEndpoint], executor: Executor
) -> list[Row]:
    to = [asdict(endpoint) for endpoint in endpoints]
    asked = [{"messages": [[m.role, m.content] for m in row.messages], "to": to} for row in rows]
    said = executor.spread(ask, asked, AT_ONCE)
    return [
        replace(row, student=student_from_json(answer, "answer"))
        for row, answer in zip(rows, said, strict=True)
    ]


def ask(asked: list[Any]) -> list[Any]:
    """Ask a version about prompts; on any machine that reaches its replicas."""
    rows = [Row(tuple(Message(*m) for m in item["messages"]), None) for item in asked]
    endpoints = [StudentEndpoint(**endpoint) for endpoint in asked[0]["to"]]
    found = asyncio.run(_spread(rows, endpoints))
    return [student_json(row.student) for row in found if row.student is not None]


async def _spread(rows: Sequence[Row], endpoints: Sequence[StudentEndpoint]) -> list[Row]:
    parts = await asyncio.gather(
        *(
            with_student_answers(rows[n :: len(endpoints)], endpoint, lambda: None)
            for n, endpoint in enumerate(endpoints)
        )
    )
    found: list[Row] = list(rows)
    for n, part in enumerate(parts):
        found[n :: len(endpoints)] = part
    return found


def _key(row: Row) -> str:
    plain = json.dumps([[m.role, m.content] for m in row.messages])
    return hashlib.sha256(plain.encode()).hexdigest()[:32]
