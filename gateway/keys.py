"""``understudy keys``: make a client key; only its digest goes into the configuration."""

from __future__ import annotations

import secrets

import typer

from gateway.auth import digest_hex

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def keys() -> None:
    """Make client keys."""


@app.command()
def new() -> None:
    """Print a new key, and the digest for `keys[].sha256` (256 random bits need no salt)."""
    key = f"us-{secrets.token_urlsafe(32)}"
    typer.echo(f"key     {key}")
    typer.echo(f"sha256  {digest_hex(key)}")
