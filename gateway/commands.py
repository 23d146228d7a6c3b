"""``understudy serve``, ``check-config``, ``explain`` and ``replay``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gateway.config_file import (
    environment,
    find_task,
    load_config,
    named_secrets,
    place_of,
    read_secrets,
    store_path,
)
from gateway.errors import ConfigError, StoreError
from gateway.logs import log
from gateway.settings import Config
from gateway.store.opening import ensure_room, move_damaged
from gateway.terminal import ConfigFile, fail, since_time

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def serve(
    config: ConfigFile,
    worker: Annotated[
        str | None, typer.Option(hidden=True, help="A supervisor's word to its worker.")
    ] = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C; both let running answers finish."""
    from gateway.supervisor import WorkerPlace, supervise

    settings = _loaded(config)
    place = WorkerPlace.parse(worker) if worker else None
    try:
        secrets = read_secrets(settings, environment())
        if place is None:
            _prepare_store(store_path(settings))
            _bring_up_to_date(settings, secrets)
        if place is None and settings.listen.workers > 1:
            raise typer.Exit(supervise(config, settings.listen, store_path(settings)))
        from gateway.server import serve as run
        from gateway.service import Service

        service = Service(settings, secrets, first=place is None or place.slot == 0)
    except ConfigError as error:
        fail(*(f"{config}: {problem}" for problem in error.problems))
    except StoreError as error:
        fail(f"{config}: store: {error}")

    def again() -> tuple[Config, dict[str, str]]:
        try:
            changed = load_config(config)
            return changed, read_secrets(changed, environment())
        except ConfigError as error:
            raise ConfigError([_in_file(config, problem) for problem in error.problems]) from error

    service.source = again
    raise typer.Exit(run(service, place))


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
        if task.router
        and task.router.artefact
        and not (task.router.artefact / "manifest.json").is_file()
    ]
    if problems:
        fail(*problems)
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
    except (ConfigError, RouterError, StoreError) as error:
        fail(f"{config}: {error}")
    typer.echo(json.dumps(result) if as_json else _readable(result))


@app.command()
def replay(
    config: ConfigFile,
    task: Annotated[str | None, typer.Option(help="Task; the first by default.")] = None,
    since: Annotated[str, typer.Option(help="The last 30m, 24h or 7d.")] = "7d",
    alpha: Annotated[
        float | None, typer.Option(min=0.0001, max=0.5, help="Certify this risk on the draws.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Try this threshold.")] = None,
    artefact: Annotated[Path | None, typer.Option(help="Another artefact folder.")] = None,
    slice_by: Annotated[
        Literal["reason", "answer", "template", "principal"], typer.Option(help="Slices.")
    ] = "reason",
    plot: Annotated[Path | None, typer.Option(help="Write the risk-coverage curve (SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Try another budget, threshold or artefact on what was logged: coverage, risk, cost."""
    from gateway.deployed import serving_task
    from gateway.replay import Wish, cases, report
    from gateway.replay_report import plain, plot_svg
    from gateway.store.records import Filter, Status
    from router.encoder import load_encoders
    from router.errors import RouterError
    from router.judge import Judge

    loaded = _loaded(config)
    try:
        if artefact is None:
            settings, artefact = serving_task(loaded, task)
        else:
            settings = find_task(loaded, task)
        judge = Judge.load(artefact, load_encoders(loaded.cache))
        which = Filter(task=settings.name, status=Status.COMPLETE.value, since=since_time(since))
        with contextlib.closing(place_of(loaded, environment()).reader()) as store:
            found = cases(store.read(which), judge, settings, slice_by)
    except (ConfigError, StoreError, RouterError) as error:
        fail(f"{config}: {error}")
    wish = Wish(alpha or settings.risk.alpha, settings.risk.delta, threshold, alpha is not None)
    result = report(found, judge, wish)
    if plot is not None:
        plot.write_text(plot_svg(result))
    typer.echo(json.dumps(result) if as_json else plain(result))


def _prepare_store(path: Path) -> None:
    """Neither a damaged store nor a full disk may keep the gateway from serving, and nobody may
    miss that it was so."""
    aside = move_damaged(path, time.time())
    if aside is not None:
        log("store_damaged", store=str(path), moved_to=str(aside))
        typer.echo(
            f"warning: {path} is damaged; it was moved to {aside} and a new store begun. "
            f"To save what can be read: sqlite3 {aside} .recover",
            err=True,
        )
    if ensure_room(path):
        log("store_reserve_used", store=str(path))
        typer.echo(f"warning: {path}: the disk is full; the reserve was given up", err=True)


def _bring_up_to_date(settings: Config, secrets: Mapping[str, str]) -> None:
    """Postgres that is away must not keep the gateway from serving: it ships later."""
    if settings.postgres is None or not settings.postgres.migrate:
        return
    from gateway.store.migrating import upgrade

    try:
        upgrade(secrets[settings.postgres.url_env])
    except StoreError as error:
        log("schema_not_upgraded", error=str(error))


def _readable(result: dict[str, Any]) -> str:
    lines = [
        f"verdict    {result['served_by']}, {result['reason']}",
        f"ood_score  {result['ood_score']:.4f}  cut {_shown(result['ood_cut'])}",
        f"score      {_shown(result['score'])}  threshold {_shown(result['threshold'])}",
        f"router     {result['router']}, decided by the {result['tier']} tier",
    ]
    if result["student_answer"] is not None:
        lines.append(f"student    {result['student_answer']!r}")
    if result["note"]:
        lines.append(f"note       {result['note']}")
    lines.append("weighed (log-odds towards the teacher):")
    lines += [f"  {name:22} {value:+.2f}" for name, value in result["weighed"].items()]
    if result["would_flip"]:
        lines.append("any one of these, alone, would turn the verdict:")
        lines += [f"  {name:22} at {value:.3f}" for name, value in result["would_flip"].items()]
    lines.append("nearest training prompts:")
    lines += [
        f"  {n['similarity']:.3f}  {n['text']!r} -> {n['completion']}" for n in result["nearest"]
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _in_file(path: Path, problem: str) -> str:
    return problem if problem.startswith(str(path)) else f"{path}: {problem}"


def _loaded(path: Path) -> Config:
    try:
        return load_config(path)
    except ConfigError as error:
        fail(*error.problems)
