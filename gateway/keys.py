"""``understudy keys``: make a client key (only its digest goes into the configuration), and keep a
key's owner out through the store. Running gateways follow within two seconds."""

from __future__ import annotations

import contextlib
import getpass
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gateway.auth import digest_hex
from gateway.config_file import environment, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.store.access import AccessStore
from gateway.terminal import ConfigFile, fail

app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="`keys[].name` of the configuration.")]


@app.callback()
def keys() -> None:
    """Make client keys, and revoke them."""


@app.command()
def new() -> None:
    """Print a new key, and the digest for `keys[].sha256` (256 random bits need no salt)."""
    key = f"us-{secrets.token_urlsafe(32)}"
    typer.echo(f"key     {key}")
    typer.echo(f"sha256  {digest_hex(key)}")


@app.command()
def revoke(
    config: ConfigFile,
    name: Name,
    note: Annotated[str, typer.Option(help="Why; kept beside it.")],
) -> None:
    """Refuse every key of this name from now on; answers under way end."""
    with _access(config, name) as store:
        store.revoke(name, note, getpass.getuser(), time.time())
    typer.echo(f"revoked {name}; running gateways follow within two seconds")


@app.command()
def restore(config: ConfigFile, name: Name) -> None:
    """Let a revoked name in again."""
    with _access(config, name) as store:
        if not store.restore(name):
            fail(f"{name} is not revoked")
    typer.echo(f"restored {name}; running gateways follow within two seconds")


@contextlib.contextmanager
def _access(path: Path, name: str) -> Iterator[AccessStore]:
    try:
        config = load_config(path)
        if name not in {key.name for key in config.keys}:
            known = ", ".join(key.name for key in config.keys) or "none"
            fail(f"{path}: there is no key {name!r}; there are: {known}")
        store = place_of(config, environment()).access()
        with contextlib.closing(store):
            yield store
    except (ConfigError, StoreError) as error:
        fail(str(error))
