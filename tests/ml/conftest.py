"""One real vLLM process for the tests that need it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.demo.processes import Child, Children
from deploy.demo.vllm import VllmSettings, load_adapter, start_vllm, vllm_ready
from tests.fakes.process import free_port
from tests.fakes.rig import ARTEFACTS, ROOT

STUDENT_PYTHON = ROOT / ".venv-student/bin/python"
BASE = ROOT / ".cache/base/smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Vllm:
    """The running server with the shipped student loaded."""

    child: Child
    settings: VllmSettings


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Start vLLM once. It is never skipped: without its environment the tests fail and say why."""
    if not STUDENT_PYTHON.exists() or not BASE.exists():
        pytest.fail("vLLM's environment is missing; run 'make base'")
    settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
    with Children(tmp_path_factory.mktemp("vllm")) as children:
        child = start_vllm(children, settings)
        vllm_ready(child, settings)
        load_adapter(settings, "banking-intents@v1", ARTEFACTS / "student/v1")
        yield Vllm(child, settings)
