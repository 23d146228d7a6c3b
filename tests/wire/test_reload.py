"""A changed configuration is taken over while serving; a wrong one changes nothing."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import yaml

from gateway.auth import digest_hex
from gateway.errors import ConfigError
from gateway.settings import Config
from gateway.store.records import Status
from tests.fakes.answers import hangs, student_says, teacher_chunk, teacher_says
from tests.fakes.process import gateway_process
from tests.fakes.rig import (
    ANSWER,
    ARTEFACTS,
    FAR,
    IN_DOMAIN,
    SECRETS,
    SYSTEM,
    Rig,
    config_data,
    rig,
)
from tests.fakes.upstream import FakeUpstream, Received, Wire


async def long_winded(received: Received, wire: Wire) -> None:
    """More than the sockets between it and a client that does not read can hold."""
    await wire.stream()
    await wire.event(teacher_chunk({"role": "assistant", "content": ""}))
    for _ in range(64):
        await wire.event(teacher_chunk({"content": "x" * (1 << 20)}))
    await wire.event(teacher_chunk({}, "stop"))
    await wire.done()


def data_of(r: Rig, /, **task: Any) -> dict[str, Any]:
    """The rig's configuration, changed."""
    return config_data(r.student.url, r.teacher.url, r.store, **task)


async def reloaded(r: Rig, data: dict[str, Any]) -> list[str]:
    """Take a configuration over as SIGHUP does."""
    r.service.source = lambda: (Config(**data), SECRETS)
    return await r.service.reload()


