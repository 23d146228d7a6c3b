"""Two gateways over one Postgres before two student replicas, and users behind a load balancer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.store.place import Place
from tests.fakes.answers import teacher_says
from tests.fakes.postgres import Postgres
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, PLAIN_KEY, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream
from tests.fakes.versions import TASK, add_version

URL = "POSTGRES_URL"
ADMIN_KEY = "us-admin-key"
USERS = 8
NAMES = ("one", "two")
PROBED_S = 0.1


@dataclass(slots=True)
class Tally:
    """What the users got: ids of whole answers, and whatever else by its kind."""

    ended: set[str] = field(default_factory=set)
    served_by: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Pair:
    """Who there is. ``ready`` are the gateways that the load balancer sends users to."""

    folder: Path
    data: dict[str, Any]
    url: str
    place: Place
    versions: list[str]
    replicas: list[FakeReplica]
    gateways: dict[str, GatewayProcess] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    stacks: dict[str, AsyncExitStack] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        """A gateway with its own outbox; it is given users once it says that it is ready."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        data = {**self.data, "store": f"sqlite:///{folder / 'outbox.db'}"}
        stack = self.stacks[name] = AsyncExitStack()
        # Longer than the load balancer takes to notice.
        listen = {"drain_delay_s": 5 * PROBED_S, "drain_s": 10}
        env = {URL: self.url, "ADMIN_KEY": ADMIN_KEY}
        running = gateway_process(folder, data, listen, env)
        self.gateways[name] = await stack.enter_async_context(running)

    async def stop(self, name: str) -> int | None:
        """As a rollout does it: SIGTERM, and wait."""
        gateway = self.gateways[name]
        gateway.terminate()
        code = await gateway.process.wait()
        await self.stacks[name].aclose()
        return code

    async def balance(self) -> None:
        """Look every gateway's ``/readyz`` up, as Kubernetes does, until cancelled."""
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                self.ready = [n for n, g in list(self.gateways.items()) if await _ready(client, g)]
                await asyncio.sleep(PROBED_S)

    async def user(self, number: int, tally: Tally, over: asyncio.Event) -> None:
        """Ask without a pause, each time another gateway."""
        async with httpx.AsyncClient(
            headers={"authorization": f"Bearer {KEY}"}, timeout=20
        ) as client:
            while not over.is_set():
                number += 1
                if not self.ready:
                    tally.wrong["nobody is ready"] += 1
                    await asyncio.sleep(PROBED_S)
                    continue
                gateway = self.gateways[self.ready[number % len(self.ready)]]
                await _ask_once(client, gateway, number, tally)

    @contextlib.asynccontextmanager
    async def under_load(self) -> AsyncIterator[Tally]:
        """Users at work meanwhile."""
        tally, over = Tally(), asyncio.Event()
        balancer = asyncio.create_task(self.balance())
        while len(self.ready) < len(self.gateways):
            await asyncio.sleep(PROBED_S)
        async with asyncio.TaskGroup() as group:
            for number in range(USERS):
                group.create_task(self.user(number * 1000, tally, over))
            try:
                yield tally
            finally:
                over.set()
        balancer.cancel()
        await asyncio.gather(balancer, return_exceptions=True)

    async def told(self, name: str, key: str = KEY, text: str = IN_DOMAIN) -> dict[str, str]:
        """How a gateway answers now: status, code, who and why."""
        async with httpx.AsyncClient(timeout=20) as client:
            response = await client.post(
                f"{self.gateways[name].url}/v1/chat/completions",
                json=_body(text, stream=False),
                headers={"authorization": f"Bearer {key}"},
            )
        error = response.json().get("error") or {}
        return {
            "status": str(response.status_code),
            "code": str(error.get("code")),
            **{k.removeprefix("x-understudy-"): v for k, v in response.headers.items()},
        }

    async def reaches_both(
        self, change: Callable[[], None], holds: Callable[[dict[str, str]], bool], key: str = KEY
    ) -> float:
        """Seconds from a change in the store until every gateway's answers show it."""
        began = time.monotonic()
        await asyncio.to_thread(change)

        async def seen(name: str) -> None:
            async with asyncio.timeout(20):
                while not holds(await self.told(name, key)):
                    await asyncio.sleep(0.02)

        await asyncio.gather(*map(seen, self.gateways))
        return time.monotonic() - began

    async def shipped(self) -> list[str]:
        """Ids in Postgres once both outboxes are empty."""
        for name in self.gateways:
            outbox = Place(self.folder / name / "outbox.db")
            async with asyncio.timeout(30):
                while await asyncio.to_thread(_waiting, outbox):
                    await asyncio.sleep(0.1)
        with contextlib.closing(self.place.repository()) as store:
            return [row[0] for row in store.connection.execute("SELECT id FROM exchanges")]


