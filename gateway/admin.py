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
from gateway.deployer import Deployer
from gateway.errors import GatewayError, StoreError
from gateway.readings import Readings
from gateway.store.faults import WriteError
from gateway.tasks import TaskRuntime, Tasks

T = TypeVar("T")
EVENTS = 50
"""Events of one answer."""


class GateOrder(BaseModel):
    """The body of ``POST /admin/tasks/{name}/gate``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    open: bool = Field(description="Open, or close.")
    note: str = Field(min_length=1, max_length=500, description="Why; kept with the event.")


class Promotion(BaseModel):
    """The body of ``POST /admin/tasks/{name}/promote``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    student: str = Field(min_length=1, description="A certified version, task@vN.")
    share: float = Field(1.0, gt=0, le=1, description="Share of conversations; 1 is all traffic.")
    note: str = Field(min_length=1, max_length=500, description="Why; kept with the event.")


class Rollback(BaseModel):
    """The body of ``POST /admin/tasks/{name}/rollback``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str | None = Field(None, description="A version other than the one before.")
    note: str = Field(min_length=1, max_length=500, description="Why; kept with the event.")


Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Admin:
    """What an operator may see and do; every method checks the key first."""

    tasks: Tasks
    auditor: Auditor
    key: AdminKey
    readings: Readings
    deployer: Deployer

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
        order = _read(GateOrder, body)
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

    async def promote(self, authorization: str | None, name: str, body: bytes) -> dict[str, Any]:
        """``POST /admin/tasks/{name}/promote``: in force here when this returns, in other processes
        within a second.

        Raises:
            GatewayError: ``task_not_found``, ``not_promotable``, or what is wrong with the body.
        """
        self.key.check(authorization)
        task, order = self._task(name), _read(Promotion, body)
        if order.student.partition("@")[0] != task.name:
            raise GatewayError("not_promotable", f"{order.student!r} is no version of '{name}'.")
        registry, now = self.deployer.registry, time.time()
        return await self._deployed(
            task, lambda: registry.promote(order.student, "admin", order.note, now, order.share)
        )

    async def roll_back(self, authorization: str | None, name: str, body: bytes) -> dict[str, Any]:
        """``POST /admin/tasks/{name}/rollback``: ends a canary; without one the version before
        serves again.

        Raises:
            GatewayError: ``task_not_found``, ``not_promotable``, or what is wrong with the body.
        """
        self.key.check(authorization)
        task, order = self._task(name), _read(Rollback, body)
        registry, now = self.deployer.registry, time.time()
        return await self._deployed(
            task, lambda: registry.roll_back(task.name, "admin", order.note, now, order.to)
        )

    async def _deployed(self, task: TaskRuntime, work: Callable[[], object]) -> dict[str, Any]:
        try:
            await self.auditor.offload.run(work)
        except WriteError as error:
            raise GatewayError(
                "store_unavailable", f"The store does not answer: {error}"
            ) from error
        except StoreError as error:
            raise GatewayError("not_promotable", f"{error}.") from error
        await self.deployer.look()
        return described(self._task(task.name))

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
        "canary": _canary(task),
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


def _canary(task: TaskRuntime) -> dict[str, Any] | None:
    """The version beside the one that serves, its share, and how it does."""
    arm = task.canary
    if arm is None or arm.student is None:
        return None
    return {
        "student": arm.student.settings.model,
        "share": task.canary_share,
        "calls": arm.student.calls,
        "failures": arm.student.failures,
        "audit": arm.standing.to_json() if arm.standing else None,
    }


def _read(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise GatewayError("invalid_json", "The body is not JSON.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise GatewayError(
            "invalid_value",
            f"{where}: {first['msg']}; send an object of {', '.join(kind.model_fields)}.",
            param=where,
        ) from None
