"""``understudy router``: fit and evaluate routing artefacts.

Lives in distill because fitting may ask a student over HTTP, which router never does.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill.answers import StudentEndpoint, with_student_answers
from router.agreement import false_agree, false_disagree, row_comparator
from router.comparator import parse as parse_comparator
from router.data import Data
from router.encoder import load_encoders
from router.errors import FitError, RouterError
from router.evaluate import Scored, evaluate
from router.fit import fit_artefact
from router.judge import Judge
from router.manifest import FitSettings
from router.redact import DEFAULT, Pattern, Redaction, Redactor
from router.rows import Row, read_rows, student_json, write_rows
from router.slots import suggest
from router.template import FIXED_ROLES

app = typer.Typer(no_args_is_help=True, help="Fit and evaluate the judge.")
_notes = Console(stderr=True)

CACHE = typer.Option(
    envvar="UNDERSTUDY_CACHE", help="Folder for the quantised encoder, built once."
)


@app.command()
def fit(
    task: Annotated[str, typer.Option(help="Name of the task.")],
    train: Annotated[Path, typer.Option(help="The student's training prompts (JSON Lines).")],
    combine: Annotated[Path, typer.Option(help="Rows that fit cut, combination and grid.")],
    calibrate: Annotated[Path, typer.Option(help="Rows that the certificate is taken on.")],
    out: Annotated[Path, typer.Option(help="New artefact folder; its name is the version.")],
    student: Annotated[str | None, typer.Option(help="Base URL of vLLM, ends in /v1.")] = None,
    student_model: Annotated[str | None, typer.Option(help="Student name, task@vN.")] = None,
    student_manifest: Annotated[
        Path | None, typer.Option(help="The student's manifest.json, pinned by its hash.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Largest risk.")] = 0.05,
    delta: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Failure probability.")] = 0.05,
    comparator: Annotated[
        str, typer.Option(help="When two answers agree: KIND or KIND:option=value,...")
    ] = "label",
    gate_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Prefix length.")] = 32,
    promotion: Annotated[
        int | None,
        typer.Option(min=1, help="The how-manieth certificate of a promise for all of them."),
    ] = None,
    weights: Annotated[
        Literal["thin", "betting"],
        typer.Option(help="Rows of unequal draw probability: thin them, or keep their weights."),
    ] = "thin",
    slot: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REGEX of a variable place in the fixed part; may be repeated."),
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of personal data, or NAME=REGEX, that surrogates replace first; "
            "may be repeated. The task's own `redact` must be the same; `key` by default."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 20261124,
    cache: Annotated[Path, CACHE] = Path(".cache/encoders"),
) -> None:
    """Fit a routing artefact and certify its threshold."""
    with _one_sentence():
        data = Data(*(read_rows(path, system) for path in (train, combine, calibrate)))
        if student is not None:
            data = _completed(data, student, student_model)
        settings = FitSettings(
            task=task,
            version=out.name,
            comparator=parse_comparator(comparator).name,
            alpha=alpha,
            delta=delta,
            gate_tokens=gate_tokens,
            promotion=promotion,
            weights=weights,
            slots=_slots(slot or []),
            redact=DEFAULT if redact is None else tuple(map(_rule, redact)),
            student=student_model,
            student_sha256=_sha256(student_manifest),
            seed=seed,
        )
        artefact = fit_artefact(data, settings, load_encoders(cache), out, _notes.print)
    certificate = artefact.manifest["certificate"]
    typer.echo(json.dumps({"artefact": str(out), "version": artefact.version, **certificate}))


@app.command("evaluate")
def evaluate_command(
    artefact: Annotated[Path, typer.Option(help="Artefact folder.")],
    source: Annotated[Path, typer.Option("--in", help="Labelled rows (JSON Lines).")],
    out: Annotated[Path | None, typer.Option(help="Scores per row (JSON Lines).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = (
        False
    ),
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
    cache: Annotated[Path, CACHE] = Path(".cache/encoders"),
) -> None:
    """Measure how well an artefact tells the student's traffic from the rest."""
    with _one_sentence():
        judge = Judge.load(artefact, load_encoders(cache))
        scored, metrics = evaluate(judge, read_rows(source, system))
        if out is not None:
            write_rows(out, map(_scored_json, scored))
    if as_json:
        typer.echo(json.dumps(metrics))
    else:
        for name, value in metrics.items():
            typer.echo(f"{name:18} {value}")


