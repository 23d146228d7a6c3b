"""``make demo``: everything on loopback, real traffic, a live table."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from openai import AsyncOpenAI
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.demo.checks import problems
from deploy.demo.play import Tally, play
from deploy.demo.processes import Child, Children, ProcessDied, wait_ready
from deploy.demo.report import commit_ms, live_table, money, money_so_far, summary
from deploy.demo.task import TASK, traffic
from deploy.demo.vllm import VllmSettings, load_adapter, start_vllm, vllm_ready
from gateway.auditor import POLL_S
from gateway.config_file import load_config
from gateway.settings import Config
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from gateway.task_settings import Task

ROOT = Path(__file__).resolve().parents[2]
CLINC150 = ROOT / "tests/data/clinc150"
ARTEFACTS = ROOT / "deploy/demo/artefacts" / TASK
CONCURRENCY = 6
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Options:
    """What the environment chooses: ports, number of requests, stay or end."""

    gateway_port: int
    student_port: int
    teacher_port: int
    requests: int
    once: bool
    folder: Path
    picture: Path | None
    """Where to draw the last table, as SVG."""

    @classmethod
    def read(cls) -> Options:
        """From ``GATEWAY_PORT``, ``STUDENT_PORT``, ``TEACHER_PORT``, ``REQUESTS``, ``ONCE``,
        ``PICTURE``."""
        env = os.environ
        return cls(
            int(env.get("GATEWAY_PORT") or 8080),
            int(env.get("STUDENT_PORT") or 8001),
            int(env.get("TEACHER_PORT") or 8002),
            int(env.get("REQUESTS") or 600),
            env.get("ONCE") == "1",
            ROOT / "var/demo",
            Path(env["PICTURE"]) if env.get("PICTURE") else None,
        )

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Every port with what it is for."""
        return [("gateway", self.gateway_port), ("student", self.student_port),
                ("teacher", self.teacher_port)]  # fmt: skip


def main() -> int:
    """Run the demo; returns the exit code."""
    started = time.monotonic()
    options = Options.read()
    vllm = VllmSettings(
        ROOT / ".venv-student/bin/python", ROOT / ".cache/base/smollm2-135m-instruct",
        options.student_port,
    )  # fmt: skip
    found = problems(options.ports, vllm.python)
    for problem in found:
        print(f"demo: {problem}", file=sys.stderr)
    if found:
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    shutil.rmtree(options.folder, ignore_errors=True)
    keys = {
        "UNDERSTUDY_KEY": f"us-{secrets.token_hex(12)}",
        "UNDERSTUDY_ADMIN_KEY": f"us-admin-{secrets.token_hex(12)}",
        "TEACHER_KEY": secrets.token_hex(12),
    }
    try:
        with Children(options.folder / "logs") as children:
            return _run(children, options, vllm, keys, started)
    except ProcessDied as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _run(
    children: Children, options: Options, vllm: VllmSettings, keys: dict[str, str], started: float
) -> int:
    config_file = _write_config(options)
    config = load_config(config_file)
    console.print("starting vLLM with the student, the reference teacher and the gateway …")
    rented = time.monotonic()
    server = start_vllm(children, vllm)
    teacher = _start_teacher(children, options, keys)
    gateway = children.start(
        "gateway",
        [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config_file)],
        keys,
    )
    wait_ready(teacher, f"http://127.0.0.1:{options.teacher_port}/v1/models", 60)
    wait_ready(gateway, f"http://127.0.0.1:{options.gateway_port}/readyz", 60)
    took = vllm_ready(server, vllm)
    load_adapter(vllm, f"{TASK}@v1", ARTEFACTS / "student/v1")
    console.print(f"ready: vLLM took {took:.0f} s; all logs are in {options.folder / 'logs'}")
    tally = Tally()
    asyncio.run(_traffic(options, keys["UNDERSTUDY_KEY"], tally, config.tasks[0], rented))
    if tally.first_at is not None:
        console.print(f"first judged request {tally.first_at - started:.0f} s after the start")
    result = _result(config, tally, time.monotonic() - rented, keys["UNDERSTUDY_ADMIN_KEY"])
    if options.once:
        print(json.dumps(result))
        return 0 if tally.failed == 0 else 1
    console.print_json(json.dumps(result))
    _invite(options, keys, config_file)
    _stay(gateway, (server, teacher))
    return 0


def _write_config(options: Options) -> Path:
    """The shipped file with this run's ports."""
    data = yaml.safe_load((ROOT / "deploy/demo/understudy.yaml").read_text())
    data["listen"]["port"] = options.gateway_port
    task = data["tasks"][0]
    task["teacher"]["base_url"] = f"http://127.0.0.1:{options.teacher_port}/v1"
    task["student"]["base_urls"] = [f"http://127.0.0.1:{options.student_port}/v1"]
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def _start_teacher(children: Children, options: Options, keys: dict[str, str]) -> Child:
    files = [arg for path in sorted(CLINC150.glob("*.gz")) for arg in ("--data", str(path))]
    command = [
        sys.executable, "-m", "deploy.reference_teacher", *files,
        "--port", str(options.teacher_port), "--api-key-env", "TEACHER_KEY",
        "--knob", "latency_ms=600",
    ]  # fmt: skip
    return children.start("teacher", command, {**keys, "PYTHONPATH": str(ROOT)})


