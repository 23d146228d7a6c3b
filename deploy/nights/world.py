"""The real parts of the fortnight: gateway, student servers, a teacher that can change."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.demo.classifiers import classifiers_ready, start_classifiers
from deploy.demo.processes import Child, Children, wait_ready
from deploy.demo.task import TASK, Utterance
from deploy.demo.vllm import VllmSettings, start_vllm, vllm_ready
from deploy.nights.plan import chat
from distill.children import end_with_parent
from gateway.config_file import load_config, place_of
from router.rows import write_rows

ROOT = Path(__file__).resolve().parents[2]
CLINC150 = ROOT / "tests/data/clinc150"
BASE = ROOT / ".cache/base/smollm2-135m-instruct"
VLLM_PYTHON = ROOT / ".venv-student/bin/python"
KEYS = {"UNDERSTUDY_KEY": "us-nights", "UNDERSTUDY_ADMIN_KEY": "us-nights-admin"}
CONCURRENCY = 8
DRAWS_S = 120.0


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer as the application saw it."""

    id: str
    utterance: Utterance
    answer: str
    served_by: str
    reason: str


@dataclass(slots=True)
class World:
    """Everything that runs, and the file that configures it."""

    children: Children
    folder: Path
    ports: dict[str, int]
    lora: bool

    @classmethod
    def create(cls, children: Children, folder: Path, probes: Sequence[Utterance],
               lora: bool) -> World:  # fmt: skip
        """Write the configuration and start the servers; the store is empty.

        Raises:
            ProcessDied: one of them did not start.
        """
        names = ("gateway", "teacher", "classifier", "vllm")
        world = cls(children, folder, dict(zip(names, _free_ports(len(names)), strict=True)), lora)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "probe.jsonl", [{"messages": chat(u)} for u in probes])
        world.configure()
        world._start()
        return world

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "understudy.yaml"

    @property
    def url(self) -> str:
        """The gateway."""
        return f"http://127.0.0.1:{self.ports['gateway']}"

    def configure(self, **distill: Any) -> None:
        """Write the file; ``distill`` are settings of tonight's run."""
        data: dict[str, Any] = {
            "listen": {"port": self.ports["gateway"]},
            "store": "sqlite:///./understudy.db",
            "cache": str(ROOT / ".cache/encoders"),
            "admin": {"key_env": "UNDERSTUDY_ADMIN_KEY"},
            "keys": [
                {"name": "app", "key_env": "UNDERSTUDY_KEY", "may_override": True,
                 "may_correct": True}
            ],
            "tasks": [
                {
                    "name": TASK,
                    "teacher": {
                        "base_url": f"http://127.0.0.1:{self.ports['teacher']}/v1",
                        "model": "reference-teacher-labelled-data",
                        "price": {"input": 2.5, "output": 10.0},
                    },
                    "student": {
                        "base_urls": [f"http://127.0.0.1:{self.ports['vllm']}/v1"],
                        "classifier_urls": [f"http://127.0.0.1:{self.ports['classifier']}/v1"],
                        "price_per_hour": 0.10,
                        "classifier_price_per_hour": 0.02,
                        "timeout_s": 20.0,
                    },
                    "pin_sampling": True,
                    # A simulated day has some hundred requests: few of them would be drawn at the
                    # rates of real traffic.
                    "risk": {"alpha": 0.05, "delta": 0.05, "draw_rate": 0.8,
                             "unproven_draw_rate": 0.8},
                    "probe": {"file": "probe.jsonl", "every_s": 20.0},
                    "distill": {
                        "folder": "students", "base": str(BASE), "python": str(VLLM_PYTHON),
                        "shares": {"test": 0.2, "calibrate": 0.45, "combine": 0.15, "dev": 0.05},
                        "max_tokens": 16, "epochs": 3.0, "max_combine_rows": 600, **distill,
                    },
                }
            ],
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(data, sort_keys=False))

    def rename(self, names: dict[str, str]) -> None:
        """The teacher says other words from now on."""
        url = f"http://127.0.0.1:{self.ports['teacher']}/aliases"
        httpx.post(url, json=names).raise_for_status()

    def admin(self, path: str) -> Any:
        """What an operator sees."""
        key = {"authorization": f"Bearer {KEYS['UNDERSTUDY_ADMIN_KEY']}"}
        answer = httpx.get(f"{self.url}/admin{path}", headers=key, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def play(self, traffic: Sequence[Utterance]) -> list[Heard]:
        """Send every request once, and wait until every draw has both answers."""
        heard = asyncio.run(self._played(traffic))
        self._drawn()
        return heard

    def correct(self, heard: Sequence[Heard], label: str) -> int:
        """Send corrections, as a careless or hostile application would."""
        count = 0
        with httpx.Client(base_url=self.url, headers=_auth(), timeout=10) as client:
            for one in heard:
                body = {"request_id": one.id, "correction": label}
                count += client.post("/v1/feedback", json=body).status_code == 200
        return count

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``understudy ARGUMENTS`` with this configuration, in a group of its own."""
        return subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-m", "gateway.cli", *arguments, "--config", str(self.config)],
            env={**os.environ, **KEYS}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=_with_parent,  # noqa: PLW1509  one thread
        )  # fmt: skip

    def stage(self) -> str | None:
        """The stage that a run is in."""
        with closing(place_of(load_config(self.config), {}).ledger()) as ledger:
            runs = ledger.runs(TASK, 1)
            stages = ledger.stages(runs[0].id) if runs and runs[0].ended_at is None else []
        return stages[-1].name if stages else None

    def kill_in(self, process: subprocess.Popen[bytes], stage: str, timeout_s: float) -> bool:
        """Kill a run without warning once it is in a stage; False where it never was."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and process.poll() is None:
            if self.stage() == stage:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.02)
        return False

    def follows(self, student: str | None, timeout_s: float = 15.0) -> bool:
        """Whether the gateway serves a version, after a while."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.admin(f"/tasks/{TASK}")["student"] == student:
                return True
            time.sleep(0.1)
        return False

    def _start(self) -> None:
        children, ports = self.children, self.ports
        python = [sys.executable, "-m"]
        files = [a for p in sorted(CLINC150.glob("*.gz")) for a in ("--data", str(p))]
        teacher = children.start(
            "teacher",
            [*python, "deploy.reference_teacher", *files, "--port", str(ports["teacher"]),
             "--knob", "latency_ms=5", "--knob", "token_ms=0"],
            {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        classifier = start_classifiers(children, ports["classifier"], ROOT / ".cache/encoders")
        vllm: tuple[Child, VllmSettings] | None = None
        if self.lora:
            settings = VllmSettings(VLLM_PYTHON, BASE, ports["vllm"])
            vllm = start_vllm(children, settings), settings
        wait_ready(teacher, f"http://127.0.0.1:{ports['teacher']}/v1/models", 60)
        gateway = children.start(
            "gateway", [*python, "gateway.cli", "serve", "--config", str(self.config)], KEYS
        )
        classifiers_ready(classifier, ports["classifier"])
        wait_ready(gateway, f"{self.url}/readyz", 60)
        if vllm is not None:
            vllm_ready(*vllm)

    async def _played(self, traffic: Sequence[Utterance]) -> list[Heard]:
        slots = asyncio.Semaphore(CONCURRENCY)
        async with httpx.AsyncClient(base_url=self.url, headers=_auth(), timeout=120) as client:

            async def one(utterance: Utterance) -> Heard:
                async with slots:
                    body = {"model": TASK, "messages": chat(utterance)}
                    answer = await client.post("/v1/chat/completions", json=body)
                answer.raise_for_status()
                said = answer.json()["choices"][0]["message"]["content"]
                by, why = (answer.headers[f"x-understudy-{n}"] for n in ("served-by", "reason"))
                return Heard(answer.headers["x-request-id"], utterance, said, by, why)

            return list(await asyncio.gather(*(one(u) for u in traffic)))

    def _drawn(self) -> None:
        place = place_of(load_config(self.config), {})
        until = time.monotonic() + DRAWS_S
        with closing(place.reader()) as store:
            while time.monotonic() < until:
                if not store.pending_draws(1):
                    return
                time.sleep(0.2)
        raise TimeoutError(f"draws are still waiting after {DRAWS_S:g} s")


def _with_parent() -> None:
    """A simulation that is interrupted leaves no run behind."""
    end_with_parent(signal.SIGTERM)


def _auth() -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS['UNDERSTUDY_KEY']}"}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
