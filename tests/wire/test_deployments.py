"""The gateway follows the registry: promotion, canary, rollback, replicas that forget."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import deployer, reconciler, rolling_back
from gateway.app import create_app
from gateway.service import Service
from gateway.settings import Config
from gateway.store.audits import EventKind
from gateway.store.ledger import RunState
from gateway.store.place import Place
from gateway.store.records import DrawState, Filter
from gateway.store.students import Kind, Registry
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import IN_DOMAIN, KEY, SECRETS, SYSTEM, config_data, encoders, serving
from tests.fakes.upstream import FakeUpstream
from tests.fakes.versions import TASK, add_version


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "EVERY_S", 0.05)
    monkeypatch.setattr(rolling_back, "EVERY_S", 0.05)
    monkeypatch.setattr(deployer, "POLL_S", 0.05)


@dataclass(slots=True)
class Site:
    """A gateway whose task is served from the registry."""

    place: Place
    registry: Registry
    replicas: list[FakeReplica]
    service: Service
    client: httpx.AsyncClient
    folder: Path

    async def ask(self, text: str = IN_DOMAIN, **body: Any) -> httpx.Response:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        sent = {"model": TASK, "messages": messages, **body}
        return await self.client.post("/v1/chat/completions", json=sent)

    async def until(self, student: str | None, canary: str | None = None) -> float:
        """Wait until the gateway follows; seconds that it took."""
        started = time.monotonic()
        while time.monotonic() - started < 10:
            task = self.service.tasks.get(TASK)
            assert task is not None
            live = task.settings.student.model if task.settings.student else None
            beside = task.canary.settings.student if task.canary else None
            if (live, beside.model if beside else None) == (student, canary):
                return time.monotonic() - started
            await asyncio.sleep(0.01)
        raise AssertionError(f"the gateway serves {live}, not {student}")

    async def ready(self, student: str, replicas: int) -> None:
        """Wait until so many replicas may be asked for a version."""
        for _ in range(500):
            found = [s for s in self.service.deployer.students() if s.settings.model == student]
            if found and len(found[0].ready) == replicas:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{student} is not ready on {replicas} replicas")


@contextlib.asynccontextmanager
async def site(
    folder: Path,
    count: int = 1,
    before: int = 0,
    top: dict[str, Any] | None = None,
    **risk: Any,
) -> AsyncIterator[Site]:
    """Start it; ``before`` versions are certified and the first of them serves already."""
    replicas = [FakeReplica() for _ in range(count)]
    teacher = FakeUpstream(teacher_says("teacher says"))
    place = Place(folder / "understudy.db")
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica.upstream.running())
        await stack.enter_async_context(teacher.running())
        urls = [replica.upstream.url for replica in replicas]
        data = {**config_data(urls[0], teacher.url, place.path), **(top or {})}
        task = data["tasks"][0]
        task["student"] = {"base_urls": urls, "classifier_urls": urls, "timeout_s": 5.0}
        task["router"] = {"hold": "all"}
        task["risk"] = {"draw_rate": 0.0, **risk}
        registry = place.registry()
        stack.callback(registry.close)
        names = [add_version(place, folder) for _ in range(before)]
        if names:
            registry.promote(names[0], "test", "n", time.time())
        service = Service(Config(**data), SECRETS, random.Random(1), encoders())
        url = await stack.enter_async_context(serving(create_app(service)))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
        )
        yield Site(place, registry, replicas, service, client, folder)


async def test_a_cold_task_draws_and_then_serves_what_is_promoted(tmp_path: Path) -> None:
    async with site(tmp_path, draw_rate=0.5, unproven_draw_rate=1.0) as s:
        answer = await s.ask()
        assert answer.headers["x-understudy-reason"] == "no_student"
        assert "x-understudy-student" not in answer.headers
        name = add_version(s.place, s.folder)
        s.replicas[0].answers[name] = student_says(["apr"])
        s.registry.promote(name, "test", "n", time.time())
        await s.until(name)
        await s.ready(name, 1)
        served = await s.ask()
        assert served.headers["x-understudy-served-by"] == "student"
        assert served.headers["x-understudy-student"] == name
        assert s.replicas[0].loaded[name].endswith("students/v1")
    with contextlib.closing(s.place.reader()) as store:
        cold, warm = store.read(Filter())
    assert cold.draw is not None
    assert (cold.draw.state, cold.draw_p, cold.student) == (DrawState.ALONE, 1.0, None)
    assert warm.student == name


async def test_what_serves_at_the_start_is_what_the_registry_says(tmp_path: Path) -> None:
    async with site(tmp_path, before=2) as s:
        await s.until("banking-intents@v1")
        assert (await s.ask()).headers["x-understudy-student"] == "banking-intents@v1"


async def test_rollback_is_in_force_within_a_second_and_nothing_fails(tmp_path: Path) -> None:
    """Under load: a promotion, then a rollback; every request is answered by one of the two."""
    async with site(tmp_path, before=2) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        await s.until(one)
        seen: list[tuple[float, str | None, int]] = []
        over = asyncio.Event()

        async def user(number: int) -> None:
            while not over.is_set():
                answer = await s.ask(f"{IN_DOMAIN} {number}", stream=number % 2 == 0)
                name = answer.headers.get("x-understudy-student")
                seen.append((time.monotonic(), name, answer.status_code))

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(user(number))
            await asyncio.sleep(0.3)
            s.registry.promote(two, "test", "n", time.time())
            await s.until(two)
            await asyncio.sleep(0.3)
            back = time.monotonic()
            s.registry.roll_back(TASK, "test", "n", time.time())
            await s.until(one)
            await asyncio.sleep(0.5)
            over.set()
        assert {status for _, _, status in seen} == {200}
        assert {name for _, name, _ in seen} == {one, two}
        last = max(at for at, name, _ in seen if name == two)
        assert last - back < 1.0
        assert any(at > last and name == one for at, name, _ in seen)


async def test_a_canary_is_sticky_and_gets_its_share(tmp_path: Path) -> None:
    async with site(tmp_path, before=2) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        s.registry.promote(two, "test", "n", time.time(), share=0.3)
        await s.until(one, two)
        await s.ready(two, 1)
        arms: dict[int, set[str]] = {n: set() for n in range(60)}
        for _ in range(2):
            for number, names in arms.items():
                answer = await s.ask("apr", user=f"user {number}")
                names.add(answer.headers["x-understudy-student"])
        assert all(len(names) == 1 for names in arms.values())
        share = Counter(next(iter(names)) for names in arms.values())[two] / len(arms)
        assert 0.1 < share < 0.55
        s.registry.promote(two, "test", "n", time.time())
        await s.until(two)
        assert (await s.ask()).headers["x-understudy-student"] == two
    with contextlib.closing(s.place.reader()) as store:
        by_arm = {(e.arm, e.student) for e in store.read(Filter())}
    assert by_arm == {("incumbent", one), ("canary", two), ("incumbent", two)}


async def test_a_canary_that_fails_is_ended_without_being_asked(tmp_path: Path) -> None:
    async with site(tmp_path, before=2) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        await s.until(one)
        s.replicas[0].answers[two] = student_says(["x"], finish="length")
        for upstream in (u for st in s.service.deployer.students() for u in st.upstreams):
            upstream.breaker.threshold = 10**9
        s.registry.promote(two, "test", "n", time.time(), share=0.5)
        await s.until(one, two)
        task = s.service.tasks.get(TASK)
        assert task is not None and task.canary is not None and task.canary.student is not None
        await s.ready(two, 1)
        for upstream in task.canary.student.upstreams:
            upstream.breaker.threshold = 10**9
        for number in range(600):
            assert (await s.ask("apr", user=f"user {number}")).status_code == 200
            if (row := s.registry.deployment(TASK)) is not None and row.canary is None:
                break
        await s.until(one, None)
        row = s.registry.deployment(TASK)
        assert row is not None
        assert (row.live, row.by) == (one, "gateway")
        assert "calls failed" in row.note


async def test_a_refuted_version_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """The audit closes the gate at once, and the version before serves again."""
    async with site(tmp_path, before=2, draw_rate=1.0, alpha=0.02, on_unproven="serve") as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        await s.until(one)
        s.replicas[0].answers[two] = student_says(["wrong"])
        s.registry.promote(two, "test", "n", time.time())
        await s.until(two)
        await s.ready(two, 1)
        task = s.service.tasks.get(TASK)
        assert task is not None
        assert task.judge is not None
        task.judge.threshold = 1.1  # it lets pass what its certificate never saw
        for number in range(200):
            await s.ask(f"{IN_DOMAIN} {number}")
            row = s.registry.deployment(TASK)
            if row is not None and row.live == one:
                break
        await s.until(one)
        assert row is not None
        assert "the audit refuted it" in row.note
        events = [e.kind for e in s.service.auditor.store.events(TASK)]
        assert EventKind.REFUTED in events
        assert events.index(EventKind.ROLLED_BACK) < events.index(EventKind.REFUTED)


async def test_a_replica_that_forgot_gets_no_traffic_until_it_is_loaded_and_probed(
    tmp_path: Path,
) -> None:
    async with site(tmp_path, count=2, before=1) as s:
        name = "banking-intents@v1"
        await s.ready(name, 2)
        lost, other = s.replicas
        lost.refuses.add(name)  # it comes back, and cannot load at first
        lost.restart()
        await s.ready(name, 1)
        before = lost.asked(name)
        for _ in range(12):
            answer = await s.ask()
            assert answer.headers["x-understudy-served-by"] == "student"
        assert lost.asked(name) == before
        lost.refuses.clear()
        await s.ready(name, 2)
        await asyncio.gather(*(s.ask(f"{IN_DOMAIN} {n}") for n in range(12)))
        assert lost.asked(name) > before
        assert other.asked(name) >= 12


async def test_a_404_takes_a_replica_out_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, before=1) as s:
        name = "banking-intents@v1"
        await s.ready(name, 1)
        s.replicas[0].refuses.add(name)
        s.replicas[0].restart()
        answers = [await s.ask() for _ in range(5)]
        assert [a.headers["x-understudy-served-by"] for a in answers] == ["teacher"] * 5
        reasons = Counter(a.headers["x-understudy-reason"] for a in answers)
        assert reasons["student_error"] <= 1
        assert reasons["circuit_open"] >= 4


async def test_a_version_that_cannot_be_read_here_changes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, before=2) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        await s.until(one)
        (tmp_path / "routers/v2/manifest.json").write_text("{}")
        s.registry.promote(two, "test", "n", time.time())
        for _ in range(200):
            failed = s.service.metrics.registry.get_sample_value(
                "understudy_deployments_total", {"task": TASK, "outcome": "failed"}
            )
            if failed:
                break
            await asyncio.sleep(0.02)
        assert (await s.ask()).headers["x-understudy-student"] == one


async def test_a_reload_keeps_what_the_registry_says(tmp_path: Path) -> None:
    async with site(tmp_path, before=2) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        s.registry.promote(two, "test", "n", time.time(), share=0.3)
        await s.until(one, two)
        s.service.source = lambda: (s.service.config, SECRETS)
        assert await s.service.reload() == []
        await s.until(one, two)
        assert (await s.ask()).headers["x-understudy-served-by"] == "student"


async def test_metrics_tell_of_runs_that_other_processes_made(tmp_path: Path) -> None:
    async with site(tmp_path, before=1) as s:
        assert "distill_runs_total{" not in (await s.client.get("/metrics")).text
        with contextlib.closing(s.place.ledger()) as ledger:
            run = ledger.start(TASK, "cron", {}, "code", 1.0)
            ledger.begin_stage(run, "split", {}, 2.0)
            ledger.end_stage(run, "split", {"train": 40, "stale": 2}, 3.0)
            ledger.begin_stage(run, "evaluate", {}, 3.0)
            slices = {f"{TASK}@v1": {"apr": 0.5}, f"{TASK}@v2": {"apr": 0.75}}
            ledger.end_stage(run, "evaluate", {"slices": slices}, 3.0)
            ledger.end(run, RunState.REFUSED, "worse", 4.0)
        wanted = (
            'understudy_distill_runs_total{outcome="refused",task="banking-intents"} 1.0',
            'understudy_distill_last_success_timestamp_seconds{task="banking-intents"} 4.0',
            'understudy_distill_examples{state="train",task="banking-intents"} 40.0',
            # Of the version that serves, which is not the candidate.
            'understudy_distill_agreement_ratio{slice="apr",task="banking-intents"} 0.5',
        )
        text = (await s.client.get("/metrics")).text
        assert all(line in text for line in wanted)


async def test_kinds_have_replicas_of_their_own(tmp_path: Path) -> None:
    """A classifier is loaded where classifiers are served, and nowhere else."""
    async with site(tmp_path, count=2) as s:
        task = s.service.config.tasks[0]
        assert task.student is not None
        student = task.student.model_copy(
            update={
                "base_urls": [s.replicas[0].upstream.url],
                "classifier_urls": [s.replicas[1].upstream.url],
            }
        )
        s.service.config = s.service.config.model_copy(
            update={"tasks": [task.model_copy(update={"student": student})]}
        )
        name = add_version(s.place, s.folder, Kind.CLASSIFIER)
        s.registry.promote(name, "test", "n", time.time())
        await s.until(name)
        await s.ready(name, 1)
        assert name in s.replicas[1].loaded
        assert name not in s.replicas[0].loaded


async def test_what_must_not_be_trained_on_is_stored_so(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        for value, status in (("no", 200), ("yes", 200), ("maybe", 400)):
            messages = [{"role": "user", "content": value}]
            answer = await s.client.post(
                "/v1/chat/completions", json={"model": TASK, "messages": messages},
                headers={"x-understudy-training": value},
            )  # fmt: skip
            assert answer.status_code == status
        assert answer.json()["error"]["param"] == "x-understudy-training"
    with contextlib.closing(s.place.reader()) as store:
        assert [e.no_train for e in store.read(Filter())] == [True, False]