def _waiting(outbox: Place) -> int:
    with contextlib.closing(outbox.reader()) as store:
        count: int = store.connection.execute("SELECT count(*) FROM exchanges").fetchone()[0]
    return count


async def _ready(client: httpx.AsyncClient, gateway: GatewayProcess) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get(f"{gateway.url}/readyz")).status_code == 200
    return False


def _body(text: str, *, stream: bool) -> dict[str, Any]:
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {"model": TASK, "messages": chat, "stream": stream}


async def _ask_once(
    client: httpx.AsyncClient, gateway: GatewayProcess, number: int, tally: Tally
) -> None:
    stream = number % 3 == 0
    body = _body(IN_DOMAIN if number % 2 else FAR, stream=stream)
    try:
        response = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        tally.wrong[repr(error)] += 1
        return
    whole = response.status_code == 200 and (not stream or "data: [DONE]" in response.text)
    if not whole:
        tally.wrong[f"{response.status_code} {response.text[:200]}"] += 1
        return
    tally.ended.add(response.headers["x-request-id"])
    tally.served_by[response.headers["x-understudy-served-by"]] += 1


@contextlib.asynccontextmanager
async def pair(folder: Path, server: Postgres) -> AsyncIterator[Pair]:
    """Start all of it; the first of two certified versions serves."""
    teacher = FakeUpstream(teacher_says("apr"))
    replicas = [FakeReplica(), FakeReplica()]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(teacher.running())
        for replica in replicas:
            await stack.enter_async_context(replica.upstream.running())
        urls = [replica.upstream.url for replica in replicas]
        data = config_data(urls[0], teacher.url, folder / "unused.db")
        data["postgres"] = {"url_env": URL}
        data["admin"] = {"key_env": "ADMIN_KEY"}
        task = data["tasks"][0]
        task["student"] = {"base_urls": urls, "timeout_s": 5.0}
        task["router"] = {"hold": "all"}
        place = Place(folder / "unused.db", server.url)
        versions = [add_version(place, folder) for _ in range(2)]
        with contextlib.closing(place.registry()) as registry:
            registry.promote(versions[0], "test", "first", time.time())
        made = Pair(folder, data, server.url, place, versions, replicas)
        for name in NAMES:
            await made.start(name)
        try:
            yield made
        finally:
            for running in made.stacks.values():
                await running.aclose()


async def promote(made: Pair, version: str) -> float:
    """Seconds until both serve another version."""

    def change() -> None:
        with contextlib.closing(made.place.registry()) as registry:
            registry.promote(version, "test", "n", time.time())

    return await made.reaches_both(
        change, lambda told: (told.get("student"), told.get("served-by")) == (version, "student")
    )


async def revoke(made: Pair) -> float:
    """Seconds until neither takes a key any more; it is given back afterwards."""

    def change() -> None:
        with contextlib.closing(made.place.access()) as access:
            access.revoke("plain", "lost", "test", time.time())

    took = await made.reaches_both(change, lambda told: told["status"] == "401", PLAIN_KEY)

    def back() -> None:
        with contextlib.closing(made.place.access()) as access:
            access.restore("plain")

    await made.reaches_both(back, lambda told: told["status"] == "200", PLAIN_KEY)
    return took


async def close_gate(made: Pair) -> float:
    """Seconds until neither lets the student answer, by an operator's word to one of them; it is
    opened again afterwards."""

    def word(open_: bool) -> Callable[[], None]:
        def change() -> None:
            response = httpx.post(
                f"{made.gateways[NAMES[0]].url}/admin/tasks/{TASK}/gate",
                json={"open": open_, "note": "test"},
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
            )
            assert response.status_code == 200, response.text

        return change

    took = await made.reaches_both(word(False), lambda told: told.get("reason") == "gate_closed")
    await made.reaches_both(word(True), lambda told: told.get("served-by") == "student")
    return took