async def _traffic(options: Options, key: str, tally: Tally, task: Task, rented: float) -> None:
    rows = traffic(CLINC150, options.requests)
    url = f"http://127.0.0.1:{options.gateway_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
        with Live(console=console, refresh_per_second=4) as live:

            def show() -> None:
                cost = money_so_far(tally, task, time.monotonic() - rented)
                live.update(live_table(tally, len(rows), cost))

            await play(client, rows, tally, CONCURRENCY, show)
    if options.picture is not None:
        cost = money_so_far(tally, task, time.monotonic() - rented)
        _draw(options.picture, live_table(tally, len(rows), cost))


def _draw(path: Path, table: Table) -> None:
    """The table as a terminal shows it; with fonts of the reader's own."""
    paper = Console(record=True, width=100, file=io.StringIO())
    paper.print(table)
    drawn = paper.export_svg(title="make demo")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


def _result(config: Config, tally: Tally, rented_s: float, admin_key: str) -> dict[str, Any]:
    task = config.tasks[0]
    assert task.router is not None
    assert task.router.artefact is not None
    manifest = json.loads((task.router.artefact / "manifest.json").read_text())
    with closing(SqliteStore.read_only(Path(config.store.removeprefix("sqlite:///")))) as store:
        _await_draws(store)
        cost = money(tally, task, store, rented_s)
        console.print(f"saved {cost.saved_share:.0%} of the teacher-only bill")
        gateway = f"http://127.0.0.1:{config.listen.port}"
        metrics = httpx.get(f"{gateway}/metrics").text
        found = summary(tally, store, manifest["certificate"], cost, commit_ms(metrics))
        return {**found, "audit": _audit(gateway, admin_key)}


def _audit(gateway: str, admin_key: str) -> dict[str, Any]:
    """What the live audit says, once it has applied the last labels."""
    time.sleep(2 * POLL_S)
    asked = httpx.get(
        f"{gateway}/admin/tasks/{TASK}", headers={"authorization": f"Bearer {admin_key}"}
    )
    audit: dict[str, Any] = asked.raise_for_status().json()["audit"]
    console.print(
        f"audit: {audit['status']}, {audit['errors']} of {audit['labels']} labels disagree, risk "
        f"between {audit['risk_lower_bound']:.4f} and {audit['risk_upper_bound']:.4f}"
    )
    return audit


def _await_draws(store: SqliteStore, timeout_s: float = 60.0) -> None:
    """The second halves of draws are asked for after live traffic."""
    deadline = time.monotonic() + timeout_s
    while store.pending_draws(1) and time.monotonic() < deadline:
        time.sleep(0.5)
    done = sum(1 for e in store.read(Filter(drawn=True)) if e.draw and e.draw.agrees is not None)
    console.print(f"{done} draws have both answers")


def _invite(options: Options, keys: dict[str, str], config: Path) -> None:
    url = f"http://127.0.0.1:{options.gateway_port}/v1"
    shown, key = os.path.relpath(config), keys["UNDERSTUDY_KEY"]
    admin = f"http://127.0.0.1:{options.gateway_port}/admin/tasks/{TASK}"
    print(
        f"""
Try it (Ctrl-C ends everything):

  curl -si {url}/chat/completions -H 'authorization: Bearer {key}' \\
    -d '{{"model": "{TASK}", "messages": [{{"role": "user", "content": "what is my apr"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="{key}")
  answer = client.chat.completions.with_raw_response.create(
      model="{TASK}", messages=[{{"role": "user", "content": "who won the cup in 1998"}}])
  print(answer.headers["x-understudy-served-by"], answer.parse().choices[0].message.content)

  curl -s {admin} -H 'authorization: Bearer {keys["UNDERSTUDY_ADMIN_KEY"]}'

  .venv/bin/understudy gate show --config {shown}
  .venv/bin/understudy replay --config {shown} --alpha 0.05
  .venv/bin/understudy captures list --config {shown}
  .venv/bin/understudy explain --config {shown} "my card was swallowed"
""",
        flush=True,
    )


def _stay(gateway: Child, upstreams: tuple[Child, ...]) -> None:
    """Until Ctrl-C. An upstream may be killed to see what the gateway does then."""
    told: set[str] = set()
    while gateway.popen.poll() is None:
        for child in upstreams:
            if child.popen.poll() is not None and child.name not in told:
                told.add(child.name)
                console.print(f"{child.name} ended; the gateway goes on without it")
        time.sleep(0.5)
    raise ProcessDied(f"{gateway.name} ended:\n{gateway.tail()}")


if __name__ == "__main__":
    sys.exit(main())
