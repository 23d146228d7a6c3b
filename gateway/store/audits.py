"""The audit's memory in the store: epochs, gates, events, and labels in the order of drawing.

Every replica advances the same rows; one transaction reads labels, feeds them and writes the
epoch, so that each label counts once whoever applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from gateway.store.records import DrawState
from gateway.store.rows import load
from gateway.store.shared import SharedTables
from router.audit import AuditState, AuditStatus

ANY_VERSION = ""
"""Stands for every version in ``gates``: what an operator closed stays closed over promotions."""


class EventKind(StrEnum):
    """What ops may want to know of, in the store and in ``understudy_events_total``."""

    AUDIT_BEGAN = "audit_began"
    CONFIRMED = "confirmed"
    UNPROVEN = "unproven"
    REFUTED = "refuted"
    GATE_CLOSED = "gate_closed"
    GATE_OPENED = "gate_opened"
    DRIFT = "drift"
    TEACHER_CHANGED = "teacher_changed"
    BUDGET_UNDER_NOISE = "budget_under_noise"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    RUN_REFUSED = "run_refused"
    RUN_WAITS = "run_waits"
    RUN_FAILED = "run_failed"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an epoch is about: one version under one promise."""

    task: str
    router: str
    alpha: float
    delta: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of ``audits``. ``cursor`` is the last draw that was applied; ``drift_from`` the time
    up to which scores were compared, ``drift`` the last comparison's result."""

    claim: Claim
    opened_at: float
    cursor: int
    state: AuditState
    status: AuditStatus
    drift_from: float
    drift: float | None = None
    drifting: bool = False


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A draw. It ``counts`` where the audited version's student served it, or would have served it
    under a closed gate.

    ``disagrees`` is None while (or because) there is no second answer. ``served`` is False under
    a closed gate: there a missing student answer would not have been served either.
    """

    seq: int
    counts: bool
    served: bool
    created_at: float
    state: DrawState
    disagrees: bool | None


@dataclass(frozen=True, slots=True)
class GateRow:
    """Who opened or closed a gate, when and why."""

    closed: bool
    reason: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task; ``detail`` is small and free of prompt text."""

    seq: int
    at: float
    task: str
    kind: EventKind
    detail: Mapping[str, Any]


_COUNTS = """
(e.served_by = 'student' AND e.reason = 'in_distribution')
OR (e.reason = 'gate_closed' AND (d.score < e.threshold OR d.state = 'pending'))
"""
_LABELS = f"""
SELECT d.seq, e.router = ? AND ({_COUNTS}), e.served_by = 'student', e.created_at, d.state, d.agrees
FROM draws d JOIN exchanges e ON e.id = d.exchange_id
WHERE d.task = ? AND d.seq > ? ORDER BY d.seq LIMIT ?
"""
_PACE = f"""
SELECT count(*), min(e.created_at) FROM draws d JOIN exchanges e ON e.id = d.exchange_id
WHERE d.task = ? AND d.seq > ? AND e.router = ? AND e.created_at >= ? AND ({_COUNTS})
"""
PACE_DRAWS = 2000
"""The pace of labels is that of the last so many draws: the look must stay cheap."""
_SAVED = (
    "router", "alpha", "delta", "opened_at", "cursor", "labels", "errors", "detector", "refuted",
    "status", "drift_from", "drift", "drifting", "updated_at",
)  # fmt: skip
_SAVE = f"""
INSERT INTO audits (task, number, {", ".join(_SAVED)})
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (task, number) DO UPDATE SET {", ".join(f"{n} = excluded.{n}" for n in _SAVED)}
"""
_EPOCH = """
SELECT number, opened_at, cursor, labels, errors, detector, refuted, status, drift_from, drift,
    drifting
FROM audits WHERE task = ? AND router = ? AND alpha = ? AND delta = ? ORDER BY number DESC LIMIT 1
"""


