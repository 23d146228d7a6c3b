"""``understudy doctor``: look at everything that a gateway needs, and say of each finding how it is
mended. It changes nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer

from gateway.config_file import environment, load_config, place_of, read_secrets, store_path
from gateway.deployed import as_deployed
from gateway.errors import ConfigError, StoreError
from gateway.settings import Config
from gateway.store.ledger import DAY_S
from gateway.store.opening import damaged, set_aside
from gateway.store.place import Place
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from gateway.store.students import Version
from gateway.task_settings import Task
from gateway.terminal import ConfigFile
from gateway.verdict import Reason
from router.artefact import load_artefact
from router.errors import RouterError

ASK_S = 10.0
SKEW_S = 30.0
FREE_BYTES = (1 << 30, 100 << 20)
"""Room on the store's disk below which is warned, and below which the next day may not fit."""
BACKLOG = 10_000
LATE_S = 30 * 3600.0
FEW = 20
NEW_TEMPLATES = 0.05
UNSUPPORTED = 0.5
"""Shares of a day's requests from which somebody should look."""

app = typer.Typer(add_completion=False)


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it stands, and what to do about it."""

    area: str
    level: Level
    says: str
    fix: str | None = None


@app.command()
def doctor(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines.")] = False,
) -> None:
    """Check configuration, keys, upstreams, replicas, store, versions and nights; ends with 1 where
    something fails."""
    found = []
    for finding in examine(config, environment(), time.time()):
        found.append(finding)
        typer.echo(json.dumps(asdict(finding)) if as_json else _line(finding))
    failed = sum(finding.level is Level.FAIL for finding in found)
    if not as_json:
        warned = sum(finding.level is Level.WARN for finding in found)
        typer.echo(f"{len(found)} looked at, {warned} to look into, {failed} to mend")
    raise typer.Exit(1 if failed else 0)


def examine(path: Path, environ: Mapping[str, str], now: float) -> Iterator[Finding]:
    """Every finding, as it is made."""
    try:
        config = load_config(path)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(
                "config", Level.FAIL, problem, "mend the file; nothing else was looked at"
            )
        return
    yield Finding("config", Level.OK, f"{path}: {len(config.tasks)} tasks")
    try:
        read_secrets(config, environ)
        yield Finding("keys", Level.OK, "every variable that the file names is set")
    except ConfigError as error:
        for problem in error.problems:
            fix = "set it where the gateway starts, and here, then run this again"
            yield Finding("keys", Level.FAIL, problem, fix)
    yield from _disk(config)
    stored = list(_stored(config, environ, now))
    yield from stored
    # Of a store that cannot be read, nothing more is asked.
    sound = all(finding.level is not Level.FAIL for finding in stored)
    found = place_of(config, environ) if sound else None
    place = found if found is not None and found.there else None
    for task in config.tasks:
        yield from _teacher(task, environ, now)
        yield from _student(task, place)
        if place is not None:
            yield from _traffic(task, place, now)
            yield from _nights(task, place, now)


def _stored(config: Config, environ: Mapping[str, str], now: float) -> Iterator[Finding]:
    try:
        yield from _store(place_of(config, environ), now)
    except (ConfigError, StoreError) as error:
        yield Finding("store", Level.FAIL, str(error), "see deploy/docs/keeping.md")


def _disk(config: Config) -> Iterator[Finding]:
    folder = store_path(config).parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    says = f"{free / (1 << 30):.1f} GiB are free beside the store"
    fix = "make room, set retention_days or outbox.max_bytes, or move the store"
    warn, fail = FREE_BYTES
    level = Level.FAIL if free < fail else Level.WARN if free < warn else Level.OK
    yield Finding("disk", level, says, None if level is Level.OK else fix)


def _store(place: Place, now: float) -> Iterator[Finding]:
    if not place.path.is_file():
        yield Finding("store", Level.OK, f"{place.path}: not there yet; the gateway makes it")
    elif damaged(place.path):
        fix = "the gateway moves it aside at its next start; see deploy/docs/keeping.md"
        yield Finding("store", Level.FAIL, f"{place.path} is damaged", fix)
    else:
        with contextlib.closing(SqliteStore.read_only(place.path)) as store:
            count, size = store.backlog(), place.path.stat().st_size
            oldest = store.oldest_rows(1) if place.shared else []
        yield Finding("store", Level.OK, f"{place.path}: {count} exchanges, {size >> 20} MiB")
        if oldest and now - oldest[0].created_at > 600:
            age = (now - oldest[0].created_at) / 60
            fix = "understudy db status; the gateway's log says not_shipped and why"
            yield Finding(
                "outbox", Level.FAIL if count > BACKLOG else Level.WARN,
                f"its oldest of {count} exchanges has waited {age:.0f} minutes for Postgres", fix,
            )  # fmt: skip
    for old in set_aside(place.path):
        fix = f"sqlite3 {old} .recover | sqlite3 saved.db; then move it away"
        yield Finding("store", Level.WARN, f"{old} was set aside, damaged", fix)
    if place.shared:
        with contextlib.closing(place.reader()) as shared:
            yield Finding("postgres", Level.OK, f"{shared.count(Filter())} exchanges")


def _teacher(task: Task, environ: Mapping[str, str], now: float) -> Iterator[Finding]:
    for place in (task.teacher, *task.teacher.fallbacks):
        variable = place.api_key_env
        key = environ.get(variable, "") if variable else ""
        area = f"{task.name}/teacher"
        try:
            with httpx.Client(timeout=ASK_S) as client:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                answer = client.get(f"{place.base_url.rstrip('/')}/models", headers=headers)
        except httpx.HTTPError as error:
            says = f"{place.base_url} cannot be asked: {error or type(error).__name__}"
            yield Finding(area, Level.FAIL, says, "check base_url, the network and any proxy")
            continue
        if answer.status_code in (401, 403):
            fix = f"put a valid key into {variable}" if variable else "name a key: api_key_env"
            says = f"{place.base_url} refuses the key ({answer.status_code})"
            yield Finding(area, Level.FAIL, says, fix)
        elif answer.status_code >= 500:
            says = f"{place.base_url} answers {answer.status_code}"
            yield Finding(area, Level.WARN, says, "wait, or add teacher.fallbacks")
        else:
            yield Finding(area, Level.OK, f"{place.base_url} answers")
        yield from _clock(answer, now)


def _clock(answer: httpx.Response, now: float) -> Iterator[Finding]:
    """Budgets end at midnight (UTC), and certificates are read off times."""
    with contextlib.suppress(ValueError, TypeError):
        skew = now - parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        if abs(skew) > SKEW_S:
            says = f"this clock is {skew:+.0f} s off that of {answer.url.host}"
            yield Finding("clock", Level.WARN, says, "let chrony or systemd-timesyncd set it")


def _student(task: Task, place: Place | None) -> Iterator[Finding]:
    if task.student is None:
        yield Finding(f"{task.name}/student", Level.OK, "none: the teacher answers everything")
        return
    version: Version | None = None
    if task.registered:
        if place is None:
            return
        with contextlib.closing(place.registry()) as registry:
            row = registry.deployment(task.name)
            version = registry.version(row.live) if row is not None and row.live else None
        if version is None:
            says = "no version serves yet"
            yield Finding(f"{task.name}/student", Level.OK, says, "understudy distill run")
            return
        yield from _version(task, version)
        with contextlib.suppress(ConfigError):
            task = as_deployed(task, version)
    assert task.student is not None
    name = version.name if version is not None else task.student.served_model
    for url in task.student.base_urls:
        yield _replica(task.name, url, name, version)


def _version(task: Task, version: Version) -> Iterator[Finding]:
    area = f"{task.name}/version"
    fix = "share distill.folder with this machine, or roll back: understudy students rollback"
    if not (version.folder / "manifest.json").is_file():
        yield Finding(area, Level.FAIL, f"{version.name}: {version.folder} is not here", fix)
        return
    try:
        if version.router is not None:
            load_artefact(version.router)
    except RouterError as error:
        yield Finding(area, Level.FAIL, f"{version.name}: {error}", fix)
        return
    yield Finding(area, Level.OK, f"{version.name} serves, judged by {version.router}")


def _replica(task: str, url: str, name: str, version: Version | None) -> Finding:
    area = f"{task}/replica"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=ASK_S)
        answer.raise_for_status()
        listed = {str(model["id"]) for model in answer.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        says = f"{url} gives no list of models: {error or type(error).__name__}"
        return Finding(area, Level.WARN, says, "start it; the teacher answers meanwhile")
    if name in listed:
        return Finding(area, Level.OK, f"{url} has {name}")
    if version is None:
        fix = f"load {name} into it, or start it with the adapter"
    else:
        fix = (
            "a running gateway loads it within seconds; if not, its log says replica_not_loaded: "
            f"{version.folder} must lie there under the same path, and vLLM needs "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )
    return Finding(area, Level.FAIL, f"{url} does not list {name}", fix)


def _traffic(task: Task, place: Place, now: float) -> Iterator[Finding]:
    """The last day's prompts whose fixed part is new: an application that changed its template."""
    area = f"{task.name}/templates"
    with contextlib.closing(place.reader()) as store:
        today = Filter(task=task.name, since=now - DAY_S)
        asked = store.count(today)
        new = store.count(replace(today, reason=Reason.NEW_TEMPLATE.value))
        foreign = store.count(replace(today, reason=Reason.UNSUPPORTED_FEATURE.value))
    if asked < FEW:
        return
    says = f"{new} of {asked} requests in a day have a template that the student never saw"
    fix = f"understudy captures list --task {task.name} --reason new_template; the night learns it"
    many = new > NEW_TEMPLATES * asked
    yield Finding(area, Level.WARN if many else Level.OK, says, fix if many else None)
    yield from _features(task, foreign, asked)


