"""Which tasks there are: to clients (``/v1/models``) and to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.tasks import TaskRuntime


def models(tasks: Iterable[TaskRuntime], principal: Principal) -> dict[str, Any]:
    """``GET /v1/models``: what a key may ask for."""
    return {"object": "list", "data": [_model(name) for name in _names(tasks, principal)]}


def model(tasks: Iterable[TaskRuntime], principal: Principal, name: str) -> dict[str, Any]:
    """``GET /v1/models/{id}``.

    Raises:
        GatewayError: ``model_not_found``.
    """
    if name.removesuffix(":teacher").removesuffix(":student") not in _names(tasks, principal):
        raise GatewayError("model_not_found", f"The model '{name}' does not exist.")
    return _model(name)


def announce(tasks: Iterable[TaskRuntime], metrics: Metrics) -> None:
    """Open the series of tasks that are in service; say which gates are shut."""
    for task in tasks:
        metrics.open_series(task.name)
        if task.judge is not None and task.student is not None:
            metrics.threshold.labels(task.name).set(task.judge.threshold or 0.0)
            metrics.coverage.labels(task.name).set(task.judge.certificate.coverage)
            metrics.alpha.labels(task.name).set(task.settings.risk.alpha)
            metrics.gate_open.labels(task.name).set(task.closed is None)
            metrics.draw_rate.labels(task.name).set(task.draw_rate)
            name = task.student.settings.served_model
            metrics.student_info.labels(task.name, name, task.judge.version).set(1)
        metrics.canary_share.labels(task.name).set(task.canary_share if task.canary else 0.0)
        if task.closed:
            log("gate_closed", task=task.name, why=task.closed)


def forget_gone(
    before: Iterable[TaskRuntime], after: Sequence[TaskRuntime], metrics: Metrics
) -> None:
    """A version that is no longer in service must not go on as one in the metrics."""
    staying = {(t.name, t.judge.version) for t in after if t.judge is not None}
    for task in before:
        if task.judge is None or task.student is None:
            continue
        if (task.name, task.judge.version) not in staying:
            metrics.forget_student(
                task.name, task.student.settings.served_model, task.judge.version
            )


def _names(tasks: Iterable[TaskRuntime], principal: Principal) -> list[str]:
    """Tasks, then the model names that they claim."""
    mine = [task for task in tasks if principal.may_use(task.name)]
    claims = (task.settings.match.models for task in mine if task.settings.match)
    return [*(task.name for task in mine), *(name for models in claims for name in models)]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "understudy"}