class AuditStore(SharedTables):
    """The audit's tables, over a connection of their own."""

    def epoch(self, claim: Claim) -> Epoch | None:
        """The latest epoch of a claim."""
        row = self._db.execute(
            _EPOCH, (claim.task, claim.router, claim.alpha, claim.delta)
        ).fetchone()
        if row is None:
            return None
        number, opened_at, cursor, labels, errors, detector, refuted, status, *drift = row
        values = (float("-inf") if v is None else v for v in load(detector))
        state = AuditState(number, labels, errors, tuple(values), refuted)
        since, value, drifting = drift
        return Epoch(
            claim, opened_at, cursor, state, AuditStatus(status), since, value, bool(drifting)
        )

    def next_number(self, task: str) -> int:
        """The number of the task's next epoch, from 1: delta is spent over it."""
        sql = "SELECT coalesce(max(number), 0) + 1 FROM audits WHERE task = ?"
        return int(self._db.execute(sql, (task,)).fetchone()[0])

    def last_draw(self, task: str) -> int:
        """Sequence number of the task's latest draw; 0 before the first."""
        sql = "SELECT coalesce(max(seq), 0) FROM draws WHERE task = ?"
        return int(self._db.execute(sql, (task,)).fetchone()[0])

    def save(self, epoch: Epoch, now: float) -> None:
        """Write an epoch."""
        claim, state = epoch.claim, epoch.state
        # JSON has no infinity: orjson writes null.
        detector = orjson.dumps(state.detector)
        self._db.execute(
            _SAVE,
            (claim.task, state.number, claim.router, claim.alpha, claim.delta, epoch.opened_at,
             epoch.cursor, state.labels, state.errors, detector, state.refuted,
             epoch.status.value, epoch.drift_from, epoch.drift, int(epoch.drifting), now),
        )  # fmt: skip

    def labels(self, epoch: Epoch, limit: int) -> list[LabelRow]:
        """The draws after the epoch's cursor, in the order of drawing."""
        values = (epoch.claim.router, epoch.claim.task, epoch.cursor, limit)
        return [
            LabelRow(
                seq, bool(counts), bool(served), at, DrawState(state),
                None if agrees is None else not agrees,
            )
            for seq, counts, served, at, state, agrees in self._db.execute(_LABELS, values)
        ]  # fmt: skip

    def pace(self, claim: Claim, since: float, now: float) -> float:
        """Labels per second of late, and not before ``since`` (Unix seconds)."""
        last = self.last_draw(claim.task) - PACE_DRAWS
        count, first = self._db.execute(_PACE, (claim.task, last, claim.router, since)).fetchone()
        return count / max(now - first, 1.0) if count else 0.0

    def scores(self, epoch: Epoch, limit: int) -> list[tuple[float, float]]:
        """(time, P(out)) of judged exchanges after ``drift_from``, oldest first."""
        sql = (
            "SELECT created_at, ood_score FROM exchanges WHERE task = ? AND created_at > ? AND "
            "router = ? AND ood_score IS NOT NULL AND reason <> 'override' "
            "ORDER BY created_at LIMIT ?"
        )
        claim = epoch.claim
        rows = self._db.execute(sql, (claim.task, epoch.drift_from, claim.router, limit))
        return [(at, score) for at, score in rows]

    def gate(self, task: str, router: str) -> GateRow | None:
        """Whether and why the gate of a version is closed; an operator's closing of the whole
        task comes before the version's own row."""
        row = self._db.execute(
            "SELECT closed, reason, by, at FROM gates WHERE task = ? AND router IN (?, ?) "
            "ORDER BY closed DESC, router LIMIT 1",
            (task, ANY_VERSION, router),
        ).fetchone()
        return None if row is None else GateRow(bool(row[0]), *row[1:])

    def set_gate(self, task: str, router: str, row: GateRow) -> None:
        """Open or close the gate of one version, or of ``ANY_VERSION``."""
        self._db.execute(
            "INSERT INTO gates (task, router, closed, reason, by, at) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (task, router) DO UPDATE SET closed = excluded.closed, "
            "reason = excluded.reason, by = excluded.by, at = excluded.at",
            (task, router, int(row.closed), row.reason, row.by, row.at),
        )

    def add_event(self, at: float, task: str, kind: EventKind, **detail: Any) -> None:
        """Record that something happened."""
        self._db.execute(
            "INSERT INTO events (at, task, kind, detail) VALUES (?, ?, ?, ?)",
            (at, task, kind.value, orjson.dumps(detail)),
        )

    def events(self, task: str, limit: int = 50, after: int = 0) -> list[Event]:
        """The latest events of a task, newest first."""
        rows = self._db.execute(
            "SELECT seq, at, task, kind, detail FROM events WHERE task = ? AND seq > ? "
            "ORDER BY seq DESC LIMIT ?",
            (task, after, limit),
        )
        return [
            Event(seq, at, name, EventKind(kind), load(detail))
            for seq, at, name, kind, detail in rows
        ]
