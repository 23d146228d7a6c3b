"""Read a configuration file and say what is wrong with it, in one line per mistake."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gateway.errors import ConfigError
from gateway.settings import Config
from gateway.store.place import Place
from gateway.task_settings import Task

_CREDENTIALS = re.compile(r"//[^/\s]*@")


def load_config(path: Path) -> Config:
    """Read and validate a configuration file; relative paths start at the file's folder.

    Raises:
        ConfigError: one line per mistake: file, key, reason.
    """
    data = _read_yaml(path)
    try:
        config = Config(**data)
    except ValidationError as error:
        raise ConfigError([_sentence(path, dict(e)) for e in error.errors()]) from None
    except Exception as error:  # pydantic-settings: an override that is not the JSON it should be
        raise ConfigError([f"{path}: environment override: {error}"]) from error
    return _anchored(config, path.parent)


def read_secrets(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Every secret that the file names, by variable name.

    Raises:
        ConfigError: a variable is unset or empty, or two client keys are equal.
    """
    problems = [
        f"{key}: environment variable {variable} is not set"
        for key, variable in named_secrets(config)
        if not environ.get(variable)
    ]
    secrets = {env: environ[env] for _, env in named_secrets(config) if environ.get(env)}
    values = [secrets.get(key.key_env) for key in config.keys if key.key_env]
    if len(set(values)) != len(values) and not problems:
        problems.append("keys: two keys have the same value; each principal needs its own")
    if config.admin is not None and secrets.get(config.admin.key_env) in values and not problems:
        problems.append("admin.key_env: the admin key must not be a client's key too")
    if problems:
        raise ConfigError(problems)
    return secrets


def named_secrets(config: Config) -> Iterator[tuple[str, str]]:
    """(key in the file, environment variable) of every secret."""
    for index, key in enumerate(config.keys):
        if key.key_env:
            yield f"keys[{index}].key_env", key.key_env
    if config.admin is not None:
        yield "admin.key_env", config.admin.key_env
    if config.postgres is not None:
        yield "postgres.url_env", config.postgres.url_env
    if config.telemetry is not None and config.telemetry.headers_env:
        yield "telemetry.headers_env", config.telemetry.headers_env
    for index, task in enumerate(config.tasks):
        if task.teacher.api_key_env:
            yield f"tasks[{index}].teacher.api_key_env", task.teacher.api_key_env
        for number, place in enumerate(task.teacher.fallbacks):
            if place.api_key_env:
                where = f"tasks[{index}].teacher.fallbacks[{number}].api_key_env"
                yield where, place.api_key_env


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: must be a mapping with the key 'tasks'"])
    if not all(isinstance(key, str) for key in data):
        raise ConfigError([f"{path}: every key must be a string"])
    # pydantic-settings takes keywords with an underscore as instructions to itself.
    private = [key for key in data if key.startswith("_")]
    if private:
        raise ConfigError([f"{path}: {key}: unknown key" for key in private])
    return data


def _anchored(config: Config, folder: Path) -> Config:
    tasks = [_anchored_task(task, folder) for task in config.tasks]
    store = f"sqlite:///{folder / config.store.removeprefix('sqlite:///')}"
    return config.model_copy(
        update={"tasks": tasks, "store": store, "cache": folder / config.cache}
    )


def _anchored_task(task: Task, folder: Path) -> Task:
    changed: dict[str, Any] = {}
    if task.router is not None and task.router.artefact is not None:
        artefact = folder / task.router.artefact
        changed["router"] = task.router.model_copy(update={"artefact": artefact})
    if task.probe is not None:
        changed["probe"] = task.probe.model_copy(update={"file": folder / task.probe.file})
    changed["distill"] = task.distill.model_copy(
        update={"folder": folder / task.distill.folder, "base": folder / task.distill.base}
    )
    return task.model_copy(update=changed)


def find_task(config: Config, name: str | None, judged: bool = False) -> Task:
    """The named task, or the first (that has a router, if ``judged``).

    Raises:
        ConfigError: there is none.
    """
    for task in config.tasks:
        if name in (None, task.name) and (task.router is not None or task.registered or not judged):
            return task
    wanted = f"task {name!r}" if name else "task"
    raise ConfigError([f"there is no {wanted}" + (" with a router" if judged else "")])


def store_path(config: Config) -> Path:
    """The SQLite file that ``store`` names."""
    return Path(config.store.removeprefix("sqlite:///"))


def place_of(config: Config, environ: Mapping[str, str]) -> Place:
    """Where the exchanges are.

    Raises:
        ConfigError: the variable with the Postgres URL is not set.
    """
    if config.postgres is None:
        return Place(store_path(config))
    url = environ.get(config.postgres.url_env)
    if not url:
        variable = config.postgres.url_env
        raise ConfigError([f"postgres.url_env: environment variable {variable} is not set"])
    return Place(store_path(config), url)


def _sentence(path: Path, error: Mapping[str, Any]) -> str:
    where = _dotted(error["loc"]) or "(file)"
    if error["type"] == "extra_forbidden":
        return f"{path}: {where}: unknown key{_nearest(error['loc'])}"
    if error["type"] == "missing":
        return f"{path}: {where}: is required"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {where}: {reason}{_shown(error.get('input'))}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        value = _CREDENTIALS.sub("//***@", value)
    return f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""


def _dotted(location: tuple[str | int, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _nearest(location: tuple[str | int, ...]) -> str:
    known = _keys_at(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys are {', '.join(known)}" if known else ""


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] | None = Config
    for part in location:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            model = _section(model.model_fields[part].annotation)
    return list(model.model_fields) if model else []


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for s in map(_section, get_args(annotation)) if s), None)


def environment() -> Mapping[str, str]:
    """The process environment; the only place that reads it."""
    return os.environ
