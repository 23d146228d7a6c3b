"""Forget an end user: in the store, in what was exported from it, in the routing artefacts.

Weights that were trained meanwhile are not claimed clean: they are trained again without these
exchanges from the next night on.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from gateway.config_file import environment, place_of
from gateway.errors import GatewayError, StoreError
from gateway.exporting import Gone, chat_key, forget_in_file
from gateway.settings import Config
from gateway.store.keeping import Asked, Keeping
from gateway.store.ledger import Ledger, RunState
from gateway.store.place import Place
from gateway.store.run_files import REPORT, forget_in_report, tidy
from gateway.store.sqlite import SqliteStore
from gateway.store.training import chat_of
from gateway.streams.whole import request_of
from gateway.task_settings import Task
from router.errors import RouterError
from router.forget import forget_prompts
from router.template import variable_text


def forget_user(config: Config, place: Place, end_user: str, by: str, vacuum: bool) -> list[str]:
    """Forget the end user of a digest; what was done, and what remains for somebody to do, one
    line each.

    Raises:
        StoreError: the store cannot be written; what is not deleted yet is still there.
    """
    told: list[str] = []
    if place.shared:  # first what is not shipped yet; other gateways' outboxes empty by themselves
        with contextlib.closing(Keeping(SqliteStore.open(place.path))) as outbox:
            told += _in_store(config, outbox, end_user, by, vacuum)
    with contextlib.closing(place.keeping()) as keeping:
        told += _in_store(config, keeping, end_user, by, vacuum)
    told.append(
        "weights: students trained before now may have seen these exchanges; the next training "
        "leaves them out"
    )
    return told


def _in_store(config: Config, keeping: Keeping, end_user: str, by: str, vacuum: bool) -> list[str]:
    found = keeping.asked_by(end_user)
    told = [
        *_in_artefacts(config, found), *_in_exports(keeping, found), *_in_runs(config, found)
    ]  # fmt: skip
    keeping.forget(end_user, found, by, time.time())
    told.append(f"store: {len(found)} exchanges deleted")
    if not keeping.scrub_files(vacuum):
        told.append("todo: readers kept the log from being emptied; run this again later")
    return told


def _in_exports(keeping: Keeping, found: Sequence[Asked]) -> list[str]:
    gone = Gone(
        frozenset(asked.id for asked in found),
        frozenset(key for asked in found for key in _chats(asked)),
    )
    told = []
    for export in keeping.exports():
        if not export.path.exists():
            told.append(f"todo: {export.path} was exported and is not there any more; look for it")
            keeping.drop_export(export.path)
            continue
        try:
            count = forget_in_file(export.path, export.format, gone)
            told.append(f"{export.path}: {count} rows taken out")
        except StoreError as error:
            told.append(f"todo: {error}")
    return told


def _chats(asked: Asked) -> list[bytes]:
    with contextlib.suppress(GatewayError, KeyError):  # without bodies nothing was exported
        return [chat_key(chat_of(asked.api, asked.request))]
    return []


def _in_artefacts(config: Config, found: Sequence[Asked]) -> list[str]:
    told = []
    for task in config.tasks:
        texts = {t for asked in found if asked.task == task.name for t in _texts(asked)}
        if not texts:
            continue
        for folder in _artefacts(config, task):
            told += _in_artefact(folder, texts)
    return told


def _in_artefact(folder: Path, texts: set[str]) -> list[str]:
    try:
        prompts, points = forget_prompts(folder, texts)
    except (RouterError, OSError) as error:
        return [f"todo: {folder}: {error}"]
    if not prompts:
        return []
    return [
        f"{folder}: {prompts} prompts and {points} points of its indexes taken out; send running "
        "gateways SIGHUP"
    ]


def _in_runs(config: Config, found: Sequence[Asked]) -> list[str]:
    """Distillation: reports lose the rows, runs that are not over their files, and the cache of
    students' answers goes."""
    told = []
    for task in config.tasks:
        ids = [asked.id for asked in found if asked.task == task.name]
        folder = task.distill.folder / task.name
        if not ids or not folder.is_dir():
            continue
        shutil.rmtree(folder / "answers", ignore_errors=True)
        with contextlib.closing(place_of(config, environment()).ledger()) as ledger:
            for run in sorted((folder / "runs").glob("*")):
                told += _in_run(ledger, run, ids)
    return told


def _in_run(ledger: Ledger, folder: Path, ids: Sequence[str]) -> list[str]:
    report, told = folder / REPORT, []
    try:
        if report.is_file() and (count := forget_in_report(report, ids)):
            told.append(f"{report}: {count} rows taken out")
    except OSError as error:
        told.append(f"todo: {report}: {error}")
    run = ledger.run(folder.name)
    if run is not None and run.state is RunState.RUNNING:
        ledger.cancel(run.id)
        if ledger.leased(run.task, time.time()) is not None:
            told.append(f"todo: {run.id} is under way and was asked to stop; run this again then")
            return told
        ledger.end(run, RunState.CANCELLED, "an end user was forgotten", time.time())
    if tidy(folder):
        told.append(f"{folder}: its training and test files were removed")
    return told


def _artefacts(config: Config, task: Task) -> list[Path]:
    """Every artefact that holds training prompts of a task."""
    if not task.registered:
        return [task.router.artefact] if task.router and task.router.artefact else []
    with contextlib.closing(place_of(config, environment()).registry()) as registry:
        return [v.router for v in registry.versions(task.name) if v.router is not None]


def _texts(asked: Asked) -> list[str]:
    with contextlib.suppress(GatewayError):
        return [variable_text(request_of(asked.api, asked.request).messages)]
    return []
