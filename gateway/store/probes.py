"""Runs of the teacher's probe set in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.store.audits import AuditStore
from gateway.store.rows import load
from gateway.store.shared import SharedTables


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """The teacher's answers to a probe set at one time, by the prompt's digest."""

    at: float
    teacher: str
    answers: Mapping[str, str]


def runs(store: AuditStore, task: str, probe: str) -> list[ProbeRun]:
    """The runs of one probe set that matter: the first two, and the latest. Oldest first."""
    found = store.connection.execute(
        "SELECT at, teacher, answers FROM probes WHERE task = ? AND probe = ? ORDER BY at",
        (task, probe),
    ).fetchall()
    kept = found[:2] + found[2:][-1:]
    return [ProbeRun(at, teacher, load(answers)) for at, teacher, answers in kept]


def claim(store: AuditStore, task: str, now: float, lease_s: float) -> bool:
    """Whether this process may run the probe set now: one replica at a time. The lease ends by
    ``release``, or by itself should the process die. Within a transaction."""
    row = store.connection.execute(
        "SELECT until FROM probe_leases WHERE task = ?", (task,)
    ).fetchone()
    if row is not None and now < row[0]:
        return False
    store.connection.execute(
        "INSERT INTO probe_leases (task, until) VALUES (?, ?) "
        "ON CONFLICT (task) DO UPDATE SET until = excluded.until",
        (task, now + lease_s),
    )
    return True


def release(store: AuditStore, task: str) -> None:
    """End the lease; within a transaction."""
    store.connection.execute("DELETE FROM probe_leases WHERE task = ?", (task,))


def keep(store: AuditStore, task: str, probe: str, run: ProbeRun) -> None:
    """Write a run; within a transaction."""
    store.connection.execute(
        "INSERT INTO probes (task, probe, at, teacher, answers) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (task, probe, at) DO UPDATE SET teacher = excluded.teacher, "
        "answers = excluded.answers",
        (task, probe, run.at, run.teacher, orjson.dumps(run.answers)),
    )


def all_runs(tables: SharedTables, task: str) -> list[ProbeRun]:
    """Every run of the probe set that the task has now (the one asked last), oldest first."""
    last = "SELECT probe FROM probes WHERE task = ? ORDER BY at DESC LIMIT 1"
    found = tables.connection.execute(
        f"SELECT at, teacher, answers FROM probes WHERE task = ? AND probe = ({last}) ORDER BY at",
        (task, task),
    ).fetchall()
    return [ProbeRun(at, teacher, load(answers)) for at, teacher, answers in found]
