"""``understudy db``: the Postgres schema, and what waits to be shipped."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import typer

from gateway.config_file import environment, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.store.migrating import upgrade as run_steps
from gateway.store.place import Place
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from gateway.terminal import ConfigFile, fail

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The Postgres schema and the outbox."
)


@app.command()
def upgrade(config: ConfigFile) -> None:
    """Bring the Postgres schema up to date; gateways may go on meanwhile."""
    place = _place(config)
    if place.postgres is None:
        fail("there is no `postgres` in this configuration")
    try:
        typer.echo(f"at revision {run_steps(place.postgres)}")
    except StoreError as error:
        fail(str(error))


@app.command()
def status(config: ConfigFile) -> None:
    """Say what is in the outbox and in Postgres, as one JSON object."""
    place = _place(config)
    found: dict[str, object] = {"outbox": None, "postgres": None}
    try:
        if place.path.is_file():
            with contextlib.closing(SqliteStore.read_only(place.path)) as outbox:
                found["outbox"] = outbox.count(Filter())
        if place.shared:
            with contextlib.closing(place.reader()) as store:
                found["postgres"] = store.count(Filter())
    except StoreError as error:
        found["problem"] = str(error)
    typer.echo(json.dumps(found))
    if "problem" in found:
        raise typer.Exit(1)


def _place(config: Path) -> Place:
    try:
        return place_of(load_config(config), environment())
    except ConfigError as error:
        fail(str(error))
