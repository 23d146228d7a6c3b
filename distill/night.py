"""What the stages of one run share: the job, what earlier stages gave, and a heartbeat."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.digest import file_sha256
from distill.examples import Example, read_examples
from distill.executor import Executor, LocalExecutor
from distill.job import Job
from gateway.store.ledger import Ledger, Run
from gateway.store.samples import Samples
from gateway.store.students import Deployment, Registry, Version
from router.folders import new_file


class Ended(Exception):
    """A run ends here, and nothing went wrong: ``refused``, ``waiting`` or ``skipped``."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


class Cancelled(Exception):
    """Somebody asked the run to stop."""


class LeaseLost(Exception):
    """Another process may run the task now; this one must not go on."""


@dataclass(slots=True)
class Night:
    """A run under way. ``outputs`` holds what each finished stage gave; ``beat`` renews the lease.

    A stage writes files below ``folder`` and small facts, with the files' hashes, into the ledger.
    """

    job: Job
    run: Run
    ledger: Ledger
    registry: Registry
    samples: Samples
    beat: Callable[[], None]
    executor: Executor = field(default_factory=LocalExecutor)
    outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    stage: str = ""
    clock: Callable[[], float] = time.time

    @property
    def folder(self) -> Path:
        """Where the run's files lie."""
        return self.job.folder / "runs" / self.run.id

    def path(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name

    def examples(self, name: str) -> list[Example]:
        """Examples that an earlier stage wrote."""
        return read_examples(self.path(name))

    def write_json(self, name: str, value: Any) -> str:
        """Write a file whole or not at all; returns its SHA-256."""
        path = self.path(name)
        with new_file(path) as new:
            new.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        return file_sha256(path)

    def read_json(self, name: str) -> Any:
        """What ``write_json`` wrote."""
        return json.loads(self.path(name).read_bytes())

    def spend(self, usd: float) -> None:
        """The stage under way has spent money on the teacher."""
        self.ledger.spend(self.run, self.stage, usd)

    def money_left(self) -> float:
        """What runs of the task may still spend today, in USD."""
        spent = self.ledger.spent_today(self.job.task.name, self.clock())
        return self.job.task.distill.usd_per_day - spent

    def deployment(self) -> Deployment | None:
        """Who serves now."""
        return self.registry.deployment(self.job.task.name)

    def incumbent(self) -> Version | None:
        """The version that the run measures its candidate against: who served when it began."""
        name = self.outputs["collect"]["incumbent"]
        return self.registry.version(name) if name else None

    def version(self, name: str) -> Version:
        """A version of this run."""
        found = self.registry.version(name)
        assert found is not None
        return found

    def whole(self, outputs: Mapping[str, Any]) -> bool:
        """Whether the files that a stage left are as it left them."""
        files: Mapping[str, str] = outputs.get("files", {})
        return all(
            self.path(name).is_file() and file_sha256(self.path(name)) == sha256
            for name, sha256 in files.items()
        )
