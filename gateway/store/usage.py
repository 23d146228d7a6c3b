"""What became of a task's requests over spans of time: counts and sums, no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.store.records import DrawState
from gateway.store.shared import SharedTables

SAMPLE = 5_000
"""A median is of so many answers at most."""
_SPAN = "e.task = ? AND e.created_at >= ? AND e.created_at < ?"
_REQUESTS = f"SELECT e.served_by, e.reason, count(*) FROM exchanges e WHERE {_SPAN} GROUP BY 1, 2"
_CALLS = f"""
SELECT e.served_by, a.role, a.outcome, sum(a.prompt_tokens), sum(a.completion_tokens),
    sum(a.cost_usd)
FROM attempts a JOIN exchanges e ON e.id = a.exchange_id WHERE {_SPAN} GROUP BY 1, 2, 3
"""
_DRAWS = f"""
SELECT d.state, d.agrees, count(*) FROM draws d JOIN exchanges e ON e.id = d.exchange_id
WHERE {_SPAN} AND e.served_by = 'student' AND e.reason = 'in_distribution' GROUP BY 1, 2
"""
_TOOK = f"""
SELECT e.total_ms FROM exchanges e
WHERE {_SPAN} AND e.served_by = ? AND e.status = 'complete' AND e.total_ms > 0
LIMIT {SAMPLE}
"""
_FEEDBACK = "SELECT state, count(*) FROM feedback WHERE task = ? AND at >= ? AND at < ? GROUP BY 1"


@dataclass(frozen=True, slots=True)
class Use:
    """One span. ``avoided_tokens`` are prompt and completion tokens of answers that the student
    served; ``labels`` of them were compared with the teacher's, ``disagreements`` is how many
    differed or could not be compared."""

    requests: Mapping[tuple[str, str], int]
    teacher_usd: float
    avoided_tokens: tuple[int, int]
    labels: int
    disagreements: int

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    @property
    def by_student(self) -> int:
        """Those that the student served."""
        return sum(n for (by, _), n in self.requests.items() if by == "student")

    @property
    def agreement(self) -> float | None:
        """Share of the compared answers that agreed; None without any."""
        return 1 - self.disagreements / self.labels if self.labels else None


class Usage(SharedTables):
    """Reads it; times are Unix seconds, the end is not in the span.

    Raises:
        StoreError: of every method, where the store cannot be read.
    """

    def of(self, task: str, since: float, until: float) -> Use:
        """A span's counts."""
        span = (task, since, until)
        with self.reading():
            requests = {(by, why): int(n) for by, why, n in self._db.execute(_REQUESTS, span)}
            calls = list(self._db.execute(_CALLS, span))
            draws = list(self._db.execute(_DRAWS, span))
        served = [c for c in calls if (c[0], c[1], c[2]) == ("student", "student", "ok")]
        labels = [(agrees, n) for state, agrees, n in draws if state != DrawState.PENDING.value]
        return Use(
            requests,
            float(sum(usd for *_, usd in calls)),
            (sum(int(c[3]) for c in served), sum(int(c[4]) for c in served)),
            sum(n for _, n in labels),
            sum(n for agrees, n in labels if not agrees),
        )

    def median_ms(self, task: str, served_by: str, since: float, until: float) -> float | None:
        """From request to commit, of one side's answers; those that were asked for by a command
        have no client who waited."""
        with self.reading():
            rows = self._db.execute(_TOOK, (task, since, until, served_by))
            took = sorted(row[0] for row in rows)
        return float(took[len(took) // 2]) if took else None

    def feedback(self, task: str, since: float, until: float) -> dict[str, int]:
        """What people said, by what became of it."""
        with self.reading():
            return {s: int(n) for s, n in self._db.execute(_FEEDBACK, (task, since, until))}
