"""Listed paths go to the default upstream as they are; others do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.answers import hangs
from tests.fakes.rig import KEY, TEACHER_KEY, leaves_after, rig
from tests.fakes.upstream import Received, Wire

TOP: dict[str, Any] = {
    "default": {"passthrough": "teacher"},
    "passthrough_paths": ["/v1/moderations"],
}
BODY = b'{"model": "embed-1",   "input": ["a"], "odd": 1.50}'


async def embeds(received: Received, wire: Wire) -> None:
    """A moderations endpoint; the answer's bytes are odd on purpose."""
    raw = b'{"object": "list",  "data": []}'
    await wire.head(201, {"content-type": "application/json", "content-length": str(len(raw)),
                          "set-cookie": "a=b"})  # fmt: skip
    await wire.raw(raw)


async def test_bytes_and_status_pass_untouched_and_say_so(tmp_path: Path) -> None:
    async with rig(tmp_path, top=TOP) as r:
        r.teacher.handler = embeds
        response = await r.client.post("/v1/moderations", content=BODY)
        assert response.status_code == 201
        assert response.content == b'{"object": "list",  "data": []}'
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-understudy-captured"] == "no"
        assert response.headers["x-request-id"]
        assert "set-cookie" not in response.headers
        received = r.teacher.requests[0]
        assert received.path == "/v1/moderations"
        assert received.headers["authorization"] == f"Bearer {TEACHER_KEY}"
        assert received.body == {"model": "embed-1", "input": ["a"], "odd": 1.5}
        assert not r.stored()


async def test_an_answer_without_a_body_has_no_framing(tmp_path: Path) -> None:
    async def nothing(received: Received, wire: Wire) -> None:
        await wire.head(204, {})

    async with rig(tmp_path, top=TOP) as r:
        r.teacher.handler = nothing
        for _ in range(2):  # on one connection: a chunk too many would be the next one's head
            response = await r.client.post("/v1/moderations", content=BODY)
            assert (response.status_code, response.content) == (204, b"")
            assert not {"transfer-encoding", "content-length"} & set(response.headers)


async def test_only_listed_paths_exist_and_only_for_keys_of_every_task(tmp_path: Path) -> None:
    keys = [{"name": "app", "key_env": "UNDERSTUDY_KEY", "tasks": ["banking-intents"]}]
    async with rig(tmp_path, top={**TOP, "keys": keys}) as r:
        denied = await r.client.post("/v1/moderations", content=BODY)
        assert denied.json()["error"]["code"] == "task_not_allowed"
        for path in ("/v1/files", "/v1/moderations/x", "/v1/../v1/admin"):
            assert (await r.client.post(path, content=BODY)).status_code == 404
        assert (await r.client.get("/v1/moderations")).status_code == 405
        assert not r.teacher.requests


async def test_an_answer_that_is_cut_does_not_end_well(tmp_path: Path) -> None:
    async def cuts(received: Received, wire: Wire) -> None:
        await wire.head(200, {"content-type": "application/json", "content-length": "1000"})
        await wire.raw(b'{"half":')
        wire.reset()

    async with rig(tmp_path, top=TOP) as r:
        r.teacher.handler = cuts
        with pytest.raises(httpx.RemoteProtocolError):
            await r.client.post("/v1/moderations", content=BODY)


async def test_a_dead_upstream_is_a_503_and_a_client_that_leaves_frees_it(tmp_path: Path) -> None:
    async with rig(tmp_path, top=TOP, teacher={"first_byte_timeout_s": 30}) as r:
        r.teacher.handler = hangs
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(base_url=r.url, timeout=leaves_after(0.2)) as impatient:
                auth = {"authorization": f"Bearer {KEY}"}
                await impatient.post("/v1/moderations", content=BODY, headers=auth)
        await r.settled()
        assert (r.teacher.open, r.task.teacher.upstream.in_flight) == (0, 0)

        async def dead(received: Received, wire: Wire) -> None:
            wire.reset()

        r.teacher.handler = dead
        response = await r.client.post("/v1/moderations", content=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "teacher_unavailable",
        )


async def test_a_draining_gateway_takes_no_passthrough_either(tmp_path: Path) -> None:
    async with rig(tmp_path, top=TOP) as r:
        r.service.closing = True
        response = await r.client.post("/v1/moderations", content=BODY)
        assert response.json()["error"]["code"] == "shutting_down"
        assert not r.teacher.requests
