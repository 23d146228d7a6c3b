"""The registry: student versions with their lineage, and which of them serves each task.

A version is immutable but for its state. What serves is one row per task, changed in one
transaction: there is no moment between two versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import StoreError
from gateway.store.audits import EventKind
from gateway.store.rows import load
from gateway.store.shared import SharedTables


class Kind(StrEnum):
    """What a student is made of."""

    LORA = "lora"
    """An adapter on a small language model, served by vLLM."""
    CLASSIFIER = "classifier"
    """A sentence encoder and a linear head, for tasks whose answers are a closed set."""


class VersionState(StrEnum):
    """How far a version has come."""

    PLANNED = "planned"
    """Its name is taken, for one training set; the folder may not be there yet."""
    TRAINED = "trained"
    REFUSED = "refused"
    WAITING = "waiting"
    """Passed the gate; too few fresh draws to be certified on."""
    READY = "ready"
    """Certified: may serve."""


@dataclass(frozen=True, slots=True)
class Version:
    """One student version, ``task@vN``. ``folder`` and ``router`` (its routing artefact) are
    immutable; ``facts`` are small and free of prompt text."""

    name: str
    task: str
    number: int
    kind: Kind
    parent: str | None
    run: str
    folder: Path
    sha256: str | None
    data_sha256: str
    router: Path | None
    state: VersionState
    created_at: float
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Who serves a task. ``previous`` is where a rollback leads."""

    task: str
    revision: int
    live: str | None
    canary: str | None
    canary_share: float
    previous: str | None
    at: float
    by: str
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a version will be, before its name is taken."""

    task: str
    kind: Kind
    parent: str | None
    run: str
    data_sha256: str


_COLUMNS = (
    "name, task, number, kind, parent, run, folder, sha256, data_sha256, router, state, "
    "created_at, facts"
)
_DEPLOYMENT = "task, revision, live, canary, canary_share, previous, at, by, note"
_DEPLOY = f"""
INSERT INTO deployments ({_DEPLOYMENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (task) DO UPDATE SET revision = excluded.revision, live = excluded.live,
    canary = excluded.canary, canary_share = excluded.canary_share,
    previous = excluded.previous, at = excluded.at, by = excluded.by, note = excluded.note
"""


class Registry(SharedTables):
    """The tables, over a connection of their own."""

    def plan(self, plan: Plan, folder: Path, now: float) -> Version:
        """Take the next name of the task, once per run and kind: asked again, a run gets the name
        that it has, and only for the training set that it has it for.

        Raises:
            StoreError: nothing is taken, or the run holds the name for other data.
        """
        with self.transaction():
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM students WHERE run = ? AND kind = ?",
                (plan.run, plan.kind.value),
            ).fetchone()
            if row is not None:
                held = _version(row)
                if held.data_sha256 != plan.data_sha256:
                    raise StoreError(
                        f"{held.name} was begun on training set {held.data_sha256[:12]}, not "
                        f"{plan.data_sha256[:12]}: a version has one training set"
                    )
                return held
            sql = "SELECT coalesce(max(number), 0) + 1 FROM students WHERE task = ?"
            number = int(self._db.execute(sql, (plan.task,)).fetchone()[0])
            version = Version(
                f"{plan.task}@v{number}", plan.task, number, plan.kind, plan.parent, plan.run,
                folder / f"v{number}", None, plan.data_sha256, None, VersionState.PLANNED, now, {},
            )  # fmt: skip
            self._db.execute(
                f"INSERT INTO students ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (version.name, version.task, number, version.kind.value, version.parent,
                 version.run, str(version.folder), None, version.data_sha256, None,
                 version.state.value, now, orjson.dumps({})),
            )  # fmt: skip
        return version

    def trained(self, name: str, sha256: str, facts: Mapping[str, Any]) -> None:
        """A version's folder is there.

        Raises:
            StoreError: it is not recorded.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE students SET state = ?, sha256 = ?, facts = ? "
                "WHERE name = ? AND state = 'planned'",
                (VersionState.TRAINED.value, sha256, orjson.dumps(dict(facts)), name),
            )

    def judged(self, name: str, state: VersionState, router: Path | None = None) -> None:
        """What a run decided of a version; ``router`` is its certified routing artefact.

        Raises:
            StoreError: it is not recorded.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE students SET state = ?, router = coalesce(?, router) WHERE name = ?",
                (state.value, None if router is None else str(router), name),
            )

    def version(self, name: str) -> Version | None:
        """One version."""
        sql = f"SELECT {_COLUMNS} FROM students WHERE name = ?"
        with self.reading():
            row = self._db.execute(sql, (name,)).fetchone()
        return None if row is None else _version(row)

    def versions(self, task: str) -> list[Version]:
        """Every version of a task, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM students WHERE task = ? ORDER BY number"
        with self.reading():
            return [_version(row) for row in self._db.execute(sql, (task,))]

    def certified(self, task: str, before: Version) -> int:
        """How many older versions of the task draws were spent on to certify, with or without
        success: each of them was a chance to be wrong."""
        sql = "SELECT count(*) FROM students WHERE task = ? AND router IS NOT NULL AND number < ?"
        return int(self._db.execute(sql, (task, before.number)).fetchone()[0])

    def deployment(self, task: str) -> Deployment | None:
        """Who serves the task; None before the first promotion."""
        sql = f"SELECT {_DEPLOYMENT} FROM deployments WHERE task = ?"
        with self.reading():
            row = self._db.execute(sql, (task,)).fetchone()
        return None if row is None else Deployment(*row)

    def revisions(self) -> dict[str, int]:
        """Every task's count of changes: what a gateway looks at several times a second."""
        with self.reading():
            return dict(self._db.execute("SELECT task, revision FROM deployments").fetchall())

    def promote(self, name: str, by: str, note: str, now: float, share: float = 1.0) -> Deployment:
        """Let a version serve a share of its task's traffic, or all of it.

        Raises:
            StoreError: there is no such version, or it has no certificate; nothing changed.
        """
        version = self._servable(name)
        with self.transaction():
            was = self.deployment(version.task)
            live = was.live if was else None
            if was is not None and live == name:
                return was
            if live is None or share >= 1.0:
                found = _next(was, version.task, now, by, note, live=name, previous=live)
                kind = EventKind.PROMOTED
            else:
                previous = was.previous if was else None
                found = _next(
                    was, version.task, now, by, note,
                    live=live, previous=previous, canary=name, share=share,
                )  # fmt: skip
                kind = EventKind.CANARY
            self._put(found, kind, {"student": name, "share": share, "before": live})
        return found

    def roll_back(
        self, task: str, by: str, note: str, now: float, to: str | None = None
    ) -> Deployment:
        """End a canary; without one, let the version before (or ``to``) serve again.

        Raises:
            StoreError: there is nothing to go back to; nothing changed.
        """
        if to is not None:
            self._servable(to)
        with self.transaction():
            was = self.deployment(task)
            if was is None or was.live is None:
                raise StoreError(f"{task}: no version serves, there is nothing to roll back")
            left = was.canary or was.live
            if to is None and was.canary is not None:
                found = _next(was, task, now, by, note, live=was.live, previous=was.previous)
            else:
                target = to or was.previous
                if target is None or target == was.live:
                    raise StoreError(f"{task}: there is no version before {was.live}")
                found = _next(was, task, now, by, note, live=target, previous=was.live)
            self._put(found, EventKind.ROLLED_BACK, {"from": left, "to": found.live})
        return found

    def _servable(self, name: str) -> Version:
        version = self.version(name)
        if version is None:
            raise StoreError(f"there is no student version {name!r}")
        if version.router is None or version.state is not VersionState.READY:
            raise StoreError(f"{name} is {version.state.value}: without a certificate none serves")
        return version

    def _put(self, found: Deployment, kind: EventKind, detail: Mapping[str, Any]) -> None:
        self._db.execute(
            _DEPLOY,
            (found.task, found.revision, found.live, found.canary, found.canary_share,
             found.previous, found.at, found.by, found.note),
        )  # fmt: skip
        told = {**detail, "by": found.by, "note": found.note}
        self._db.execute(
            "INSERT INTO events (at, task, kind, detail) VALUES (?, ?, ?, ?)",
            (found.at, found.task, kind.value, orjson.dumps(told)),
        )


def _next(
    was: Deployment | None, task: str, now: float, by: str, note: str, *,
    live: str, previous: str | None, canary: str | None = None, share: float = 0.0,
) -> Deployment:  # fmt: skip
    revision = 1 if was is None else was.revision + 1
    return Deployment(task, revision, live, canary, share, previous, now, by, note)


def _version(row: Sequence[Any]) -> Version:
    name, task, number, kind, parent, run, folder, sha256, data, router, state, at, facts = row
    return Version(
        name, task, number, Kind(kind), parent, run, Path(folder), sha256, data,
        None if router is None else Path(router), VersionState(state), at, load(facts),
    )  # fmt: skip
