"""The audit at work: labels from the store into the state machine, its word into the gate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.standing import Standing
from gateway.store.audits import ANY_VERSION, AuditStore, Claim, Epoch, EventKind, GateRow, LabelRow
from gateway.store.records import DrawState
from gateway.task_settings import Risk
from gateway.tasks import TaskRuntime, Tasks
from router.audit import Audit, AuditStatus
from router.drift import BLOCK, Drift, compare

POLL_S = 1.0
"""How long another replica's labels, or an operator's word, may take to reach this process."""
BATCH = 256
PACE_S = 3600.0

_EVENTS = {
    AuditStatus.CONFIRMED: EventKind.CONFIRMED,
    AuditStatus.UNPROVEN: EventKind.UNPROVEN,
    AuditStatus.REFUTED: EventKind.REFUTED,
}
_REFUTED = {
    "risk_above_budget": "the audit shows a risk above the budget",
    "sudden_change": "the audit's change detector found the risk risen above the budget",
}


@dataclass(slots=True)
class Auditor:
    """Advances the audit of every task that serves a student."""

    tasks: Tasks
    store: AuditStore
    metrics: Metrics
    wake: asyncio.Event
    offload: Offload
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Until cancelled. A store that cannot be read leaves the last word standing."""
        while True:
            self.wake.clear()
            for task in self.tasks.arms():
                await self.look(task)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.wake.wait()

    async def look(self, task: TaskRuntime) -> None:
        """Advance one task and let its gate and draw rate follow."""
        if not task.audited:
            return
        try:
            standing = await self.offload.run(self.advance, task)
        except StoreError as error:
            log("audit_stalled", task=task.name, error=str(error))
            return
        before, task.standing = task.standing, standing
        if before is not None and (before.status, before.closed) != (
            standing.status, standing.closed,
        ):  # fmt: skip
            log("audit", task=task.name, status=standing.status, closed=standing.closed)
        if task.arm == "incumbent":
            self._show(task, standing)

    def advance(self, task: TaskRuntime) -> Standing:
        """Apply every label that is there, in one transaction; how the task stands afterwards.

        Raises:
            StoreError: nothing was applied.
        """
        audit, claim, now = audit_of(task.settings.risk), claim_of(task), self.clock()
        with self.store.transaction():
            epoch = self.store.epoch(claim)
            if epoch is None:
                epoch = begin_epoch(self.store, audit, claim, now, why="new version or budget")
            before = epoch
            while rows := self.store.labels(epoch, BATCH):
                epoch, whole = _fed(audit, epoch, rows, now - task.settings.risk.audit_timeout_s)
                if not whole:
                    break
            epoch = self._noted(replace(epoch, status=audit.status(epoch.state)), before, now)
            epoch = self._compared(task, epoch, now)
            if epoch != before:
                self.store.save(epoch, now)
            return standing_of(self.store, audit, epoch, task.settings.risk, now)

    def _noted(self, epoch: Epoch, before: Epoch, now: float) -> Epoch:
        """Events of a changed status; refuted closes the gate in the same transaction."""
        if epoch.status is before.status:
            return epoch
        claim, state = epoch.claim, epoch.state
        counts = {"router": claim.router, "labels": state.labels, "errors": state.errors}
        self._event(now, claim.task, _EVENTS[epoch.status], **counts, why=state.refuted)
        if state.refuted is not None:
            why = f"{_REFUTED[state.refuted]}: {state.errors} of {state.labels} labels disagree"
            self.store.set_gate(claim.task, claim.router, GateRow(True, why, "audit", now))
            self._event(now, claim.task, EventKind.GATE_CLOSED, router=claim.router, why=why)
        return epoch

    def _compared(self, task: TaskRuntime, epoch: Epoch, now: float) -> Epoch:
        """Compare the next block of scores with the calibration rows', if it is full."""
        reference = task.judge.reference if task.judge is not None else None
        if reference is None:
            return epoch
        if epoch.drift_from > now:  # the clock went back: what comes now would count as seen
            return replace(epoch, drift_from=now)
        scores = self.store.scores(epoch, BLOCK)
        if len(scores) < BLOCK:
            return epoch
        drift = compare(reference, np.array([score for _, score in scores]))
        if drift.drifting and not epoch.drifting:
            self._event(now, task.name, EventKind.DRIFT, **_drift_json(drift))
        return replace(epoch, drift_from=scores[-1][0], drift=drift.psi, drifting=drift.drifting)

    def _event(self, now: float, task: str, kind: EventKind, **detail: object) -> None:
        self.store.add_event(now, task, kind, **detail)
        self.metrics.events.labels(task, kind.value).inc()

    def _show(self, task: TaskRuntime, standing: Standing) -> None:
        metrics, name = self.metrics, task.name
        metrics.gate_open.labels(name).set(task.closed is None)
        metrics.risk_upper.labels(name).set(standing.upper)
        metrics.risk_lower.labels(name).set(standing.lower)
        for status in AuditStatus:
            metrics.audit_state.labels(name, status.value).set(standing.status is status)
        missing = float("inf") if standing.missing is None else standing.missing
        metrics.labels_missing.labels(name).set(missing)
        metrics.suspicion.labels(name).set(standing.suspicion)
        metrics.draw_rate.labels(name).set(task.draw_rate)
        if standing.drift is not None:
            metrics.drift.labels(name).set(standing.drift)


