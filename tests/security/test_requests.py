"""Requests that try to reach, to smuggle or to learn what they should not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.protocol import GatewayProtocol
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, Rig, rig
from tests.fakes.upstream import FakeUpstream, Received, Wire


async def raw(r: Rig, data: bytes) -> bytes:
    """Bytes to the gateway's socket, and what comes back within half a second."""
    url = httpx.URL(r.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(data)
    await writer.drain()
    answer = b""
    try:
        async with asyncio.timeout(0.5):
            while part := await reader.read(65536):
                answer += part
    except TimeoutError:
        pass
    finally:
        writer.close()
    return answer


def request(path: str, *lines: str, body: bytes = b"") -> bytes:
    """A request as it is, well formed or not."""
    head = [f"POST {path} HTTP/1.1", *lines, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


async def test_no_field_of_a_request_makes_the_gateway_call_somewhere(tmp_path: Path) -> None:
    async def never(received: Received, wire: Wire) -> None:
        await wire.json(200, {})

    trap = FakeUpstream(never)
    async with trap.running(), rig(tmp_path) as r:
        here = trap.url
        image = {"type": "image_url", "image_url": {"url": f"{here}/a.png"}}
        await r.ask(
            FAR,
            base_url=here, api_base=here, endpoint=here, proxy=here, metadata={"url": here},
            headers={"x-understudy-base-url": here, "x-forwarded-host": f"127.0.0.1:{trap.port}"},
        )  # fmt: skip
        await r.ask(messages=[{"role": "user", "content": [image]}])
        await r.ask(response_format={"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"$ref": f"{here}/schema"}}})  # fmt: skip
        for host in (f"127.0.0.1:{trap.port}", "evil.test", "[::1]", "a b"):
            await r.ask(IN_DOMAIN, headers={"host": host})
        assert not trap.requests


@pytest.mark.parametrize("path", [
    "/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/%2e%2e/admin/tasks",
    "//v1/chat/completions/", "/v1/chat/completions%00", "/v1/embeddings/../../metrics",
])  # fmt: skip
async def test_odd_paths_lead_nowhere(tmp_path: Path, path: str) -> None:
    async with rig(tmp_path) as r:
        answer = await raw(r, request(path, "host: x", f"authorization: Bearer {KEY}", body=b"{}"))
        assert answer.split(b" ")[1] in {b"404", b"405"}
        assert not r.teacher.requests


async def test_a_key_in_the_query_string_opens_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as r, httpx.AsyncClient(base_url=r.url) as client:
        for name in ("key", "api_key", "api-key", "authorization", "access_token"):
            answer = await client.post("/v1/chat/completions", params={name: KEY}, json={})
            assert answer.status_code == 401


async def test_headers_cannot_be_smuggled_in_or_out(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        body = json.dumps({"model": "x\r\nset-cookie: a=b",
                           "messages": [{"role": "user", "content": FAR}]}).encode()  # fmt: skip
        auth = f"authorization: Bearer {KEY}"
        answer = await raw(r, request("/v1/chat/completions", "host: x", auth, body=body))
        assert b"\r\nset-cookie" not in answer.split(b"\r\n\r\n")[0]
        both = request("/v1/chat/completions", "host: x", auth, "transfer-encoding: chunked",
                       body=b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")  # fmt: skip
        answer = await raw(r, both)
        assert b"understudy_requests" not in answer
        asked = {"x-request-id": "chosen", "x-understudy-served-by": "student"}
        mine = await r.ask(FAR, headers=asked)
        assert mine.headers["x-request-id"] != "chosen"
        assert mine.headers.get_list("x-understudy-served-by") == ["teacher"]
        assert "x-request-id" not in r.teacher.requests[-1].headers


async def test_no_origin_is_let_in(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        asked = {"origin": "https://evil.test", "access-control-request-method": "POST"}
        preflight = await r.client.options("/v1/chat/completions", headers=asked)
        answer = await r.ask(IN_DOMAIN, headers={"origin": "https://evil.test"})
        for response in (preflight, answer):
            assert not [h for h in response.headers if h.startswith("access-control")]
        assert preflight.status_code == 405


async def test_what_a_client_writes_does_not_break_a_log_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with rig(tmp_path, student={"features": []}) as r:
        r.teacher.handler = r.student.handler = _refuses_oddly
        await r.ask('x\n{"event":"forged"}')
        lines = capsys.readouterr().err.splitlines()
        events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
        assert events
        assert "forged" not in events


async def _refuses_oddly(received: Received, wire: Wire) -> None:
    await wire.json(500, {"error": {"message": '\n{"event":"forged"}', "type": "x"}})


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nho",
    ],
    ids=["silence", "first", "second"],
)
async def test_a_head_that_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(GatewayProtocol, "head_timeout_s", 0.3)
    async with rig(tmp_path) as r:
        url = httpx.URL(r.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()  # to the end: the gateway closes
        writer.close()
        if sent:
            told, _, body = answer.rpartition(b"\r\n\r\n")
            assert b"HTTP/1.1 408 " in told
            assert json.loads(body)["error"]["code"] == "request_timeout"
            assert told.count(b"200 OK") == sent.count(b"\r\n\r\n")
        else:  # a connection that a pool opened early hears nothing that it could misunderstand
            assert answer == b""
        assert (await r.ask(FAR)).status_code == 200


async def test_a_slow_body_is_not_cut_by_the_head_s_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GatewayProtocol, "head_timeout_s", 0.2)
    body = json.dumps({"model": "banking-intents",
                       "messages": [{"role": "user", "content": FAR}]}).encode()  # fmt: skip
    async with rig(tmp_path) as r:

        async def slowly() -> AsyncIterator[bytes]:
            for half in (body[:20], body[20:]):
                yield half
                await asyncio.sleep(0.5)

        response = await r.client.post("/v1/chat/completions", content=slowly())
        assert response.status_code == 200
