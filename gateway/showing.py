"""Exchanges as people see them in a terminal."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.table import Table

from gateway.store.records import Exchange
from gateway.store.training import messages_of
from gateway.streams.whole import answer_text


def summary_of(row: Exchange) -> dict[str, Any]:
    """An exchange as one line of JSON."""
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
        "prompt": prompt_of(row),
        "answer": answer_text(row.answer or {}),
    }


def line_of(row: Exchange) -> str:
    """An exchange as one line of text."""
    when = time.strftime("%H:%M:%S", time.localtime(row.created_at))
    answer = answer_text(row.answer or {})[:40]
    return (
        f"{when} {row.id[:16]} {row.served_by:7} {row.reason:16} {prompt_of(row)[:60]!r} {answer!r}"
    )


def table_of(rows: list[Exchange]) -> Table:
    """Exchanges as a table."""
    table = Table(box=None)
    for name in ("id", "time", "task", "served by", "reason", "score", "prompt", "answer"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        when = time.strftime("%H:%M:%S", time.localtime(row.created_at))
        score = "" if row.score is None else f"{row.score:.3f}"
        table.add_row(
            row.id[:16], when, row.task, row.served_by, row.reason, score, prompt_of(row)[:40],
            answer_text(row.answer or {})[:24],
        )  # fmt: skip
    return table


def prompt_of(row: Exchange) -> str:
    """What was asked last."""
    messages = messages_of(row) or [{"content": ""}]
    content = messages[-1].get("content")
    return content if isinstance(content, str) else json.dumps(content)
