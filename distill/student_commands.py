"""``understudy student``: train one student version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from router.errors import RouterError
from router.rows import read_rows

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train and serve students.")


@app.callback()
def _group() -> None:
    """Train and serve students."""


@app.command()
def train(
    name: Annotated[str, typer.Option(help="Immutable version name, task@vN.")],
    data: Annotated[Path, typer.Option(help="Teacher pairs (JSON Lines).")],
    base: Annotated[Path, typer.Option(help="Base model folder; made if it is missing.")],
    out: Annotated[Path, typer.Option(help="New adapter folder.")],
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data.")] = 3.0,
    rank: Annotated[int, typer.Option(min=1, max=256, help="LoRA rank.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 20261124,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
) -> None:
    """Train a LoRA adapter on teacher pairs (TRL and PEFT), with a progress bar."""
    from distill.base_model import BaseModelMissing, ensure_base_model
    from distill.train import TrainingRefused, TrainSettings, train_student

    settings = TrainSettings(
        rank=rank, alpha=2 * rank, epochs=epochs, learning_rate=learning_rate, seed=seed
    )
    try:
        rows = read_rows(data, system)[:limit]
        manifest = train_student(name, rows, ensure_base_model(base), out, settings)
    except (RouterError, TrainingRefused, BaseModelMissing) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps({"student": str(out), "name": name, **manifest["metrics"]}))


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind.")] = 8011,
    cache: Annotated[
        Path,
        typer.Option(envvar="UNDERSTUDY_CACHE", help="Folder for the encoder, built once."),
    ] = Path(".cache/encoders"),
) -> None:
    """Serve classifier students behind OpenAI's wire format; gateways load versions into it."""
    import uvicorn

    from distill.classifier_server import create_classifier_app
    from router.encoder import load_encoders

    try:
        encoders = load_encoders(cache)
    except RouterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    uvicorn.run(create_classifier_app(encoders), host=host, port=port, log_level="warning")
