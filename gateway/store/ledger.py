"""The ledger of distillation: runs, their stages, and the lease that lets one run at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from gateway.errors import StoreError
from gateway.store.audits import EventKind
from gateway.store.rows import load
from gateway.store.shared import SharedTables

DAY_S = 86_400.0


class RunState(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    """Or was: whose lease has ended was killed, and can be resumed."""
    PROMOTED = "promoted"
    REFUSED = "refused"
    WAITING = "waiting"
    """A candidate is good enough; too few fresh draws to certify it on."""
    SKIPPED = "skipped"
    """There was nothing to learn from."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class StageState(StrEnum):
    """How a stage stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """One distillation of a task. ``reason`` says why it ended as it did; ``config`` is what
    decided it, ``code`` names the program."""

    id: str
    task: str
    number: int
    trigger: str
    state: RunState
    reason: str
    started_at: float
    ended_at: float | None
    config: Mapping[str, Any]
    code: str
    cancel: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run: what went in and what came out, by ids, counts and hashes."""

    run: str
    name: str
    state: StageState
    tries: int
    inputs: Mapping[str, Any] | None
    outputs: Mapping[str, Any] | None
    cost_usd: float
    started_at: float
    ended_at: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Every task's runs by how they ended, when one last came to a decision (Unix seconds), and the
    examples of the latest that split them; of the version that serves, the agreement on the test
    rows of the latest run that measured it, by (task, slice)."""

    runs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    last_success: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[tuple[str, str], int] = field(default_factory=dict)
    agreement: Mapping[tuple[str, str], float] = field(default_factory=dict)


DECIDED = (RunState.PROMOTED, RunState.REFUSED, RunState.WAITING, RunState.SKIPPED)
_NO_ROWS = frozenset({"groups", "moved"})
"""Counts of the split stage that are of something else than examples."""
_RUN = "id, task, number, trigger, state, reason, started_at, ended_at, config, code, cancel"
_STAGE = "run, name, state, tries, inputs, outputs, cost_usd, started_at, ended_at, error"
_BEGIN = f"""
INSERT INTO stages ({_STAGE}) VALUES (?, ?, 'running', 1, ?, NULL, 0, ?, NULL, NULL)
ON CONFLICT (run, name) DO UPDATE SET state = 'running', tries = stages.tries + 1,
    inputs = excluded.inputs, outputs = NULL, started_at = excluded.started_at, ended_at = NULL,
    error = NULL
"""
RECENT = 30
_OUTPUTS = f"""
SELECT r.task, s.outputs FROM runs r JOIN stages s ON s.run = r.id
WHERE s.name = ? AND s.state = 'done'
    AND r.number > (SELECT max(number) FROM runs WHERE task = r.task) - {RECENT}
ORDER BY r.number
"""
"""Of a task's latest runs: metrics are read at each scrape."""
_TOLD = {
    RunState.REFUSED: EventKind.RUN_REFUSED,
    RunState.WAITING: EventKind.RUN_WAITS,
    RunState.FAILED: EventKind.RUN_FAILED,
}


