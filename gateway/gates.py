"""``understudy gate``: how tasks stand with their promise, and an operator's word, through the
store. Running gateways follow within two seconds."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.auditor import audit_of, close_gate, open_gate, standing_of
from gateway.config_file import environment, load_config, place_of, store_path
from gateway.deployed import serving_task
from gateway.errors import ConfigError, StoreError
from gateway.store.audits import AuditStore, Claim
from gateway.task_settings import Risk
from gateway.terminal import ConfigFile, fail
from router.artefact import load_artefact
from router.errors import RouterError

app = typer.Typer(no_args_is_help=True, help="Show, open and close the gates of tasks.")

TaskName = Annotated[str | None, typer.Option(help="Task; the first by default.")]
Note = Annotated[str, typer.Option(help="Why; kept with the event.")]


@dataclass(frozen=True, slots=True)
class _Case:
    risk: Risk
    claim: Claim
    store: AuditStore


@app.command()
def show(
    config: ConfigFile,
    task: TaskName = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a task's gate, its audit, and the latest events."""
    with _case(config, task) as case:
        found = _shown(case)
    typer.echo(json.dumps(found) if as_json else _readable(found))


@app.command("open")
def open_(config: ConfigFile, note: Note, task: TaskName = None) -> None:
    """Open a gate on an operator's word; where the audit had refuted, it begins anew."""
    with _case(config, task) as case:
        audit = audit_of(case.risk)
        open_gate(case.store, audit, case.claim, note, getpass.getuser(), time.time())
        typer.echo(f"{case.claim.task}: open for {case.claim.router}")


@app.command()
def close(config: ConfigFile, note: Note, task: TaskName = None) -> None:
    """Close a gate for every version of a task, until it is opened again."""
    with _case(config, task) as case:
        close_gate(case.store, case.claim.task, note, getpass.getuser(), time.time())
        typer.echo(f"{case.claim.task}: closed")


@contextlib.contextmanager
def _case(path: Path, name: str | None) -> Iterator[_Case]:
    try:
        config = load_config(path)
        settings, artefact = serving_task(config, name)
        risk = settings.risk
        version = load_artefact(artefact).version
        if config.postgres is None and not store_path(config).is_file():
            fail(f"{store_path(config)}: no such store; has the gateway run with this file?")
        with contextlib.closing(place_of(config, environment()).audits()) as store:
            claim = Claim(settings.name, version, risk.alpha, risk.delta)
            yield _Case(risk, claim, store)
    except (ConfigError, RouterError, StoreError) as error:
        fail(f"{path}: {error}")


def _shown(case: _Case) -> dict[str, Any]:
    claim, store = case.claim, case.store
    epoch, gate = store.epoch(claim), store.gate(claim.task, claim.router)
    standing = epoch and standing_of(store, audit_of(case.risk), epoch, case.risk, time.time())
    shut = standing.closed is not None if standing else gate is not None and gate.closed
    return {
        "task": claim.task,
        "router": claim.router,
        "alpha": claim.alpha,
        "gate": "closed" if shut else "open",
        "gate_reason": None if gate is None else f"{gate.by}: {gate.reason}",
        "audit": standing.to_json() if standing else None,
        "events": [
            {"at": e.at, "kind": e.kind.value, **e.detail} for e in store.events(claim.task, 10)
        ],
    }


def _readable(found: dict[str, Any]) -> str:
    lines = [
        f"task    {found['task']}  {found['router']}",
        f"gate    {found['gate']}" + (f" ({found['gate_reason']})" if found["gate_reason"] else ""),
    ]
    audit = found["audit"]
    if audit is None:
        lines.append("audit   has not begun for this version and budget")
    else:
        missing = audit["labels_missing"]
        lines.append(
            f"audit   {audit['status']}: risk between {audit['risk_lower_bound']:.4f} and "
            f"{audit['risk_upper_bound']:.4f}, budget {found['alpha']:g}; {audit['errors']} of "
            f"{audit['labels']} labels disagree"
        )
        if audit["status"] == "unproven":
            best = audit["labels_missing_without_error"]
            lines.append(
                f"        {best} more labels confirm it if none of them disagrees; "
                + (f"{missing} at the present rate of errors" if missing is not None else
                   "at the present rate of errors none do")
            )  # fmt: skip
    for event in found["events"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.pop("at")))
        kind = event.pop("kind")
        lines.append(f"{at}  {kind}  " + ", ".join(f"{k}={v}" for k, v in event.items()))
    return "\n".join(lines)
