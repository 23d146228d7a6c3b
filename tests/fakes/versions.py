"""Certified versions in a registry, made from the demo's artefact."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from gateway.store.place import Place
from gateway.store.students import Kind, Plan, VersionState
from router.artefact import load_artefact, save_artefact
from tests.fakes.rig import ARTEFACTS

TASK = "banking-intents"


def add_version(
    place: Place, folder: Path, kind: Kind = Kind.LORA, weights: Path | None = None
) -> str:
    """The next version of the demo's task, certified as the demo's first one is; ``weights`` is a
    student's folder for a server that really loads it."""
    with contextlib.closing(place.registry()) as registry:
        number = len(registry.versions(TASK)) + 1
        plan = Plan(TASK, kind, None, f"run-{number}", "data")
        version = registry.plan(plan, folder / "students", 1.0)
        if weights is not None:
            shutil.copytree(weights, version.folder)
        else:
            version.folder.mkdir(parents=True)
            (version.folder / "manifest.json").write_text(json.dumps({"name": version.name}))
        registry.trained(version.name, "sha", {})
        registry.judged(version.name, VersionState.READY, artefact_for(version.name, folder))
    return version.name


def artefact_for(name: str, folder: Path) -> Path:
    """The demo's artefact, calibrated on a student of another name."""
    source = load_artefact(ARTEFACTS / "router/v1")
    out = folder / "routers" / name.partition("@")[2]
    manifest = {
        **{k: v for k, v in source.manifest.items() if k not in ("files", "format")},
        "version": out.name,
        "student": {"name": name, "sha256": "sha"},
    }
    save_artefact(out, manifest, source.tensors, [dict(p) for p in source.prompts])
    return out
