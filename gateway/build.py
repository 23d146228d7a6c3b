"""Bind each configured task to its judge and upstreams, or say why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.errors import ConfigError
from gateway.judging import Judge as AnyJudge
from gateway.judging import gate_closed
from gateway.retry_budget import RetryBudget
from gateway.scrub import Scrubber
from gateway.settings import Config
from gateway.slots import Slots
from gateway.task_settings import Task, redaction_rules
from gateway.tasks import StudentRuntime, TaskRuntime, TeacherRuntime, TeacherUpstream
from gateway.upstream import Upstream
from router.encoder import Encoders, load_encoders
from router.errors import RouterError
from router.judge import Judge
from router.noise import MIN_PROMPTS
from router.redact import Redactor, rules_json
from router.rows import Row, read_rows


def build_tasks(
    config: Config, secrets: Mapping[str, str], encoders: Encoders | None = None
) -> list[TaskRuntime]:
    """Every task, its artefact loaded and checked.

    Raises:
        ConfigError: one line per artefact that cannot be used with this configuration.
    """
    problems: list[str] = []
    tasks = []
    for index, settings in enumerate(config.tasks):
        judge = None
        if settings.router is not None and settings.router.artefact is not None:
            try:
                encoders = encoders or load_encoders(config.cache)
                judge = load_judge(settings, encoders)
            except (RouterError, ConfigError) as error:
                problems.append(f"tasks[{index}].router.artefact: {error}")
                continue
        runtime = bound(settings, judge, secrets)
        if settings.probe is not None:
            try:
                runtime.probe = _probe(settings.probe.file)
            except (RouterError, ConfigError) as error:
                problems.append(f"tasks[{index}].probe.file: {error}")
        tasks.append(runtime)
    if problems:
        raise ConfigError(problems)
    return tasks


def load_judge(settings: Task, encoders: Encoders) -> Judge:
    """The task's artefact, checked.

    Raises:
        RouterError: it cannot be loaded.
        ConfigError: it is not for this configuration.
    """
    assert settings.router is not None
    assert settings.router.artefact is not None
    judge = Judge.load(settings.router.artefact, encoders)
    judge.remember(settings.router.remember)
    _check_judge(settings, judge)
    return judge


def _probe(path: Path) -> list[Row]:
    rows = read_rows(path)
    if len(rows) < MIN_PROMPTS:
        raise ConfigError([f"{path}: {len(rows)} prompts; a probe set needs {MIN_PROMPTS}"])
    return rows


def _check_judge(settings: Task, judge: Judge) -> None:
    assert settings.router is not None
    if judge.task != settings.name:
        raise ConfigError([f"fitted for task {judge.task!r}, not {settings.name!r}"])
    if settings.router.gate_tokens not in (None, judge.gate_tokens):
        raise ConfigError(
            [f"fitted over {judge.gate_tokens} gate tokens, not {settings.router.gate_tokens}"]
        )
    mine = Redactor(redaction_rules(settings.redact))
    if mine.digest != judge.redactor.digest:
        raise ConfigError(
            [f"fitted on text redacted by {rules_json(judge.redactor.rules)}, not by "
             f"{rules_json(mine.rules)}"]
        )  # fmt: skip
    hold = settings.router.hold
    if hold != "all" and hold < judge.gate_tokens:
        raise ConfigError([f"hold {hold} is less than the {judge.gate_tokens} gate tokens"])
    if settings.student and judge.student not in (None, settings.student.model):
        raise ConfigError(
            [f"calibrated on student {judge.student!r}, not {settings.student.model!r}"]
        )


def bound(settings: Task, judge: AnyJudge | None, secrets: Mapping[str, str]) -> TaskRuntime:
    """A task with its judge and upstreams."""
    student = None
    uncertified = None
    if settings.student is not None and judge is not None:
        replicas = [
            Upstream(f"{settings.name}/student{number}", url, None)
            for number, url in enumerate(settings.student.base_urls)
        ]
        student = StudentRuntime(settings.student, replicas)
        risk = settings.risk
        uncertified = gate_closed(judge, risk.alpha, risk.delta, risk.comparator)
    teacher = _teacher(settings, secrets)
    scrubber = Scrubber(settings, list(secrets.values()))
    return TaskRuntime(settings.name, settings, teacher, student, judge, uncertified, scrubber)


def _teacher(settings: Task, secrets: Mapping[str, str]) -> TeacherRuntime:
    teacher = settings.teacher
    upstreams = []
    for number, place in enumerate((teacher, *teacher.fallbacks)):
        name = f"{settings.name}/teacher{number or ''}"
        key = secrets.get(place.api_key_env) if place.api_key_env else None
        upstream = Upstream(name, place.base_url, key)
        upstreams.append(TeacherUpstream(upstream, place.model, place.price))
    budget, slots = RetryBudget(teacher.retry_budget), Slots(teacher.max_in_flight)
    return TeacherRuntime(teacher, upstreams, budget, slots)
