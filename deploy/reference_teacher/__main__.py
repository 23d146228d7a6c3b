"""``python -m deploy.reference_teacher --data FILE … --port 8002 --latency-ms 250``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from deploy.reference_teacher.answers import Answers
from deploy.reference_teacher.app import Teacher, create_teacher
from deploy.reference_teacher.knobs import Knobs


def run(
    data: Annotated[list[Path], typer.Option(help="Labelled rows (JSON Lines).")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8002,
    api_key_env: Annotated[
        str | None, typer.Option(help="Variable with the key to demand.")
    ] = None,
    knob: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, may be repeated.")] = None,
) -> None:
    """Serve an OpenAI-compatible teacher that answers from labelled data."""
    import os

    defaults = Knobs()
    kinds = {field.name: type(getattr(defaults, field.name)) for field in fields(Knobs)}
    pairs = [item.partition("=") for item in knob or ()]
    try:
        knobs = defaults.changed({name: kinds.get(name, str)(value) for name, _, value in pairs})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    key = os.environ[api_key_env] if api_key_env else None
    teacher = Teacher(Answers.load(data), knobs, key)
    uvicorn.run(
        create_teacher(teacher), host=host, port=port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    typer.run(run)
