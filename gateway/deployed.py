"""A task's settings with the student version that the registry names for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gateway.config_file import environment, find_task, place_of
from gateway.errors import ConfigError, StoreError
from gateway.settings import Config
from gateway.store.place import Place
from gateway.store.students import Kind, Version
from gateway.task_settings import Router, Task


def as_deployed(task: Task, version: Version) -> Task:
    """What the file would say if it named the version: its model name, replicas and artefact.

    Raises:
        ConfigError: the task has no replicas for students of this kind, or the version no
            certified artefact.
    """
    student = task.student
    assert student is not None
    classifier = version.kind is Kind.CLASSIFIER
    urls = student.classifier_urls if classifier else student.base_urls
    if not urls:
        key = "classifier_urls" if classifier else "base_urls"
        raise ConfigError([f"student.{key}: {version.name} needs a replica to be served from"])
    if version.router is None:
        raise ConfigError([f"{version.name} has no routing artefact"])
    price = student.classifier_price_per_hour if classifier else student.price_per_hour
    named = student.model_copy(
        update={"model": version.name, "base_urls": urls, "price_per_hour": price}
    )
    router = (task.router or Router()).model_copy(update={"artefact": version.router})
    return task.model_copy(update={"student": named, "router": router})


def serving_task(config: Config, name: str | None) -> tuple[Task, Path]:
    """The named task (or the first) as it serves now, and the artefact that judges it.

    Raises:
        ConfigError: there is no such task, or nothing judges it.
        StoreError: the registry cannot be read.
    """
    task = find_task(config, name, judged=name is None)
    if task.registered:
        place = place_of(config, environment())
        if not place.there:
            raise StoreError(f"{place.path}: no such store; has the gateway run with this file?")
        task = deployed_task(task, place)
    artefact = task.router.artefact if task.router is not None else None
    if artefact is None:
        raise ConfigError([f"task {task.name!r} has no router"])
    return task, artefact


def deployed_task(task: Task, place: Place) -> Task:
    """The task as it serves now; as the file says it where the registry has no word on it.

    Raises:
        StoreError: the registry cannot be read.
        ConfigError: see ``as_deployed``.
    """
    if not task.registered:
        return task
    with contextlib.closing(place.registry()) as registry:
        deployment = registry.deployment(task.name)
        live = deployment.live if deployment else None
        version = registry.version(live) if live else None
    return task if version is None else as_deployed(task, version)
