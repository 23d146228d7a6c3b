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
    dev: Annotated[
        Path | None, typer.Option(help="Pairs that say which epoch is the best one.")
    ] = None,
    comparator: Annotated[
        str, typer.Option(help="When two answers agree, on dev pairs.")
    ] = "label",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer on dev pairs.")] = 64,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Try further learning rates within this time, by dev pairs."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Checkpoints, from which a killed training goes on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
) -> None:
    """Train a LoRA adapter on teacher pairs (TRL and PEFT), with a progress bar."""
    from distill.base_model import BaseModelMissing, ensure_base_model
    from distill.train import Effort, TrainingRefused, TrainSettings, train_student

    settings = TrainSettings(
        rank=rank, alpha=2 * rank, epochs=epochs, learning_rate=learning_rate, seed=seed,
        max_tokens=max_tokens, comparator=comparator,
    )  # fmt: skip
    try:
        rows = read_rows(data, system)[:limit]
        shown = read_rows(dev, system) if dev is not None else []
        effort = Effort(shown, work, minutes)
        manifest = train_student(name, rows, ensure_base_model(base), out, settings, effort)
    except (RouterError, TrainingRefused, BaseModelMissing) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    told = {k: v for k, v in manifest["metrics"].items() if k != "loss_curve"}
    typer.echo(json.dumps({"student": str(out), "name": name, **told}))


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
    from router.threads import stay_on_one_thread

    try:
        encoders = load_encoders(cache)
    except RouterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    stay_on_one_thread()
    uvicorn.run(create_classifier_app(encoders), host=host, port=port, log_level="warning")
