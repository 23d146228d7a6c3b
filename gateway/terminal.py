"""What commands share: options, spans of time, and the way to end with an error."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def fail(*problems: str) -> NoReturn:
    """Name what is wrong, a line each, and end the command."""
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)


def since_time(text: str | None) -> float | None:
    """Unix seconds of so long ago, or of a time; ends the command where the text cannot be
    read."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is not None:
        return time.time() - int(match[1]) * _UNITS[match[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{text!r} is no span of time: write a number and s, m, h or d, such as 24h, or a time "
            "such as 2026-11-25T08:00:00+00:00"
        )
    return (at if at.tzinfo is not None else at.astimezone()).timestamp()
