"""Nightly runs that are killed without warning, over and over, until they end all the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.classifier import load_classifier
from distill.digest import file_sha256
from distill.runner import STAGES
from gateway.store.ledger import RunState
from gateway.store.place import Place
from gateway.store.records import Exchange
from gateway.store.students import VersionState
from router.artefact import load_artefact
from tests.fakes.rig import ROOT, encoders
from tests.fakes.traffic import TASK, config_file, fill

WITHIN_S = 0.4
"""A kill comes at any time from a stage's beginning on; short ones may be over by then."""
NEXT = 3
"""The stages to die in next are these: a run is killed about ten times before its end."""
END_S = 240.0


@dataclass(slots=True)
class Killed:
    """What a run that was killed so often came to."""

    kills: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def start(config: Path) -> subprocess.Popen[bytes]:
    """``understudy distill run``, in a group of its own."""
    out = config.with_name("run.out")
    with out.open("wb") as handle:
        return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "distill", "run", "--config", str(config), "--json"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=handle,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def killed_until_it_ends(
    folder: Path, student: str, rows: Sequence[Exchange], kills: int, seed: int
) -> Killed:
    """Fill a store, run, kill in stages that are drawn of those to come, look after each kill, and
    let it end."""
    folder.mkdir(parents=True)
    place, config, rng = fill(folder, rows), config_file(folder, student), random.Random(seed)
    found = Killed()
    while sum(found.kills.values()) < kills and not _over(place):
        drawn = rng.choice([None, *_to_come(place)[:NEXT]])
        began = time.time()
        process = start(config)
        if drawn is not None:
            _arrive(process, place, drawn, began)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, WITHIN_S if drawn else 2.0))
        if process.poll() is not None:  # it was faster than its end
            assert process.poll() == 0, config.with_name("run.out").read_text()
            break
        stage = stage_of(place, began)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found.kills[stage or ("end" if _over(place) else "start")] += 1
        check(place, folder)
    if not _over(place):
        ended(start(config), config)
    with contextlib.closing(place.ledger()) as ledger:
        (run,) = ledger.runs(TASK)
    found.reason = run.reason
    check(place, folder)
    found.facts = facts(place, folder)
    return found


def _over(place: Place) -> bool:
    """Whether the run has ended, though its process may not have."""
    with contextlib.closing(place.ledger()) as ledger:
        return any(run.state is not RunState.RUNNING for run in ledger.runs(TASK))


def _to_come(place: Place) -> list[str]:
    """The stages that the run has before it, the one that it was killed in included."""
    names, now = list(STAGES), stage_of(place, 0.0)
    return names[names.index(now) if now else 0 :]


def _arrive(process: subprocess.Popen[bytes], place: Place, stage: str, began: float) -> None:
    """Wait until the process is in that stage, or past it, or over."""
    names, until = list(STAGES), time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < until:
        now = stage_of(place, began)
        if now is not None and names.index(now) >= names.index(stage):
            return
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes], config: Path) -> dict[str, Any]:
    """What a run said at its end."""
    code = process.wait(END_S)
    said = config.with_name("run.out").read_text()
    assert code == 0, said
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def stage_of(place: Place, began: float) -> str | None:
    """The latest stage of the open run, if it began since then (Unix seconds)."""
    with contextlib.closing(place.ledger()) as ledger:
        runs = ledger.runs(TASK, 1)
        stages = ledger.stages(runs[0].id) if runs and runs[0].state is RunState.RUNNING else []
    begun = [stage.name for stage in stages if stage.started_at >= began]
    return begun[-1] if begun else None


def check(place: Place, folder: Path) -> None:
    """What must hold at any moment, whatever died."""
    with contextlib.closing(place.ledger()) as ledger:
        runs = ledger.runs(TASK)
    assert sum(run.state is RunState.RUNNING for run in runs) <= 1
    with contextlib.closing(place.registry()) as registry:
        versions, row = registry.versions(TASK), registry.deployment(TASK)
    assert len({(v.run, v.kind) for v in versions}) == len(versions)
    for version in versions:
        if version.state is VersionState.PLANNED:
            continue
        # Whole, as it was trained, on the data that its name was taken for.
        load_classifier(version.folder, encoders())
        assert file_sha256(version.folder / "manifest.json") == version.sha256
        data = folder / "students" / TASK / "runs" / version.run / "student.jsonl"
        assert not data.exists() or file_sha256(data) == version.data_sha256
        if version.state is VersionState.READY:
            assert version.router is not None
            manifest = load_artefact(version.router).manifest
            assert manifest["student"] == {"name": version.name, "sha256": version.sha256}
            assert manifest["certificate"]["status"] == "certified"
    if row is not None:
        live = next(v for v in versions if v.name == row.live)
        assert live.state is VersionState.READY


def facts(place: Place, folder: Path) -> dict[str, Any]:
    """What must be the same whether a run was killed or not."""
    with contextlib.closing(place.registry()) as registry:
        versions, row = registry.versions(TASK), registry.deployment(TASK)
    with contextlib.closing(place.samples()) as samples:
        places = samples.of_task(TASK)
    weights = [file_sha256(v.folder / "head.safetensors") for v in versions]
    certificates = [
        load_artefact(v.router).manifest["certificate"] for v in versions if v.router is not None
    ]
    return {
        "versions": [(v.name, v.data_sha256, v.state.value) for v in versions],
        "weights": weights,
        "certificates": certificates,
        "live": row.live if row is not None else None,
        "revision": row.revision if row is not None else 0,
        "splits": {id_: (s.split, s.used_by) for id_, s in places.items()},
        "left_over": sorted(
            str(p.relative_to(folder)) for p in (folder / "students").rglob("v*.*") if p.is_dir()
        ),
    }


def took(started: float) -> float:
    """Seconds since."""
    return round(time.monotonic() - started, 1)
