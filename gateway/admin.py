"""``/admin``: how tasks stand, what happened to them, and an operator's word on their gates."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.auditor import Auditor, audit_of, claim_of, close_gate, open_gate
from gateway.auth import AdminKey
from gateway.errors import GatewayError, StoreError
from gateway.readings import Readings
from gateway.tasks import TaskRuntime, Tasks

T = TypeVar("T")
EVENTS = 50
"""Events of one answer."""


class GateOrder(BaseModel):
    """The body of ``POST /admin/tasks/{name}/gate``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    open: bool = Field(description="Open, or close.")
    note: str = Field(min_length=1, max_length=500, description="Why; kept with the event.")


@dataclass(frozen=True, slots=True)
class Admin:
    """What an operator may see and do; every method checks the key first."""

    tasks: Tasks
    auditor: Auditor
    key: AdminKey
    readings: Readings

    def list(self, authorization: str | None) -> dict[str, Any]:
        """``GET /admin/tasks``."""
        self.key.check(authorization)
        return {"object": "list", "data": [described(task) for task in self.tasks]}

    def show(self, authorization: str | None, name: str) -> dict[str, Any]:
        """``GET /admin/tasks/{name}``.

        Raises:
            GatewayError: ``task_not_found``.
        """
        self.key.check(authorization)
        return described(self._task(name))

    async def events(self, authorization: str | None, name: str) -> dict[str, Any]:
        """``GET /admin/tasks/{name}/events``: the latest, newest first.

        Raises:
            GatewayError: ``task_not_found`` or ``store_unavailable``.
        """
        self.key.check(authorization)
        task = self._task(name)
        events = await self._stored(lambda: self.auditor.store.events(task.name, EVENTS))
        data = [
            {"seq": e.seq, "at": e.at, "kind": e.kind.value, "detail": dict(e.detail)}
            for e in events
        ]
        return {"object": "list", "data": data}

    async def exchange(self, authorization: str | None, name: str) -> dict[str, Any]:
        """``GET /admin/exchanges/{id}``; that somebody looked is recorded first.

        Raises:
            GatewayError: ``exchange_not_found`` or ``store_unavailable``.
        """
        self.key.check(authorization)
        found = await self._stored_async(self.readings.exchange(name, "admin key"))
        if found is None:
            raise GatewayError("exchange_not_found", f"No exchange '{name}' is kept.")
        return found

    async def gate(self, authorization: str | None, name: str, body: bytes) -> dict[str, Any]:
        """``POST /admin/tasks/{name}/gate``: in force here when this returns, on other replicas
        within a second or two.

        Raises:
            GatewayError: ``task_not_found``, ``gate_not_possible``, ``store_unavailable``, or what
                is wrong with the body.
        """
        self.key.check(authorization)
        task = self._task(name)
        order = _order(body)
        if not task.audited:
            why = task.uncertified or "it has no student"
            raise GatewayError(
                "gate_not_possible",
                f"The gate of '{name}' stays closed for want of a promise: {why}.",
            )
        now = time.time()
        store = self.auditor.store
        if order.open:
            audit, claim = audit_of(task.settings.risk), claim_of(task)
            await self._stored(lambda: open_gate(store, audit, claim, order.note, "operator", now))
        else:
            await self._stored(lambda: close_gate(store, task.name, order.note, "operator", now))
        await self.auditor.look(task)
        return described(task)

    async def _stored(self, work: Callable[[], T]) -> T:
        return await self._stored_async(self.auditor.offload.run(work))

    async def _stored_async(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except StoreError as error:
            message = f"The store does not answer: {error}"
            raise GatewayError("store_unavailable", message) from error

    def _task(self, name: str) -> TaskRuntime:
        task = self.tasks.get(name)
        if task is None:
            raise GatewayError("task_not_found", f"There is no task '{name}'.")
        return task


def described(task: TaskRuntime) -> dict[str, Any]:
    """One task as ``/admin/tasks`` shows it."""
    judge, student, settings = task.judge, task.settings.student, task.settings
    return {
        "name": task.name,
        "teacher": settings.teacher.model,
        "student": student.model if student else None,
        "router": judge.version if judge else None,
        "budget": {
            "alpha": settings.risk.alpha,
            "delta": settings.risk.delta,
            "comparator": settings.risk.comparator,
        },
        "gate": {"open": task.audited and task.closed is None, "reason": task.closed},
        "draw_rate": task.draw_rate,
        "threshold": judge.threshold if judge else None,
        "certificate": judge.certificate.to_json() if judge else None,
        "artefact": dict(judge.facts) if judge else None,
        "teacher_noise": task.noise.to_json() if task.noise else None,
        "audit": task.standing.to_json() if task.standing else None,
    }


def _order(body: bytes) -> GateOrder:
    try:
        return GateOrder.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise GatewayError("invalid_json", "The body is not JSON.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise GatewayError(
            "invalid_value",
            f'{where}: {first["msg"]}; send {{"open": true or false, "note": "why"}}.',
            param=where,
        ) from None
