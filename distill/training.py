"""Train a candidate of either kind, in a process that a kill leaves nothing of."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from distill.children import end_with_parent
from distill.classifier import (
    MANIFEST,
    ClassifierError,
    ClassifierSettings,
    train_classifier,
)
from distill.digest import file_sha256
from distill.examples import Example, read_examples, rows_json
from distill.job import Job, load_job
from gateway.store.students import Kind, Version
from router.rows import write_rows

TICK_S = 1.0


class TrainingFailed(Exception):
    """No student came out; the message ends with what the trainer said last."""


def train(
    job: Job,
    version: Version,
    data: Path,
    rows: Sequence[Example],
    dev: Sequence[Example],
    beat: Callable[[], None],
) -> dict[str, Any]:
    """Make the version's folder, unless it is there; return its manifest.

    A folder that is there is whole, since it appears by one rename, and was trained on this data,
    since a version's name is taken for one training set.

    Raises:
        TrainingFailed: the trainer gave up.
    """
    if not (version.folder / MANIFEST).is_file():
        if version.kind is Kind.CLASSIFIER:
            settings = ClassifierSettings(job.task.distill.seed)
            try:
                train_classifier(
                    version.name, [e.row for e in rows], [e.row for e in dev], job.encoders(),
                    version.folder, settings,
                )  # fmt: skip
            except (ClassifierError, OSError) as error:
                raise TrainingFailed(str(error)) from error
        else:
            _train_lora(job, version, data, dev, beat)
    manifest: dict[str, Any] = json.loads((version.folder / MANIFEST).read_bytes())
    return manifest


def train_elsewhere(asked: Mapping[str, Any]) -> None:
    """The same on another machine, which sees configuration, store and folders under the same
    paths.

    Raises:
        TrainingFailed: the trainer gave up.
    """
    job = load_job(Path(asked["config"]), asked["task"], lambda text: None)
    folder = Path(asked["folder"])
    with closing(job.place.registry()) as registry:
        version = registry.version(asked["version"])
    if version is None:
        raise TrainingFailed(f"{asked['version']} is not in the registry")
    rows, dev = (read_examples(folder / f"{name}.jsonl.gz") for name in ("train", "dev"))
    train(job, version, folder / "student.jsonl", rows, dev, lambda: None)


def version_sha256(folder: Path) -> str:
    """What identifies a version: its manifest names every file by its hash."""
    return file_sha256(folder / MANIFEST)


def _train_lora(
    job: Job, version: Version, data: Path, dev: Sequence[Example], beat: Callable[[], None]
) -> None:
    wanted = job.task.distill
    python = str(wanted.python) if wanted.python is not None else sys.executable
    command = [
        python, "-c", "from gateway.cli import main; main()", "student", "train",
        "--name", version.name, "--data", str(data), "--base", str(wanted.base),
        "--out", str(version.folder), "--epochs", str(wanted.epochs), "--rank", str(wanted.rank),
        "--learning-rate", str(wanted.learning_rate), "--seed", str(wanted.seed),
        "--max-tokens", str(wanted.max_tokens), "--comparator", job.task.risk.comparator,
        "--work", str(data.with_name("checkpoints")),
    ]  # fmt: skip
    if dev:
        path = data.with_name("dev.jsonl")
        write_rows(path, rows_json(dev))
        command += ["--dev", str(path)]
    if wanted.search_minutes is not None:
        command += ["--minutes", str(wanted.search_minutes)]
    log = data.with_name(f"train-{version.kind.value}.log")
    with log.open("wb") as handle:
        process = subprocess.Popen(  # noqa: S603  our own command
            command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle,
            preexec_fn=_killed_with_parent,  # noqa: PLW1509  set up before any thread of ours
        )  # fmt: skip
        try:
            while True:
                try:
                    code = process.wait(TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    beat()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise TrainingFailed(f"the trainer ended with {code}: {tail}")


def _killed_with_parent() -> None:
    """A trainer whose run was killed must not go on."""
    end_with_parent(signal.SIGKILL)
