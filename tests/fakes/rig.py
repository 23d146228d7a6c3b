"""A gateway between a fake student and a fake teacher, in this process, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from gateway.app import create_app
from gateway.protocol import GatewayProtocol
from gateway.service import Service
from gateway.settings import Config
from gateway.store.records import Draw, DrawState, Exchange, Filter
from gateway.store.sqlite import SqliteStore
from gateway.tasks import TaskRuntime
from router.encoder import Encoders, load_encoders
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.upstream import FakeUpstream

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "deploy/demo/artefacts/banking-intents"
CACHE = ROOT / ".cache/encoders"
SYSTEM = "Name the banking intent."
KEY = "us-test-key"
PLAIN_KEY = "us-plain-key"
TEACHER_KEY = "sk-teacher"
SECRETS = {"UNDERSTUDY_KEY": KEY, "PLAIN_KEY": PLAIN_KEY, "TEACHER_KEY": TEACHER_KEY}
IN_DOMAIN = "what is my apr"
FAR = "please write a haiku about the ocean at night"
ANSWER = ["ap", "r"]


def config_data(student: str, teacher: str, store: Path, /, **task: Any) -> dict[str, Any]:
    """A configuration as its YAML file would hold it; ``task`` replaces parts of the task."""
    base: dict[str, Any] = {
        "name": "banking-intents",
        "match": {"models": ["gpt-4o-mini"]},
        "teacher": {
            "base_url": teacher,
            "model": "big-1",
            "api_key_env": "TEACHER_KEY",
            "price": {"input": 2.5, "output": 10.0},
            "retries": 1,
            "idle_timeout_s": 3.0,
            "first_byte_timeout_s": 5.0,
        },
        "student": {
            "base_urls": [student],
            "model": "banking-intents@v1",
            "timeout_s": 5.0,
        },
        "pin_sampling": True,
        "router": {"artefact": str(ARTEFACTS / "router/v1"), "hold": "all"},
        "risk": {"draw_rate": 0.0},
    }
    for name, value in task.items():
        merged = isinstance(base.get(name), dict) and isinstance(value, dict)
        base[name] = {**base[name], **value} if merged else value
    return {
        "listen": {"port": 0},
        # A busy machine holds the loop of a whole test process up now and then.
        "limits": {"shed_lag_s": 30.0},
        "store": f"sqlite:///{store}",
        "cache": str(CACHE),
        "keys": [
            {"name": "app", "key_env": "UNDERSTUDY_KEY", "may_override": True},
            {"name": "plain", "key_env": "PLAIN_KEY"},
        ],
        "tasks": [base],
    }


@functools.cache
def encoders() -> Encoders:
    """One pair of encoders for every gateway of the test process."""
    return load_encoders(CACHE)


@dataclass(slots=True)
class Rig:
    """Everything a test needs to ask, to break, and to look at the store."""

    student: FakeUpstream
    teacher: FakeUpstream
    service: Service
    url: str
    store: Path
    client: httpx.AsyncClient = field(repr=False)

    async def ask(
        self, text: str = IN_DOMAIN, *, headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """One chat completion; ``body`` replaces or adds fields."""
        sent = {
            "model": "banking-intents",
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
            **body,
        }
        return await self.client.post("/v1/chat/completions", json=sent, headers=headers or {})

    @property
    def task(self) -> TaskRuntime:
        """The task under test."""
        task = self.service.tasks.get("banking-intents")
        assert task is not None
        return task

    def never_break(self) -> None:
        """Keep every breaker closed: for tests of many faults in a row."""
        student = self.task.student
        for upstream in (self.task.teacher.upstream, *(student.upstreams if student else ())):
            upstream.breaker.threshold = 10**9

    def serve_anything(self) -> None:
        """Let the judge accept whatever the student says."""
        assert self.task.judge is not None
        self.task.judge.threshold = 1.1

    def stored(self) -> list[Exchange]:
        """Every exchange on disk, oldest first."""
        with contextlib.closing(SqliteStore.read_only(self.store)) as store:
            return list(store.read(Filter()))

    def last(self) -> Exchange:
        """The newest exchange on disk."""
        with contextlib.closing(SqliteStore.read_only(self.store)) as store:
            return next(store.read(Filter(newest_first=True, limit=1)))

    async def stored_soon(self, count: int) -> list[Exchange]:
        """The exchanges once there are ``count``: for those that nobody waits for."""
        for _ in range(1000):
            if len(rows := self.stored()) >= count:
                return rows
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self.stored())} exchanges are stored, not {count}")

    async def settled(self) -> None:
        """Wait until no upstream call is left open."""
        for _ in range(500):
            if not (self.student.open or self.teacher.open):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("an upstream call is still open")

    async def draws_done(self, count: int, timeout_s: float = 10.0) -> list[Draw]:
        """The draws, once ``count`` have their second answer."""
        for _ in range(int(timeout_s / 0.02)):
            draws = [e.draw for e in self.stored() if e.draw is not None]
            if [d.state for d in draws] == [DrawState.DONE] * count:
                return draws
            await asyncio.sleep(0.02)
        raise AssertionError(f"{draws} are not {count} finished draws")

    def metric(self, name: str, **labels: str) -> float:
        """Value of one sample of the gateway's own registry."""
        metrics = self.service.metrics
        metrics.settle()
        return metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def rig(
    folder: Path,
    *,
    says: str = "teacher says",
    top: dict[str, Any] | None = None,
    seed: int = 1,
    **task: Any,
) -> AsyncIterator[Rig]:
    """Start it. The student answers 'apr' confidently, the teacher what it ``says``."""
    student = FakeUpstream(student_says(ANSWER))
    teacher = FakeUpstream(teacher_says(says))
    async with student.running(), teacher.running():
        store = folder / "understudy.db"
        data = {**config_data(student.url, teacher.url, store, **task), **(top or {})}
        service = Service(Config(**data), SECRETS, random.Random(seed), encoders())
        async with serving(create_app(service)) as url:
            auth = {"authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=url, headers=auth, timeout=20) as client:
                yield Rig(student, teacher, service, url, store, client)


def leaves_after(seconds: float) -> httpx.Timeout:
    """A client that gives up ``seconds`` after its request is sent; connecting may take longer."""
    return httpx.Timeout(20, read=seconds)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """An application under uvicorn on a free port; drained at the end."""
    config = uvicorn.Config(
        app, port=0, http=GatewayProtocol, log_level="error", lifespan="on", ws="none",
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
