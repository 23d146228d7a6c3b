"""One task as a run sees it: settings, store, replicas, folders."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.answers import StudentEndpoint
from gateway.config_file import environment, find_task, load_config, place_of
from gateway.errors import ConfigError
from gateway.settings import Config
from gateway.store.place import Place
from gateway.store.students import Kind, Version
from gateway.task_settings import Task
from router.encoder import Encoders, load_encoders
from router.redact import rules_json


@dataclass(frozen=True, slots=True)
class Job:
    """What decides a run, and where it works. ``teacher_key`` is a secret."""

    task: Task
    place: Place
    cache: Path
    teacher_key: str | None = field(default=None, repr=False)
    say: Callable[[str], None] = print
    config_file: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the task's versions, runs and reports lie."""
        return self.task.distill.folder / self.task.name

    def urls(self, kind: Kind) -> list[str]:
        """Replicas for students of a kind."""
        student = self.task.student
        assert student is not None
        return list(student.classifier_urls if kind is Kind.CLASSIFIER else student.base_urls)

    def price_per_hour(self, kind: Kind) -> float:
        """USD that all replicas of a kind cost in an hour, busy or idle."""
        student = self.task.student
        assert student is not None
        classifier = kind is Kind.CLASSIFIER
        return student.classifier_price_per_hour if classifier else student.price_per_hour

    def endpoints(self, version: Version, urls: list[str]) -> list[StudentEndpoint]:
        """Where a version is asked."""
        tokens = self.task.distill.max_tokens
        return [StudentEndpoint(url, version.name, tokens) for url in urls]

    def encoders(self) -> Encoders:
        """The local encoders.

        Raises:
            EncoderError: a package is missing.
        """
        return _encoders(self.cache)

    def config(self) -> dict[str, Any]:
        """What of the settings decides a run, as the ledger keeps it."""
        task, risk = self.task, self.task.risk
        settings = task.distill.model_dump(
            mode="json", exclude={"folder", "base", "python", "executor", "ray_address"}
        )
        return {
            **settings,
            "teacher": task.teacher.model,
            "alpha": risk.alpha,
            "delta": risk.delta,
            "comparator": risk.comparator,
            "redact": rules_json(_rules(task)),
        }


@functools.cache
def _encoders(cache: Path) -> Encoders:
    """Once in a process: every stage of a run asks for them."""
    return load_encoders(cache)


def load_job(path: Path, name: str | None, say: Callable[[str], None], to_run: bool = True) -> Job:
    """The named task of a configuration file (or its first that the registry serves).

    Raises:
        ConfigError: there is none, or, ``to_run``, it cannot be distilled as the file stands;
            each reason names its key.
    """
    config = load_config(path)
    task = find_task(config, name)
    if name is None:
        task = next((t for t in config.tasks if t.registered), task)
    return _job(path, config, task, say, to_run)


def load_jobs(path: Path, say: Callable[[str], None]) -> list[Job]:
    """Every task that the registry serves.

    Raises:
        ConfigError: there is none, or one cannot be distilled as the file stands.
    """
    config = load_config(path)
    tasks = [task for task in config.tasks if task.registered]
    if not tasks:
        raise ConfigError([f"{path}: no task leaves student.model to the registry"])
    return [_job(path, config, task, say, True) for task in tasks]


def _job(path: Path, config: Config, task: Task, say: Callable[[str], None], to_run: bool) -> Job:
    problems = problems_of(task) if to_run else []
    if problems:
        raise ConfigError([f"{path}: task {task.name!r}: {problem}" for problem in problems])
    variable = task.teacher.api_key_env
    key = environment().get(variable) if variable else None
    if variable and not key and to_run:
        raise ConfigError(
            [f"{path}: teacher.api_key_env: environment variable {variable} is not set"]
        )
    return Job(task, place_of(config, environment()), config.cache, key, say, path)


def problems_of(task: Task) -> list[str]:
    """Why a task cannot be distilled; empty where it can."""
    problems = []
    if task.teacher.terms == "no_distillation":
        problems.append(
            "teacher.terms: no_distillation: its terms forbid training on its answers; nothing is "
            "distilled from it"
        )
    if not task.registered:
        problems.append(
            "student.model: must be left out (and student.base_urls or classifier_urls given): "
            "the registry of students says which version serves"
        )
        return problems
    assert task.student is not None
    for kind in task.distill.students:
        urls = task.student.classifier_urls if kind == "classifier" else task.student.base_urls
        key = "classifier_urls" if kind == "classifier" else "base_urls"
        if not urls:
            problems.append(f"student.{key}: distill.students names {kind}, which needs a replica")
    return problems


def _rules(task: Task) -> Any:
    from gateway.task_settings import redaction_rules

    return redaction_rules(task.redact)


def code_version() -> str:
    """The release, and a digest of the code that decides: what a ledger entry names."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent
    for package in (root, root.parent / "router"):
        for path in sorted(package.glob("*.py")):
            digest.update(path.read_bytes())
    return f"{version('understudy')}+{digest.hexdigest()[:12]}"
