"""Exchanges as rows, the same in every database."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

import orjson

from gateway.store.records import Attempt, Draw, Exchange

COLUMNS = (
    "id", "created_at", "task", "principal", "model", "stream", "status", "served_by", "reason",
    "would_be_reason", "score", "threshold", "ood_score", "template", "student", "router", "arm",
    "error", "request", "answer", "prefix", "draw_p", "overhead_ms", "total_ms",
    "api", "end_user", "bodies", "no_train",
)  # fmt: skip
ATTEMPT_COLUMNS = tuple(f.name for f in dataclasses.fields(Attempt))
_attempt_parts = attrgetter(*ATTEMPT_COLUMNS)
DRAW_COLUMNS = ("exchange_id", "task", "p", "wants", "state", "tries", "updated_at")


def exchange_values(e: Exchange) -> tuple[Any, ...]:
    """In the order of ``COLUMNS``; written out, since this runs once per answer."""
    return (
        e.id, e.created_at, e.task, e.principal, e.model, int(e.stream), e.status.value,
        e.served_by, e.reason, e.would_be_reason, e.score, e.threshold, e.ood_score, e.template,
        e.student, e.router, e.arm, e.error, dump(e.request), dump(e.answer), dump(e.prefix),
        e.draw_p, e.overhead_ms, e.total_ms, e.api.value, e.end_user, int(e.bodies),
        int(e.no_train),
    )  # fmt: skip


def attempt_values(exchange_id: str, seq: int, attempt: Attempt) -> tuple[Any, ...]:
    """Exchange id, number and ``ATTEMPT_COLUMNS``."""
    return exchange_id, seq, *_attempt_parts(attempt)


def draw_values(e: Exchange, draw: Draw) -> tuple[Any, ...]:
    """In the order of ``DRAW_COLUMNS``."""
    return e.id, e.task, draw.p, draw.wants, draw.state.value, draw.tries, e.created_at


def dump(value: Any) -> bytes | None:
    """A value as stored JSON."""
    return None if value is None else orjson.dumps(value)


def load(value: bytes | str | None) -> Any:
    """Stored JSON as a value."""
    return None if value is None else orjson.loads(value)
