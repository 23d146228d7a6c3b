"""Canary secrets never reach the store, a log, a metric or a client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.answers import refuses, student_says
from tests.fakes.process import gateway_process
from tests.fakes.rig import (
    ANSWER,
    FAR,
    IN_DOMAIN,
    KEY,
    PLAIN_KEY,
    SECRETS,
    TEACHER_KEY,
    config_data,
    rig,
)
from tests.fakes.upstream import FakeUpstream, Received, Wire

ADMIN_KEY = "us-admin-canary"
CANARIES = (KEY, PLAIN_KEY, TEACHER_KEY, ADMIN_KEY, "us-wrong-key-canary")


def found(data: bytes) -> list[str]:
    """Canaries that occur in some bytes."""
    return [canary for canary in CANARIES if canary.encode() in data]


async def test_keys_reach_neither_disk_nor_log_nor_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECRETS, "ADMIN_KEY", ADMIN_KEY)

    async def echoes_its_key(received: Received, wire: Wire) -> None:
        assert received.headers["authorization"] == f"Bearer {TEACHER_KEY}"
        await refuses(received, wire)

    student, teacher = FakeUpstream(student_says(ANSWER)), FakeUpstream(echoes_its_key)
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, tmp_path / "store.db", risk={"draw_rate": 1.0})
        data["admin"] = {"key_env": "ADMIN_KEY"}
        async with gateway_process(tmp_path, data) as gateway, gateway.client() as client:
            for text in (IN_DOMAIN, FAR):
                body = {"model": "banking-intents", "messages": [{"role": "user", "content": text}]}
                await client.post("/v1/chat/completions", json=body)
                wrong = {"authorization": "Bearer us-wrong-key-canary"}
                await client.post("/v1/chat/completions", json=body, headers=wrong)
            admin = {"authorization": f"Bearer {ADMIN_KEY}"}
            shown = await client.get("/admin/tasks", headers=admin)
            assert shown.status_code == 200
            assert not found(shown.content)
            order = {"open": False, "note": "a test"}
            gate = "/admin/tasks/banking-intents/gate"
            assert (await client.post(gate, headers=admin, json=order)).status_code == 200
            metrics = (await client.get("/metrics")).content
            gateway.terminate()
            await gateway.process.wait()
    assert not found(metrics)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {"store.db", "gateway.log"} <= {path.name for path in files}
    for path in files:
        assert not found(path.read_bytes()), path


async def test_the_client_s_key_is_not_sent_upstream(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(IN_DOMAIN)
        await r.ask(FAR)
        assert "authorization" not in r.student.requests[0].headers
        assert r.teacher.requests[0].headers["authorization"] == f"Bearer {TEACHER_KEY}"
        for request in (*r.student.requests, *r.teacher.requests):
            assert not [name for name in request.headers if name.startswith("x-understudy")]


@pytest.mark.parametrize(
    "field", ["base_url", "api_base", "api_key", "url", "webhook", "proxy", "extra_headers"]
)
async def test_no_field_of_a_request_chooses_where_it_goes(tmp_path: Path, field: str) -> None:
    """A request names a model; addresses and keys come from the configuration alone."""
    trap = FakeUpstream(refuses)
    extra: dict[str, Any] = {field: trap.url}
    async with trap.running(), rig(tmp_path) as r:
        for text in (IN_DOMAIN, FAR):
            assert (await r.ask(text, **extra)).status_code == 200
        assert not trap.requests


async def test_a_redirecting_upstream_is_not_followed(tmp_path: Path) -> None:
    trap = FakeUpstream(refuses)

    async def redirects(received: Received, wire: Wire) -> None:
        await wire.json(307, {}, {"location": f"{trap.url}/chat/completions"})

    async with trap.running(), rig(tmp_path) as r:
        r.teacher.handler = redirects
        assert (await r.ask(FAR)).status_code == 502
        assert not trap.requests


async def test_header_values_cannot_inject_lines(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        response = await r.ask(model="gpt\r\nx-evil: 1")
        assert response.status_code == 404
        assert "x-evil" not in response.headers
