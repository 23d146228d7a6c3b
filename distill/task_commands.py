"""``understudy task new``: from nothing to a configuration that serves, captures and distils."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from distill.bootstrap import BootstrapStopped, distinct, self_disagreement
from distill.job import load_job
from gateway.config_file import load_config
from gateway.errors import ConfigError
from gateway.terminal import fail
from router.errors import RouterError
from router.folders import new_file
from router.noise import MIN_PROMPTS
from router.rows import Row, read_rows, write_rows

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Begin a task.")
SEED = 20261124


def _asked(text: str, min: float | None = None, max: float | None = None) -> Any:
    """An option that is asked for where it is not given."""
    return typer.Option(prompt=text, help=f"{text}.", min=min, max=max)


@app.callback()
def _group() -> None:
    """Begin a task."""


@app.command()
def new(
    config: Annotated[Path, typer.Option(help="The file to write, or to add the task to.")],
    name: Annotated[str, _asked("Name of the task (the model name that clients use)")],
    base_url: Annotated[str, _asked("The teacher's base URL (ends in /v1)")],
    model: Annotated[str, _asked("The teacher's model name")],
    api_key_env: Annotated[
        str, _asked("Environment variable with the teacher's key (empty: none)")
    ] = "",
    price_input: Annotated[float, _asked(min=0.0, text="USD per million prompt tokens")] = 2.5,
    price_output: Annotated[
        float, _asked(min=0.0, text="USD per million completion tokens")
    ] = 10.0,
    comparator: Annotated[
        str, _asked("When two answers agree (label, text, json, number, embedding)")
    ] = "label",
    alpha: Annotated[
        float, _asked(min=0.0001, max=0.5, text="Largest share of disagreeing answers")
    ] = 0.05,
    delta: Annotated[
        float, _asked(min=0.0001, max=0.5, text="Probability that the promise fails")
    ] = 0.05,
    usd_per_day: Annotated[
        float, _asked(min=0.0, text="USD a day that distillation may spend")
    ] = 20.0,
    prompts: Annotated[str, _asked("File of example prompts, JSON Lines (empty: none)")] = "",
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
    ask: Annotated[
        bool, typer.Option(help="Ask the teacher the probe prompts twice, for its own noise.")
    ] = True,
) -> None:
    """Write a task's configuration, hold a probe set back from its prompts, and show how often the
    teacher contradicts itself: no student can agree with it more often."""
    data = _existing(config)
    if any(task.get("name") == name for task in data["tasks"]):
        fail(f"{config}: task {name!r} is there already")
    task: dict[str, Any] = {
        "name": name,
        "teacher": {
            "base_url": base_url,
            "model": model,
            **({"api_key_env": api_key_env} if api_key_env else {}),
            "price": {"input": price_input, "output": price_output},
        },
        # Clients that leave the temperature at its default would never meet the student.
        "pin_sampling": True,
        "student": {"classifier_urls": ["http://127.0.0.1:8011/v1"]},
        "risk": {"alpha": alpha, "delta": delta, "comparator": comparator},
        "distill": {"usd_per_day": usd_per_day},
    }
    probes: list[Row] = []
    try:
        if prompts:
            probes, rest = _probes(Path(prompts), system)
            if probes:
                _write(config.parent / f"{name}.probe.jsonl", probes)
                task["probe"] = {"file": f"{name}.probe.jsonl"}
            _write(config.parent / f"{name}.prompts.jsonl", rest)
    except (RouterError, OSError) as error:
        fail(str(error))
    _checked(config, {**data, "tasks": [*data["tasks"], task]})
    typer.echo(f"{config}: task {name!r} written")
    if prompts and not probes:
        typer.echo(f"note: fewer than {3 * MIN_PROMPTS} prompts: no probe set was held back")
    if probes and ask:
        _show_floor(config, name, probes, alpha)
    _next_steps(config, name, bool(prompts))


def _existing(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"store": "sqlite:///./understudy.db", "tasks": []}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"{path}: {error}")
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list):
        fail(f"{path}: is no configuration with a list of tasks")
    return data


def _probes(path: Path, system: str | None) -> tuple[list[Row], list[Row]]:
    """A probe set out of the prompts, where there are enough, and the others."""
    rows = distinct(read_rows(path, system))
    random.Random(SEED).shuffle(rows)
    count = MIN_PROMPTS if len(rows) >= 3 * MIN_PROMPTS else 0
    return rows[:count], rows[count:]


def _write(path: Path, rows: list[Row]) -> None:
    write_rows(
        path,
        ({"messages": [{"role": m.role, "content": m.content} for m in r.messages]} for r in rows),
    )


def _checked(path: Path, data: dict[str, Any]) -> None:
    """Write the file only as one that can be used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as new:
        new.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
        try:
            load_config(new)
        except ConfigError as error:
            fail(*(problem.replace(str(new), str(path)) for problem in error.problems))


def _show_floor(path: Path, name: str, probes: list[Row], alpha: float) -> None:
    try:
        job = load_job(path, name, lambda text: typer.echo(text, err=True))
        floor, usd = self_disagreement(job, probes)
    except (ConfigError, BootstrapStopped) as error:
        typer.echo(f"note: the teacher could not be asked: {error}", err=True)
        return
    typer.echo(
        f"the teacher contradicts itself on {floor.disagreements} of {floor.prompts} prompts "
        f"({floor.rate:.1%}; {usd:.4f} USD)"
    )
    if floor.lower > alpha:
        typer.echo(
            f"warning: that is above alpha = {alpha:g}: no student can keep this promise; raise "
            "alpha or choose another comparator"
        )


def _next_steps(path: Path, name: str, prompts: bool) -> None:
    typer.echo("next:")
    typer.echo("  understudy student serve --port 8011        # where classifier students run")
    typer.echo(f"  understudy serve --config {path}")
    if prompts:
        typer.echo(
            f"  understudy distill bootstrap --config {path} --task {name} --prompts "
            f"{path.parent / f'{name}.prompts.jsonl'}   # add --traffic-sample if they are one"
        )
    typer.echo(f"  understudy distill run --config {path} --task {name}")
