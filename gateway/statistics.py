"""Counts over the store, by task."""

from __future__ import annotations

from typing import Any

from gateway.store.repository import Repository

_BY_REASON = """
SELECT task, served_by, reason, count(*), count(*) FILTER (WHERE status = 'complete'), sum(bodies)
FROM exchanges WHERE {where} GROUP BY task, served_by, reason ORDER BY task, count(*) DESC
"""
_SPENT = """
SELECT task, sum(prompt_tokens), sum(completion_tokens), sum(cost_usd)
FROM attempts JOIN exchanges ON exchanges.id = exchange_id WHERE {where} GROUP BY task
"""
_DRAWS = """
SELECT exchanges.task, count(*), count(*) FILTER (WHERE state = 'pending'),
    count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE agrees = 1),
    count(*) FILTER (WHERE agrees = 0)
FROM draws JOIN exchanges ON exchanges.id = exchange_id WHERE {where} GROUP BY exchanges.task
"""
_FEEDBACK = """
SELECT exchanges.task, count(*) FILTER (WHERE rating = 'up'),
    count(*) FILTER (WHERE rating = 'down'), count(correction),
    count(*) FILTER (WHERE state = 'suggested')
FROM feedback JOIN exchanges ON exchanges.id = exchange_id WHERE {where} GROUP BY exchanges.task
"""
_PARTS = (
    (_SPENT, ("prompt_tokens", "completion_tokens", "cost_usd")),
    (_DRAWS, ("draws", "draws_pending", "draws_failed", "draws_agree", "draws_disagree")),
    (_FEEDBACK, ("rated_up", "rated_down", "corrections", "suggestions_open")),
)


def statistics(
    store: Repository, task: str | None, since: float | None
) -> dict[str, dict[str, Any]]:
    """Numbers by task: requests by side and reason, whole and with bodies; tokens and USD of all
    calls; draws and how they compare; feedback. ``since`` is Unix seconds."""
    where, values = "exchanges.created_at >= ?", list[Any]([since or 0.0])
    if task is not None:
        where, values = f"{where} AND exchanges.task = ?", [*values, task]
    found: dict[str, dict[str, Any]] = {}
    with store.snapshot():
        for name, side, reason, count, complete, bodies in store.connection.execute(
            _BY_REASON.format(where=where), values
        ):
            numbers = found.setdefault(
                name, {"requests": 0, "complete": 0, "without_bodies": 0, "by_reason": []}
            )
            numbers["requests"] += count
            numbers["complete"] += complete
            numbers["without_bodies"] += count - bodies
            numbers["by_reason"].append({"served_by": side, "reason": reason, "requests": count})
        for sql, names in _PARTS:
            for numbers in found.values():
                numbers.update(dict.fromkeys(names, 0))
            for name, *counts in store.connection.execute(sql.format(where=where), values):
                found[name].update({n: _number(c) for n, c in zip(names, counts, strict=True)})
    return found


def _number(value: Any) -> int | float:
    """Postgres sums counts to decimals."""
    return value if isinstance(value, float) else int(value or 0)