class Ledger(SharedTables):
    """The tables, over a connection of their own."""

    def lease(self, task: str, owner: str, now: float, until: float) -> bool:
        """Take or renew the task's lease: whoever has it may run, nobody else.

        Raises:
            StoreError: the store does not answer.
        """
        with self.transaction():
            row = self._db.execute(
                "SELECT owner, until FROM run_leases WHERE task = ?", (task,)
            ).fetchone()
            if row is not None and row[0] != owner and now < row[1]:
                return False
            self._db.execute(
                "INSERT INTO run_leases (task, owner, until) VALUES (?, ?, ?) "
                "ON CONFLICT (task) DO UPDATE SET owner = excluded.owner, until = excluded.until",
                (task, owner, until),
            )
        return True

    def release(self, task: str, owner: str) -> None:
        """End the lease, if it is the owner's.

        Raises:
            StoreError: the store does not answer; the lease ends by itself.
        """
        with self.transaction():
            self._db.execute("DELETE FROM run_leases WHERE task = ? AND owner = ?", (task, owner))

    def leased(self, task: str, now: float) -> str | None:
        """Who holds the lease now."""
        sql = "SELECT owner FROM run_leases WHERE task = ? AND until > ?"
        row = self._db.execute(sql, (task, now)).fetchone()
        return None if row is None else str(row[0])

    def start(
        self, task: str, trigger: str, config: Mapping[str, Any], code: str, now: float
    ) -> Run:
        """Begin a run.

        Raises:
            StoreError: it is not begun.
        """
        with self.transaction():
            sql = "SELECT coalesce(max(number), 0) + 1 FROM runs WHERE task = ?"
            number = int(self._db.execute(sql, (task,)).fetchone()[0])
            run = Run(
                f"{task}-{number}", task, number, trigger, RunState.RUNNING, "", now, None,
                config, code, False,
            )  # fmt: skip
            self._db.execute(
                f"INSERT INTO runs ({_RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (run.id, task, number, trigger, run.state.value, "", now, None,
                 orjson.dumps(dict(config)), code),
            )  # fmt: skip
        return run

    def end(
        self,
        run: Run,
        state: RunState,
        reason: str,
        now: float,
        last: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write how a run ended, once, and with it the stage that ended it (name, outputs): a kill
        between the two would leave a stage that is done and says nothing.

        Raises:
            StoreError: neither is written.
        """
        with self.transaction():
            if last is not None:
                self._end_stage(run, *last, now)
            changed = self._db.execute(
                "UPDATE runs SET state = ?, reason = ?, ended_at = ? "
                "WHERE id = ? AND state IN ('running', 'failed')",
                (state.value, reason, now, run.id),
            ).rowcount
            if changed and state in _TOLD:
                detail = orjson.dumps({"run": run.id, "reason": reason})
                self._db.execute(
                    "INSERT INTO events (at, task, kind, detail) VALUES (?, ?, ?, ?)",
                    (now, run.task, _TOLD[state].value, detail),
                )

    def reopen(self, run: Run) -> None:
        """Go on with a run that failed.

        Raises:
            StoreError: it stays as it is.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE runs SET state = 'running', reason = '', ended_at = NULL, cancel = 0 "
                "WHERE id = ? AND state IN ('running', 'failed')",
                (run.id,),
            )

    def cancel(self, run_id: str) -> bool:
        """Ask a run to stop before its next stage; False where it is over.

        Raises:
            StoreError: it was not asked.
        """
        with self.transaction():
            sql = "UPDATE runs SET cancel = 1 WHERE id = ? AND state = 'running'"
            return self._db.execute(sql, (run_id,)).rowcount > 0

    def run(self, run_id: str) -> Run | None:
        """One run."""
        row = self._db.execute(f"SELECT {_RUN} FROM runs WHERE id = ?", (run_id,)).fetchone()
        return None if row is None else _run(row)

    def runs(self, task: str, limit: int = 30) -> list[Run]:
        """The latest runs of a task, newest first."""
        sql = f"SELECT {_RUN} FROM runs WHERE task = ? ORDER BY number DESC LIMIT ?"
        return [_run(row) for row in self._db.execute(sql, (task, limit))]

    def begin_stage(self, run: Run, name: str, inputs: Mapping[str, Any], now: float) -> None:
        """A stage begins, or begins again.

        Raises:
            StoreError: it is not written, and must not begin.
        """
        with self.transaction():
            self._db.execute(_BEGIN, (run.id, name, orjson.dumps(dict(inputs)), now))

    def spend(self, run: Run, name: str, usd: float) -> None:
        """Money that a stage has spent, as it spends it: it counts whatever becomes of the stage.

        Raises:
            StoreError: it is not written.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE stages SET cost_usd = cost_usd + ? WHERE run = ? AND name = ?",
                (usd, run.id, name),
            )

    def end_stage(self, run: Run, name: str, outputs: Mapping[str, Any], now: float) -> None:
        """A stage is done.

        Raises:
            StoreError: it is not written; the stage will be done again.
        """
        with self.transaction():
            self._end_stage(run, name, outputs, now)

    def _end_stage(self, run: Run, name: str, outputs: Mapping[str, Any], now: float) -> None:
        self._db.execute(
            "UPDATE stages SET state = 'done', outputs = ?, ended_at = ? "
            "WHERE run = ? AND name = ?",
            (orjson.dumps(dict(outputs)), now, run.id, name),
        )

    def fail_stage(self, run: Run, name: str, error: str, now: float) -> None:
        """A stage went wrong.

        Raises:
            StoreError: it is not written.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE stages SET state = 'failed', error = ?, ended_at = ? "
                "WHERE run = ? AND name = ?",
                (error, now, run.id, name),
            )

    def stages(self, run_id: str) -> list[Stage]:
        """The stages of a run, in the order of their beginning."""
        sql = f"SELECT {_STAGE} FROM stages WHERE run = ? ORDER BY started_at, name"
        return [_stage(row) for row in self._db.execute(sql, (run_id,))]

    def figures(self) -> Figures:
        """What metrics tell of it.

        Raises:
            StoreError: it cannot be read.
        """
        marks = ", ".join("?" * len(DECIDED))
        with self.reading():
            runs = self._db.execute(
                "SELECT task, state, count(*) FROM runs WHERE ended_at IS NOT NULL "
                "GROUP BY task, state"
            ).fetchall()
            decided = self._db.execute(
                f"SELECT task, max(ended_at) FROM runs WHERE state IN ({marks}) GROUP BY task",
                [state.value for state in DECIDED],
            ).fetchall()
            # The last one of each task stays.
            latest = {task: load(raw) for task, raw in self._db.execute(_OUTPUTS, ("split",))}
            measured = self._db.execute(_OUTPUTS, ("evaluate",)).fetchall()
            live = dict(self._db.execute("SELECT task, live FROM deployments").fetchall())
        slices = {
            task: found
            for task, raw in measured
            if (found := load(raw).get("slices", {}).get(live.get(task)))
        }
        return Figures(
            {(task, state): count for task, state, count in runs},
            dict(decided),
            {
                (task, state): count
                for task, outputs in latest.items()
                for state, count in outputs.items()
                if isinstance(count, int) and state not in _NO_ROWS
            },
            {
                (task, name): share
                for task, found in slices.items()
                for name, share in found.items()
            },
        )

    def spent_today(self, task: str, now: float) -> float:
        """What runs of a task have cost on the day (UTC) of that time (Unix seconds), in USD."""
        sql = (
            "SELECT coalesce(sum(s.cost_usd), 0) FROM stages s JOIN runs r ON r.id = s.run "
            "WHERE r.task = ? AND s.started_at >= ?"
        )
        return float(self._db.execute(sql, (task, now - now % DAY_S)).fetchone()[0])


def open_run(ledger: Ledger, task: str) -> Run | None:
    """The task's run that is not over, if there is one."""
    found = [run for run in ledger.runs(task) if run.state is RunState.RUNNING]
    return found[0] if found else None


def run_of(ledger: Ledger, run_id: str) -> Run:
    """One run.

    Raises:
        StoreError: there is none.
    """
    run = ledger.run(run_id)
    if run is None:
        raise StoreError(f"there is no run {run_id!r}; see understudy distill status")
    return run


def _run(row: Sequence[Any]) -> Run:
    id_, task, number, trigger, state, reason, started, ended, config, code, cancel = row
    return Run(
        id_, task, number, trigger, RunState(state), reason, started, ended, load(config), code,
        bool(cancel),
    )  # fmt: skip


def _stage(row: Sequence[Any]) -> Stage:
    run, name, state, tries, inputs, outputs, cost, started, ended, error = row
    return Stage(
        run, name, StageState(state), tries, load(inputs), load(outputs), cost, started, ended,
        error,
    )  # fmt: skip
