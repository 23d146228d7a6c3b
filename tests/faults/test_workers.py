"""Several worker processes behind one port: as one gateway to clients, to Prometheus and to ops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import teacher_says
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import FAR, config_data
from tests.fakes.upstream import FakeUpstream

WORKERS = 3
BODY = {"model": "banking-intents", "messages": [{"role": "user", "content": FAR}]}


@contextlib.asynccontextmanager
async def several(
    folder: Path, pause_s: float = 0.0, **task: Any
) -> AsyncIterator[tuple[GatewayProcess, FakeUpstream]]:
    """Workers before a fake teacher."""
    teacher = FakeUpstream(teacher_says("teacher says", pause_s=pause_s))
    async with teacher.running():
        data = config_data("http://127.0.0.1:9/v1", teacher.url, folder / "x.db",
                           student=None, router=None, **task)  # fmt: skip
        async with gateway_process(folder, data, {"workers": WORKERS}) as gateway:
            await until(lambda: len(gateway.workers) == WORKERS)
            yield gateway, teacher


async def until(holds: Any, seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


async def ask(gateway: GatewayProcess, count: int) -> list[int]:
    """Status codes; each request by a connection of its own, so that every worker gets some."""

    async def one() -> int:
        async with gateway.client() as client:
            return (await client.post("/v1/chat/completions", json=BODY)).status_code

    return await asyncio.gather(*(one() for _ in range(count)))


async def counted(gateway: GatewayProcess) -> float:
    """Requests by the metrics of whichever worker answers."""
    async with gateway.client() as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("understudy_requests_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_workers_share_a_port_a_store_and_their_metrics(tmp_path: Path) -> None:
    async with several(tmp_path) as (gateway, teacher):
        assert await ask(gateway, 40) == [200] * 40
        with contextlib.closing(SqliteStore.read_only(tmp_path / "x.db")) as store:
            assert store.count(Filter()) == 40
        assert {await counted(gateway) for _ in range(8)} == {40.0}  # whoever is asked
        async with gateway.client() as client:
            text = (await client.get("/metrics")).text
        assert "understudy_requests_in_flight 0.0" in text
        assert "pid=" not in text
        assert len(teacher.requests) == 40


async def test_a_killed_worker_is_replaced_and_the_counters_go_on(tmp_path: Path) -> None:
    async with several(tmp_path) as (gateway, _):
        assert await ask(gateway, 12) == [200] * 12
        before = gateway.workers
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: before[0] not in gateway.workers)
        assert await ask(gateway, 12) == [200] * 12  # by the others
        await until(lambda: len(gateway.workers) == WORKERS)
        await asyncio.sleep(2)
        assert await ask(gateway, 12) == [200] * 12
        assert await counted(gateway) == 36
        assert "worker_died" in gateway.log.read_text()
        assert set(before[1:]) < set(gateway.workers)


async def test_sighup_reaches_every_worker_and_cuts_nothing(tmp_path: Path) -> None:
    async with several(tmp_path, pause_s=0.5) as (gateway, _):
        before = gateway.workers
        under_way = asyncio.create_task(ask(gateway, 9))
        await asyncio.sleep(0.2)
        config = yaml.safe_load(gateway.config.read_text())
        config["tasks"][0]["match"] = {"models": ["renamed"]}
        gateway.config.write_text(yaml.safe_dump(config))
        gateway.process.send_signal(signal.SIGHUP)
        assert await under_way == [200] * 9
        await until(lambda: gateway.log.read_text().count('"reloaded"') == WORKERS)
        assert gateway.workers == before

        async def models() -> list[str]:
            async with gateway.client() as client:
                listed = (await client.get("/v1/models")).json()["data"]
                return [model["id"] for model in listed]

        for _ in range(9):
            assert "renamed" in await models()


async def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    async with several(tmp_path, pause_s=2.0) as (gateway, teacher):
        children = gateway.workers
        under_way = asyncio.create_task(ask(gateway, 9))
        await until(lambda: len(teacher.requests) == 9)
        gateway.terminate()
        assert await under_way == [200] * 9
        assert await gateway.process.wait() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    with contextlib.closing(SqliteStore.read_only(tmp_path / "x.db")) as store:
        assert store.count(Filter()) == 9


async def test_workers_outlive_their_supervisor_only_to_drain(tmp_path: Path) -> None:
    async with several(tmp_path) as (gateway, _):
        children = gateway.workers
        gateway.process.kill()  # the supervisor alone
        await gateway.process.wait()
        await until(lambda: not any(_alive(pid) for pid in children))
        port = int(gateway.url.rsplit(":", 1)[1])
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


def _alive(pid: int) -> bool:
    """A zombie is not: nobody of this test waits for a killed supervisor's children."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