def audit_of(risk: Risk) -> Audit:
    """The audit of a risk budget."""
    return Audit(risk.alpha, risk.delta, risk.false_alarm_labels)


def claim_of(task: TaskRuntime) -> Claim:
    """What the audit of a judged task is about."""
    assert task.judge is not None
    risk = task.settings.risk
    return Claim(task.name, task.judge.version, risk.alpha, risk.delta)


def begin_epoch(store: AuditStore, audit: Audit, claim: Claim, now: float, why: str) -> Epoch:
    """Start over with the next share of delta; draws made so far do not count. Within a
    transaction."""
    state = audit.begin(store.next_number(claim.task))
    epoch = Epoch(claim, now, store.last_draw(claim.task), state, audit.status(state), now)
    store.save(epoch, now)
    store.add_event(
        now, claim.task, EventKind.AUDIT_BEGAN, router=claim.router, number=state.number, why=why
    )
    return epoch


def open_gate(
    store: AuditStore, audit: Audit, claim: Claim, note: str, by: str, now: float
) -> None:
    """An operator's word: open the gate, and let the audit begin anew where it had refuted.

    Raises:
        StoreError: nothing was changed.
    """
    with store.transaction():
        gate = GateRow(False, note, by, now)
        store.set_gate(claim.task, ANY_VERSION, gate)
        store.set_gate(claim.task, claim.router, gate)
        epoch = store.epoch(claim)
        if epoch is not None and epoch.state.refuted is not None:
            begin_epoch(store, audit, claim, now, why=f"reopened by {by}: {note}")
        store.add_event(now, claim.task, EventKind.GATE_OPENED, by=by, note=note)


def close_gate(store: AuditStore, task: str, note: str, by: str, now: float) -> None:
    """An operator's word: close the gate of every version of a task until it is opened again.

    Raises:
        StoreError: nothing was changed.
    """
    with store.transaction():
        store.set_gate(task, ANY_VERSION, GateRow(True, note, by, now))
        store.add_event(now, task, EventKind.GATE_CLOSED, by=by, note=note)


def _fed(
    audit: Audit, epoch: Epoch, rows: Sequence[LabelRow], overdue: float
) -> tuple[Epoch, bool]:
    """Apply rows up to the first that still waits; False when one does, or the batch was small."""
    labels: list[bool] = []
    cursor, whole = epoch.cursor, len(rows) == BATCH
    for row in rows:
        waits = row.disagrees is None and row.state is DrawState.PENDING
        if row.counts and waits and row.created_at > overdue:
            whole = False
            break
        cursor = row.seq
        if not row.counts:
            continue
        if row.disagrees is not None:
            labels.append(row.disagrees)
        elif row.served:  # a missing answer counts as a disagreement
            labels.append(True)
    return replace(epoch, cursor=cursor, state=audit.feed(epoch.state, labels)), whole


def standing_of(store: AuditStore, audit: Audit, epoch: Epoch, risk: Risk, now: float) -> Standing:
    """How the version of an epoch stands, by what is in the store."""
    state, bounds, claim = epoch.state, audit.bounds(epoch.state), epoch.claim
    missing = audit.labels_missing(state)
    per_s = store.pace(claim, max(epoch.opened_at, now - PACE_S), now)
    return Standing(
        state.number,
        epoch.status,
        state.labels,
        state.errors,
        bounds.lower,
        bounds.upper,
        audit.suspicion(state),
        missing,
        audit.labels_missing(state, 0.0),
        missing / per_s if missing is not None and per_s > 0 else None,
        epoch.opened_at,
        state.refuted,
        _closed(risk, epoch, store.gate(claim.task, claim.router)),
        epoch.drift,
        epoch.drifting,
    )


def _closed(risk: Risk, epoch: Epoch, gate: GateRow | None) -> str | None:
    if gate is not None and gate.closed:
        return gate.reason if gate.by == "audit" else f"closed by {gate.by}: {gate.reason}"
    if risk.on_unproven == "close" and epoch.status is AuditStatus.UNPROVEN:
        return "the audit has not confirmed this version yet"
    return None


def _drift_json(drift: Drift) -> dict[str, float]:
    return {"psi": round(drift.psi, 4), "p_value": drift.p_value}
