"""``understudy serve``, ``check-config`` and ``explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gateway.config_file import environment, load_config, named_secrets, read_secrets
from gateway.errors import ConfigError, StoreError
from gateway.settings import Config

app = typer.Typer(no_args_is_help=True, add_completion=False)

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")]


@app.command()
def serve(config: ConfigFile) -> None:
    """Run the gateway until SIGTERM or Ctrl-C; both let running answers finish."""
    from gateway.server import serve as run
    from gateway.service import Service

    settings = _loaded(config)
    try:
        service = Service(settings, read_secrets(settings, environment()))
    except ConfigError as error:
        _fail([f"{config}: {problem}" for problem in error.problems])
    except StoreError as error:
        _fail([f"{config}: store: {error}"])
    raise typer.Exit(run(service))


@app.command("check-config")
def check_config(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")],
) -> None:
    """Check a configuration file; every mistake is named with file, key and reason."""
    settings = _loaded(path)
    unset = [(k, e) for k, e in named_secrets(settings) if not environment().get(e)]
    for key, variable in unset:
        typer.echo(f"note: {path}: {key}: environment variable {variable} is not set")
    problems = [
        f"{path}: tasks[{index}].router.artefact: {task.router.artefact} has no manifest.json"
        for index, task in enumerate(settings.tasks)
        if task.router and not (task.router.artefact / "manifest.json").is_file()
    ]
    if problems:
        _fail(problems)
    typer.echo(f"{path}: ok, {len(settings.tasks)} task(s)")


@app.command()
def explain(
    config: ConfigFile,
    text: Annotated[str, typer.Argument(help="The user's text.")],
    task: Annotated[str | None, typer.Option(help="Task; the first by default.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System message; by default the template is taken as known.")
    ] = None,
    ask_student: Annotated[
        bool, typer.Option(help="Ask the student too, for score and verdict.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say how a prompt would be judged: verdict, scores, what weighed, nearest training prompts."""
    from gateway.explain import explain as run
    from router.errors import RouterError

    settings = _loaded(config)
    try:
        result = run(settings, text, task, system, ask_student)
    except (ConfigError, RouterError) as error:
        _fail([f"{config}: {error}"])
    typer.echo(json.dumps(result) if as_json else _readable(result))


def _readable(result: dict[str, Any]) -> str:
    lines = [
        f"verdict    {result['served_by']}, {result['reason']}",
        f"ood_score  {result['ood_score']:.4f}  cut {_shown(result['ood_cut'])}",
        f"score      {_shown(result['score'])}  threshold {_shown(result['threshold'])}",
        f"router     {result['router']}",
    ]
    if result["student_answer"] is not None:
        lines.append(f"student    {result['student_answer']!r}")
    if result["note"]:
        lines.append(f"note       {result['note']}")
    lines.append("weighed (log-odds towards the teacher):")
    lines += [f"  {name:18} {value:+.2f}" for name, value in result["weighed"].items()]
    lines.append("nearest training prompts:")
    lines += [
        f"  {n['similarity']:.3f}  {n['text']!r} -> {n['completion']}" for n in result["nearest"]
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _loaded(path: Path) -> Config:
    try:
        return load_config(path)
    except ConfigError as error:
        _fail(error.problems)


def _fail(problems: list[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
