"""What lies in ``deploy`` is checked by the tools that will read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from gateway.config_file import load_config, named_secrets
from tests.fakes.rig import ROOT

DEPLOY = ROOT / "deploy"
DOCKER = DEPLOY / "docker"
COMPOSE = DOCKER / "compose.yaml"
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compose() -> dict[str, Any]:
    """As Docker sees it: variables in their places, merge keys resolved."""
    text = re.sub(r"\$\{\w+:-([^}]*)}", r"\1", COMPOSE.read_text())
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*}", "x", text))
    return found


def test_hadolint_takes_the_dockerfile() -> None:
    run(BIN / "hadolint", DOCKER / "Dockerfile")


def test_the_dockerfile_copies_what_is_there() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name.split('/')[0]}" in ignored, name


def test_the_compose_file_is_one() -> None:
    """Parsed and validated by compose-spec's own types; merge keys are resolved by YAML."""
    found = {k: v for k, v in compose().items() if not k.startswith("x-")}
    compose_spec.PyCompose.from_json(json.dumps(found)).validate()
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_json('{"services": {"a": {"imagee": "x"}}}')


def test_what_the_compose_file_mounts_and_asks_for_is_there() -> None:
    found, variables = compose(), set(re.findall(r"\${(\w+):\?", COMPOSE.read_text()))
    given = {line.split("=")[0] for line in (DOCKER / "env.example").read_text().splitlines()
             if "=" in line}  # fmt: skip
    assert variables == given
    volumes = set(found["volumes"])
    for service in found["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists() or mount.startswith("./base"), mount
            else:
                assert source in volumes, mount
        assert set(service.get("depends_on", ())) <= set(found["services"])


def test_the_configuration_of_the_compose_file_is_sound() -> None:
    config = load_config(DOCKER / "understudy.yaml")
    passed = set(compose()["x-understudy"]["environment"])
    assert {variable for _, variable in named_secrets(config)} <= passed
    services = compose()["services"]
    student = config.tasks[0].student
    assert student is not None
    for url in (*student.base_urls, *student.classifier_urls):
        assert re.match(r"http://(\w+):", url)[1] in services  # type: ignore[index]
    assert str(config.listen.port) in services["gateway"]["ports"][0]
    assert "EXPOSE 8080" in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize("path", sorted((DEPLOY / "systemd").iterdir()), ids=lambda p: p.name)
def test_systemd_takes_a_unit(path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine: only systemd can say")
    run("systemd-analyze", "verify", path)