@app.command()
def answers(
    source: Annotated[Path, typer.Option("--in", help="Rows (JSON Lines).")],
    out: Annotated[Path, typer.Option(help="The rows with the student's answers.")],
    student: Annotated[str, typer.Option(help="Base URL of vLLM, ends in /v1.")],
    student_model: Annotated[str, typer.Option(help="Student name, task@vN.")],
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
) -> None:
    """Ask a student for its answers, with log-probabilities, and keep them in the rows."""
    with _one_sentence():
        rows = _asked(read_rows(source, system), student, student_model)
    write_rows(out, map(_row_json, rows))
    typer.echo(json.dumps({"rows": len(rows), "out": str(out)}))


@app.command("slots")
def slots_command(
    source: Annotated[Path, typer.Option("--in", help="Rows, such as captures export gives.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Find variable places in system messages, and suggest --slot expressions for them."""
    with _one_sentence():
        rows = read_rows(source)
    texts = ["\n".join(m.content for m in r.messages if m.role in FIXED_ROLES) for r in rows]
    for found in suggest([text for text in texts if text]):
        if as_json:
            typer.echo(json.dumps(asdict(found)))
            continue
        typer.echo(f"{found.count} prompts: {found.template}")
        for name, expression in found.slots.items():
            typer.echo(f"  --slot {shlex.quote(f'{name}={expression}')}")
            typer.echo(f"      such as {found.examples[name]!r}")


@app.command("comparator")
def comparator_command(
    source: Annotated[Path, typer.Option("--in", help="Rows with 'student' and 'equivalent'.")],
    comparator: Annotated[
        list[str], typer.Option(help="KIND or KIND:option=value,...; may be repeated.")
    ],
    system: Annotated[str | None, typer.Option(help="System message of {'text'} rows.")] = None,
    cache: Annotated[Path, CACHE] = Path(".cache/encoders"),
) -> None:
    """Say how often comparators are wrong, on rows whose gold says whether the answers agree."""
    with _one_sentence():
        rows = read_rows(source, system)
        encoders = load_encoders(cache) if any(map(_embeds, comparator)) else None
        for name in comparator:
            agrees = row_comparator(parse_comparator(name).name, encoders)
            wrong, strict = false_agree(rows, agrees), false_disagree(rows, agrees)
            if wrong is None or strict is None:
                raise FitError(f"{source}: no row has 'equivalent': true or false")
            typer.echo(
                json.dumps(
                    {
                        "comparator": parse_comparator(name).name,
                        "rows": wrong.rows,
                        "false_agree": round(wrong.rate, 5),
                        "false_agree_upper": round(wrong.upper, 5),
                        "false_disagree": round(strict.rate, 5),
                        "false_disagree_upper": round(strict.upper, 5),
                    }
                )
            )


def _rule(text: str) -> Redaction:
    name, equals, pattern = text.partition("=")
    rule: Redaction = Pattern(name, pattern) if equals else name
    Redactor([rule])
    return rule


def _slots(options: Sequence[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for name, equals, expression in pairs:
        if not equals or not expression:
            raise FitError(f"--slot {name!r} must be NAME=REGEX")
    return {name: expression for name, _, expression in pairs}


def _embeds(name: str) -> bool:
    return parse_comparator(name).kind == "embedding"


def _completed(data: Data, student: str, model: str | None) -> Data:
    if model is None:
        raise typer.BadParameter("--student needs --student-model")
    return Data(
        data.train, _asked(data.combine, student, model), _asked(data.calibrate, student, model)
    )


def _asked(rows: Sequence[Row], student: str, model: str) -> list[Row]:
    columns = (
        TextColumn("asking the student"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=_notes) as progress:
        bar = progress.add_task("rows", total=sum(row.student is None for row in rows))
        return asyncio.run(
            with_student_answers(
                rows, StudentEndpoint(student, model), lambda: progress.advance(bar)
            )
        )


def _row_json(row: Row) -> dict[str, Any]:
    obj: dict[str, Any] = {
        "messages": [{"role": m.role, "content": m.content} for m in row.messages],
        "completion": row.completion,
    }
    if row.slice is not None:
        obj["slice"] = row.slice
    if row.weight != 1.0:
        obj["weight"] = row.weight
    for name in ("out", "agrees", "equivalent"):
        if getattr(row, name) is not None:
            obj[name] = getattr(row, name)
    if row.student is not None:
        obj["student"] = student_json(row.student)
    return obj


def _scored_json(item: Scored) -> dict[str, Any]:
    return {
        "text": item.row.text,
        "label": item.row.completion,
        "out": item.out,
        "ood_score": item.ood_score,
        "score": item.score if item.score != float("inf") else 1.0,
        "disagrees": item.disagrees,
    }


def _sha256(manifest: Path | None) -> str | None:
    from distill.digest import file_sha256

    return file_sha256(manifest) if manifest is not None else None


class _one_sentence:
    """Ends the command with the error's sentence instead of a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RouterError):
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1)