async def test_a_worker_that_cannot_start_ends_the_whole(tmp_path: Path) -> None:
    artefact = {"artefact": str(tmp_path / "nowhere")}
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "x.db",
                       router=artefact)  # fmt: skip
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"router\.artefact"):
        async with gateway_process(tmp_path, data, {"workers": WORKERS}):
            pass
    assert time.monotonic() - started < 30


async def test_a_port_that_is_taken_is_said_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "x.db",
                           student=None, router=None)  # fmt: skip
        listen = {"workers": 2, "port": taken.getsockname()[1]}
        with pytest.raises(AssertionError, match="cannot be bound"):
            async with gateway_process(tmp_path, data, listen):
                pass


async def test_a_limit_of_requests_holds_over_all_workers(tmp_path: Path) -> None:
    while time.time() % 60 > 45:
        await asyncio.sleep(0.5)
    async with several(tmp_path) as (gateway, _):
        config = yaml.safe_load(gateway.config.read_text())
        config["keys"][0]["requests_per_minute"] = 10
        gateway.config.write_text(yaml.safe_dump(config))
        gateway.process.send_signal(signal.SIGHUP)
        await until(lambda: gateway.log.read_text().count('"reloaded"') == WORKERS)
        assert set(await ask(gateway, 12)) <= {200, 429}
        await asyncio.sleep(2.2)
        assert set(await ask(gateway, 9)) == {429}


async def test_many_at_once_over_one_store(tmp_path: Path) -> None:
    """Writers in several processes wait for each other, and none gives up."""
    async with several(tmp_path) as (gateway, _):
        limits = httpx.Limits(max_connections=48)
        async with httpx.AsyncClient(base_url=gateway.url, limits=limits, timeout=30) as client:
            client.headers["authorization"] = gateway.client().headers["authorization"]
            posts = [client.post("/v1/chat/completions", json=BODY) for _ in range(600)]
            answers = await asyncio.gather(*posts)
        assert {a.status_code for a in answers} == {200}
        assert {a.headers["x-understudy-captured"] for a in answers} == {"yes"}
        with contextlib.closing(SqliteStore.read_only(tmp_path / "x.db")) as store:
            assert store.ids() == {a.headers["x-request-id"] for a in answers}


async def test_a_worker_that_is_killed_while_it_starts_ends_nobody_else(tmp_path: Path) -> None:
    """The first of its slot: killed, which is not the same as unable to start."""
    async with several(tmp_path) as (gateway, _):
        pass
    data = yaml.safe_load(gateway.config.read_text())
    async with gateway_process(tmp_path, data, {"workers": WORKERS}, ready=False) as again:
        await until(lambda: again.workers)
        os.kill(again.workers[0], signal.SIGKILL)
        await until(lambda: "worker_died" in again.log.read_text())
        await until(lambda: len(again.workers) == WORKERS)
        await again.until_ready()
        assert again.process.returncode is None


async def test_one_worker_serves_before_the_others_take_its_core(tmp_path: Path) -> None:
    async with several(tmp_path) as (gateway, _):
        first, *others = sorted(map(_started_at, gateway.workers))
        # Nobody is ready that soon; started together, they are a few milliseconds apart.
        assert min(others) - first > 0.1


def _started_at(pid: int) -> float:
    """Seconds since the machine started (proc_pid_stat(5), field 22)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
