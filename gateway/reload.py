"""A changed configuration, taken over while serving: nothing stops, and what is wrong changes
nothing.

What runs on keeps what it learned: an upstream whose settings are the same keeps its breaker, its
quota and its calls in flight; an unchanged artefact keeps its judge and its audit's standing.
Requests under way end on the tasks that they began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.build import build_tasks
from gateway.errors import ConfigError
from gateway.settings import Config
from gateway.tasks import TaskRuntime

FIXED = ("listen", "store", "postgres", "outbox", "cache", "telemetry")
"""Sections that a process cannot change while it runs."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A configuration that was read again and can be used; ``fixed`` names what needs a restart."""

    config: Config
    secrets: Mapping[str, str]
    tasks: list[TaskRuntime]
    fixed: list[str]


Source = Callable[[], tuple[Config, Mapping[str, str]]]
"""Reads configuration and secrets."""


async def read_again(source: Source, running: Config, tasks: Iterable[TaskRuntime]) -> Fresh:
    """Read the configuration, and build its tasks without touching those that run.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        wanted, secrets = await asyncio.to_thread(source)
    except OSError as error:
        raise ConfigError([str(error)]) from error
    config, fixed = kept(running, wanted)
    encoders = next((t.judge.encoders for t in tasks if t.judge is not None), None)
    try:
        built = await asyncio.to_thread(build_tasks, config, secrets, encoders)
    except OSError as error:
        raise ConfigError([str(error)]) from error
    return Fresh(config, secrets, built, fixed)


def kept(running: Config, wanted: Config) -> tuple[Config, list[str]]:
    """The wanted configuration with what needs a restart left as it is, and the names of that."""
    changed = [name for name in FIXED if getattr(running, name) != getattr(wanted, name)]
    return wanted.model_copy(update={name: getattr(running, name) for name in FIXED}), changed


def take_over(old: TaskRuntime | None, new: TaskRuntime) -> None:
    """Give a rebuilt task what its predecessor knows and still holds for it."""
    if old is None:
        return
    if _same_teacher(old, new):
        new.teacher = old.teacher
    if new.student is not None and old.settings.student == new.settings.student:
        new.student = old.student or new.student
    new.noise = old.noise
    if old.judge is None or new.judge is None or old.judge.version != new.judge.version:
        return
    new.judge = old.judge
    asked, had = new.settings.router, old.settings.router
    if asked is not None and had is not None and asked.remember != had.remember:
        new.judge.remember(asked.remember)
    if old.settings.risk == new.settings.risk and old.uncertified == new.uncertified:
        new.standing = old.standing


def _same_teacher(old: TaskRuntime, new: TaskRuntime) -> bool:
    return old.settings.teacher == new.settings.teacher and _keys(old) == _keys(new)


def _keys(task: TaskRuntime) -> Sequence[str | None]:
    return [place.upstream.api_key for place in task.teacher.upstreams]
