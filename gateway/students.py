"""``understudy students``: versions, who serves, promotion and rollback, through the store.
Running gateways follow within a second."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.config_file import environment, find_task, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.store.students import Deployment, Registry, Version
from gateway.terminal import ConfigFile, fail

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Student versions: show, promote, roll back."
)

TaskName = Annotated[str | None, typer.Option("--task", help="Task; the first by default.")]
Name = Annotated[str, typer.Argument(help="Version, task@vN.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("list")
def list_(config: ConfigFile, task: TaskName = None, as_json: Json = False) -> None:
    """Every version of a task, and which of them serves."""
    with _registry(config, task) as (registry, name):
        versions, row = registry.versions(name), registry.deployment(name)
    if as_json:
        deployment = asdict(row) if row is not None else None
        typer.echo(json.dumps({"deployment": deployment, "versions": list(map(_plain, versions))}))
        return
    if not versions:
        typer.echo(f"{name}: no version yet; understudy distill run makes one")
    for version in versions:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created_at))
        role = _role(version, row)
        typer.echo(
            f"{at}  {version.name}  {version.kind.value}  {version.state.value}  "
            f"{_numbers(version)}{role}".rstrip()
        )


@app.command()
def show(config: ConfigFile, version: Name, as_json: Json = False) -> None:
    """One version with its lineage."""
    with _registry(config, version.partition("@")[0]) as (registry, _):
        found = _found(registry, version)
        lineage = _lineage(registry, found)
    if as_json:
        typer.echo(json.dumps({**_plain(found), "lineage": lineage}))
        return
    for key, value in _plain(found).items():
        typer.echo(f"{key:12} {json.dumps(value) if isinstance(value, dict) else value}")
    typer.echo(f"{'lineage':12} {' <- '.join([found.name, *lineage])}")


@app.command()
def diff(config: ConfigFile, one: Name, other: Name) -> None:
    """In what two versions differ: kind, data, settings, metrics, certificate."""
    with _registry(config, one.partition("@")[0]) as (registry, _):
        first, second = (_described(_found(registry, name)) for name in (one, other))
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            typer.echo(f"{key:28} {_short(first.get(key))}  ->  {_short(second.get(key))}")


@app.command()
def promote(
    config: ConfigFile,
    version: Name,
    note: Annotated[str, typer.Option(help="Why; kept with the event.")],
    share: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of conversations; 1 is all traffic.")
    ] = 1.0,
) -> None:
    """Let a certified version serve all of the traffic, or a share of it."""
    with _registry(config, version.partition("@")[0]) as (registry, _):
        row = registry.promote(version, getpass.getuser(), note, time.time(), share)
    typer.echo(_deployed(row))


@app.command()
def rollback(
    config: ConfigFile,
    note: Annotated[str, typer.Option(help="Why; kept with the event.")],
    task: TaskName = None,
    to: Annotated[str | None, typer.Option(help="A version other than the one before.")] = None,
) -> None:
    """End a canary, or let the version before serve again. In force within a second."""
    with _registry(config, task) as (registry, name):
        row = registry.roll_back(name, getpass.getuser(), note, time.time(), to)
    typer.echo(_deployed(row))


@contextlib.contextmanager
def _registry(path: Path, name: str | None) -> Iterator[tuple[Registry, str]]:
    try:
        config = load_config(path)
        task = find_task(config, name)
        if name is None:
            task = next((t for t in config.tasks if t.registered), task)
        place = place_of(config, environment())
        if not place.shared and not place.path.is_file():
            fail(f"{place.path}: no such store; has the gateway run with this file?")
        with contextlib.closing(place.registry()) as registry:
            yield registry, task.name
    except (ConfigError, StoreError) as error:
        fail(f"{path}: {error}")


def _found(registry: Registry, name: str) -> Version:
    version = registry.version(name)
    if version is None:
        raise StoreError(f"there is no student version {name!r}")
    return version


def _lineage(registry: Registry, version: Version) -> list[str]:
    names: list[str] = []
    parent = version.parent
    while parent is not None and parent not in names:
        names.append(parent)
        found = registry.version(parent)
        parent = found.parent if found is not None else None
    return names


def _plain(version: Version) -> dict[str, Any]:
    return {
        **asdict(version),
        "folder": str(version.folder),
        "router": None if version.router is None else str(version.router),
        "facts": dict(version.facts),
    }


def _described(version: Version) -> dict[str, Any]:
    """A version's facts and its artefact's, flat."""
    manifest = _json(version.folder / "manifest.json")
    artefact = _json(version.router / "manifest.json") if version.router is not None else {}
    plain = _plain(version)
    facts = plain.pop("facts")
    return _flat({**plain, "facts": facts, "settings": manifest.get("settings", {}),
                  "labels": manifest.get("labels"), "splits": artefact.get("splits", {}),
                  "certificate": artefact.get("certificate", {})})  # fmt: skip


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _role(version: Version, row: Deployment | None) -> str:
    if row is None:
        return ""
    if version.name == row.live:
        return "  serves"
    if version.name == row.canary:
        return f"  canary, {row.canary_share:.0%}"
    return "  previous" if version.name == row.previous else ""


def _numbers(version: Version) -> str:
    metrics = version.facts.get("metrics", {})
    agreement = metrics.get("dev_agreement")
    return f"{version.facts.get('rows', 0)} rows" + (
        f", dev agreement {agreement:.1%}" if agreement else ""
    )


def _deployed(row: Deployment) -> str:
    canary = f", {row.canary} on {row.canary_share:.0%}" if row.canary else ""
    return f"{row.task}: {row.live} serves{canary}; before it {row.previous or 'none'}"