def _features(task: Task, foreign: int, asked: int) -> Iterator[Finding]:
    """What the student is never asked: mostly sampling that clients leave at its default."""
    if foreign <= UNSUPPORTED * asked:
        return
    says = f"{foreign} of {asked} requests in a day ask for what the student does not do"
    fix = "x-understudy-explain: 1 says of each answer what it was"
    if not task.pin_sampling:
        fix += "; a temperature other than 0, or none: `pin_sampling: true`"
    yield Finding(f"{task.name}/features", Level.WARN, says, fix)


def _nights(task: Task, place: Place, now: float) -> Iterator[Finding]:
    if not task.registered:
        return
    area = f"{task.name}/nights"
    with contextlib.closing(place.ledger()) as ledger:
        runs, last = ledger.runs(task.name, 1), ledger.figures().last_success.get(task.name)
    if not runs:
        yield Finding(area, Level.OK, "no distillation run yet", "understudy distill run")
        return
    says = f"the latest run, {runs[0].id}, is {runs[0].state.value}: {runs[0].reason}".rstrip(": ")
    late = last is None or now - last > LATE_S
    fix = f"understudy distill status --task {task.name}; is understudy distill watch alive?"
    yield Finding(area, Level.WARN if late else Level.OK, says, fix if late else None)


def _line(finding: Finding) -> str:
    line = f"{finding.level.value:4}  {finding.area:24}  {finding.says}"
    if finding.fix is None:
        return line
    return f"{line}\n{'':32}  -> {finding.fix}"
