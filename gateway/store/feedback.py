"""What clients and reviewers say of answers, beside the exchanges that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.store.repository import Repository
from gateway.store.rows import load
from gateway.store.shared import SharedTables

OPERATOR = "operator"
"""The principal under which ``understudy review`` writes; no client key may have this name."""


class FeedbackState(StrEnum):
    """What feedback may do."""

    NOTED = "noted"
    """A rating alone: it is counted and reviewed, and changes no label."""
    SUGGESTED = "suggested"
    """A correction from a key that may not correct: it waits for a reviewer."""
    ACCEPTED = "accepted"
    """A correction that is the label from now on."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Feedback:
    """One principal's word on one exchange; the latest replaces what was said before."""

    exchange_id: str
    principal: str
    task: str
    rating: str | None
    correction: str | None
    comment: str | None
    state: FeedbackState
    at: float

    def says_the_same(self, other: Feedback) -> bool:
        """Whether it repeats the other."""
        mine, theirs = (
            (f.exchange_id, f.principal, f.rating, f.correction, f.comment) for f in (self, other)
        )
        return mine == theirs


@dataclass(frozen=True, slots=True)
class Candidate:
    """An exchange whose label might help, with what makes it so."""

    exchange_id: str
    created_at: float
    reason: str
    score: float | None
    threshold: float | None
    disagrees: bool | None
    suggested: bool
    rated_down: bool


_COLUMNS = "exchange_id, principal, task, rating, correction, comment, state, at"
_PUT = f"""
INSERT INTO feedback ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (exchange_id, principal) DO UPDATE SET rating = excluded.rating,
    correction = excluded.correction, comment = excluded.comment, state = excluded.state,
    at = excluded.at
"""
_CANDIDATES = """
SELECT e.id, e.created_at, e.reason, e.score, e.threshold, max(d.agrees),
    max(CASE WHEN f.state = 'suggested' THEN 1 ELSE 0 END),
    max(CASE WHEN f.rating = 'down' THEN 1 ELSE 0 END)
FROM exchanges e
LEFT JOIN draws d ON d.exchange_id = e.id
LEFT JOIN feedback f ON f.exchange_id = e.id
WHERE e.task = ? AND e.created_at >= ? AND e.status = 'complete' AND e.bodies = 1
    AND NOT EXISTS (SELECT 1 FROM feedback o WHERE o.exchange_id = e.id
        AND (o.principal = ? OR o.state = 'accepted'))
    AND (f.state = 'suggested' OR f.rating = 'down' OR d.agrees = 0 OR e.score IS NOT NULL
        OR e.reason IN ('new_template', 'ood'))
GROUP BY e.id, e.created_at, e.reason, e.score, e.threshold
"""


class FeedbackStore(SharedTables):
    """Feedback, over a connection of its own."""

    def task_of(self, exchange_id: str, principal: str) -> tuple[str, Any] | None:
        """Task and request of an exchange, if it is this principal's."""
        row = self._db.execute(
            "SELECT task, request FROM exchanges WHERE id = ? AND principal = ?",
            (exchange_id, principal),
        ).fetchone()
        return None if row is None else (row[0], load(row[1]))

    def put(self, feedback: Feedback) -> None:
        """Keep what was said, in place of what this principal said before. Within a transaction."""
        f = feedback
        correction = None if f.correction is None else f.correction.encode()
        self._db.execute(
            _PUT,
            (f.exchange_id, f.principal, f.task, f.rating, correction, f.comment, f.state.value,
             f.at),
        )  # fmt: skip

    def given(self, exchange_id: str, principal: str) -> Feedback | None:
        """What a principal said of an exchange."""
        found = self._read("exchange_id = ? AND principal = ?", (exchange_id, principal))
        return found[0] if found else None

    def of(self, exchange_id: str) -> list[Feedback]:
        """Everything that was said of an exchange."""
        return self._read("exchange_id = ?", (exchange_id,))

    def count_since(self, principal: str, since: float) -> int:
        """How many exchanges a principal spoke of since then (Unix seconds)."""
        sql = "SELECT count(*) FROM feedback WHERE principal = ? AND at >= ?"
        return int(self._db.execute(sql, (principal, since)).fetchone()[0])

    def settle(self, exchange_id: str, state: FeedbackState) -> int:
        """Accept or reject what was suggested of an exchange; how many suggestions there were.
        Within a transaction."""
        sql = "UPDATE feedback SET state = ? WHERE exchange_id = ? AND state = 'suggested'"
        return self._db.execute(sql, (state.value, exchange_id)).rowcount

    def candidates(self, task: str, since: float) -> list[Candidate]:
        """Exchanges that a reviewer has not spoken of and whose label might help."""
        return [
            Candidate(
                id_, at, reason, score, threshold, None if agrees is None else not agrees,
                bool(suggested), bool(down),
            )
            for id_, at, reason, score, threshold, agrees, suggested, down in self._db.execute(
                _CANDIDATES, (task, since, OPERATOR)
            )
        ]  # fmt: skip

    def _read(self, where: str, values: Sequence[Any]) -> list[Feedback]:
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM feedback WHERE {where} ORDER BY at", values
        )
        return [_feedback(row) for row in rows]


def corrections(store: Repository, ids: Sequence[str]) -> dict[str, str]:
    """The accepted corrections of exchanges: an operator's before a client's, then the latest."""
    rows = store.connection.execute(
        "SELECT exchange_id, correction FROM feedback WHERE state = 'accepted' "
        f"AND correction IS NOT NULL AND exchange_id IN ({', '.join('?' * len(ids))}) "
        "ORDER BY CASE WHEN principal = ? THEN 1 ELSE 0 END, at",
        (*ids, OPERATOR),
    )
    return {id_: _text(correction) for id_, correction in rows}


def _feedback(row: Sequence[Any]) -> Feedback:
    id_, principal, task, rating, correction, comment, state, at = row
    text = None if correction is None else _text(correction)
    return Feedback(id_, principal, task, rating, text, comment, FeedbackState(state), at)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