async def test_keys_limits_and_upstreams_change_in_place(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert (await r.ask()).status_code == 200
        second = FakeUpstream(teacher_says("second says"))
        async with second.running():
            data = data_of(r, teacher={"base_url": second.url})
            digests = [digest_hex("us-old"), digest_hex("us-rotated")]
            data["keys"] = [{"name": "app", "sha256": digests}]
            assert await reloaded(r, data) == []
            assert (await r.ask(FAR)).status_code == 401
            for key in ("us-old", "us-rotated"):
                headers = {"authorization": f"Bearer {key}"}
                assert "d says" in (await r.ask(FAR, headers=headers)).text
            assert {e.principal for e in r.stored()} == {"app"}
        assert r.metric("understudy_reloads_total", outcome="taken") == 1


async def test_a_request_under_way_ends_where_it_began(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = teacher_says("first says", pause_s=0.3)
        asked = asyncio.create_task(r.ask(FAR, stream=True))
        while not r.teacher.open:
            await asyncio.sleep(0.005)
        data = data_of(r, teacher={"base_url": "http://127.0.0.1:9/v1", "retries": 0})
        assert await reloaded(r, data) == []
        assert (await asked).text.endswith("data: [DONE]\n\n")
        assert (await r.ask(FAR)).status_code == 503


async def test_what_did_not_change_keeps_what_it_learned(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        before = r.task
        before.teacher.upstream.breaker.failed(0.0)
        assert await reloaded(r, data_of(r)) == []
        after = r.task
        assert after is not before
        assert after.teacher is before.teacher
        assert after.student is before.student
        assert after.judge is before.judge
        assert after.standing is before.standing


async def test_a_bad_artefact_leaves_the_running_version_in_service(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in (ARTEFACTS / "router/v1").iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    tensors = next(bad.glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-7])
    async with rig(tmp_path) as r:
        before = r.task
        problems = await reloaded(r, data_of(r, router={"artefact": str(bad)}))
        assert len(problems) == 1
        assert problems[0].startswith("tasks[0].router.artefact: ")
        assert r.task is before
        assert (await r.ask(IN_DOMAIN)).headers["x-understudy-served-by"] == "student"
        assert r.metric("understudy_reloads_total", outcome="refused") == 1


async def test_an_unreadable_configuration_changes_nothing(tmp_path: Path) -> None:
    def unreadable() -> tuple[Config, dict[str, str]]:
        raise ConfigError(["understudy.yaml: tasks: is required"])

    async with rig(tmp_path) as r:
        r.service.source = unreadable
        assert await r.service.reload() == ["understudy.yaml: tasks: is required"]
        assert (await r.ask()).status_code == 200


async def test_a_file_that_cannot_be_read_is_refused_and_the_next_reload_works(
    tmp_path: Path,
) -> None:
    def forbidden() -> tuple[Config, dict[str, str]]:
        raise PermissionError(13, "Permission denied", "router/v1")

    async with rig(tmp_path) as r:
        r.service.source = forbidden
        r.service.reload_wanted.set()
        while not r.metric("understudy_reloads_total", outcome="refused"):
            await asyncio.sleep(0.005)
        r.service.source = lambda: (Config(**data_of(r)), SECRETS)
        r.service.reload_wanted.set()
        while not r.metric("understudy_reloads_total", outcome="taken"):
            await asyncio.sleep(0.005)
        assert (await r.ask()).status_code == 200


async def test_a_task_that_is_gone_is_gone_and_a_new_path_is_there(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        data = data_of(r)
        data["tasks"][0] |= {"name": "other", "student": None, "router": None, "match": None}
        data |= {"default": {"passthrough": "teacher"}, "passthrough_paths": ["/v1/moderations"]}
        assert await reloaded(r, data) == []
        listed = (await r.client.get("/v1/models")).json()["data"]
        assert [m["id"] for m in listed] == ["other"]
        assert (await r.client.post("/v1/moderations", json={})).status_code == 200
        info = r.service.metrics.exposition()
        assert b"understudy_student_info{" not in info


async def test_sighup_under_load_loses_no_request(tmp_path: Path) -> None:
    student, teacher = FakeUpstream(student_says(ANSWER)), FakeUpstream(teacher_says("t says"))
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, tmp_path / "x.db")
        async with gateway_process(tmp_path, data) as gateway, gateway.client() as client:
            stop = asyncio.Event()
            statuses: list[int] = []

            async def ask() -> None:
                while not stop.is_set():
                    body = {"model": "banking-intents", "messages": [
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": IN_DOMAIN}]}  # fmt: skip
                    answer = await client.post("/v1/chat/completions", json=body)
                    statuses.append(answer.status_code)

            asks = [asyncio.create_task(ask()) for _ in range(4)]
            file = tmp_path / "understudy.yaml"
            for number in range(6):
                changed = yaml.safe_load(file.read_text())
                changed["tasks"][0]["teacher"]["retries"] = number
                file.write_text("tasks: [" if number == 3 else yaml.safe_dump(changed))
                gateway.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.4)
                if number == 3:
                    file.write_text(yaml.safe_dump(changed))
            stop.set()
            await asyncio.gather(*asks)
            assert len(statuses) > 20
            assert set(statuses) == {200}
            log = gateway.log.read_text()
            assert log.count('"event":"reloaded"') >= 4
            refused = next(json.loads(x) for x in log.splitlines() if "reload_refused" in x)
            assert "understudy.yaml: not YAML" in refused["problems"][0]


async def test_a_draining_gateway_goes_on_accepting_for_its_delay(tmp_path: Path) -> None:
    teacher = FakeUpstream(teacher_says("t says"))
    async with teacher.running():
        data = config_data("http://127.0.0.1:9/v1", teacher.url, tmp_path / "x.db")
        listen = {"drain_delay_s": 1.0}
        async with gateway_process(tmp_path, data, listen) as gateway, gateway.client() as client:
            gateway.terminate()
            while (await client.get("/readyz")).status_code != 503:
                await asyncio.sleep(0.01)
            body = {"model": "banking-intents", "messages": [{"role": "user", "content": FAR}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert await asyncio.wait_for(gateway.process.wait(), 10) == 0


async def test_more_in_flight_than_allowed_is_refused_at_once(tmp_path: Path) -> None:
    limits = {"limits": {"max_in_flight": 3}}
    async with rig(tmp_path, top=limits, teacher={"first_byte_timeout_s": 30}) as r:
        r.teacher.handler = hangs
        waiting = [asyncio.create_task(r.ask(FAR)) for _ in range(3)]
        while r.teacher.open < 3:
            await asyncio.sleep(0.005)
        refused = await r.ask(IN_DOMAIN)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await r.settled()
        while r.service.load.total:
            await asyncio.sleep(0.005)
        assert (await r.ask(IN_DOMAIN)).status_code == 200


async def test_a_key_s_own_limit_leaves_the_others_alone(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        data = data_of(r)
        data["keys"][0]["max_in_flight"] = 1
        assert await reloaded(r, data) == []
        r.teacher.handler = hangs
        waiting = asyncio.create_task(r.ask(FAR))
        while not r.teacher.open:
            await asyncio.sleep(0.005)
        refused = await r.ask(IN_DOMAIN)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_requests"
        other = {"authorization": f"Bearer {SECRETS['PLAIN_KEY']}"}
        assert (await r.ask(IN_DOMAIN, headers=other)).status_code == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_client_that_does_not_read_does_not_hold_an_upstream(tmp_path: Path) -> None:
    limits = {"limits": {"send_timeout_s": 0.3}}
    async with rig(tmp_path, top=limits, router={"hold": 32}) as r:
        r.teacher.handler = long_winded
        host, port = httpx.URL(r.url).host, httpx.URL(r.url).port
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        body = json.dumps({"model": "banking-intents", "stream": True,
                           "messages": [{"role": "user", "content": FAR}]}).encode()  # fmt: skip
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                f"authorization: Bearer {SECRETS['UNDERSTUDY_KEY']}\r\n\r\n")  # fmt: skip
        writer.write(head.encode() + body)
        await writer.drain()
        await asyncio.sleep(0.2)
        await r.settled()
        while r.service.load.total:
            await asyncio.sleep(0.01)
        row = (await r.stored_soon(1))[0]
        assert (row.status, row.error) == (Status.INCOMPLETE, "client_gone")
        writer.close()
        del reader
