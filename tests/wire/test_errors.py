"""What a client gets when something is wrong: OpenAI's object, a stable code, never a 500."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import CODES, Code
from gateway.service import Service
from gateway.store.records import Status
from tests.fakes.answers import completion, hangs, refuses, resets
from tests.fakes.rig import FAR, PLAIN_KEY, rig
from tests.fakes.upstream import Received, Wire


def check(response: httpx.Response, status: int, code: Code) -> dict[str, Any]:
    """Shape, status, code and request id of one of our errors."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == CODES[code].type
    assert response.headers["x-request-id"]
    return error


async def test_keys(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        for value in ("", "Bearer", "Bearer wrong", "Basic abc", "us-test-key"):
            response = await r.ask(headers={"authorization": value})
            check(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        # A key in the query string is no key.
        bare = httpx.AsyncClient(base_url=r.url)
        async with bare:
            check(
                await bare.get("/v1/models", params={"key": "us-test-key"}), 401, "invalid_api_key"
            )
        assert not r.stored()


async def test_only_some_keys_may_override(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        plain = {"authorization": f"Bearer {PLAIN_KEY}"}
        assert (await r.ask(headers=plain)).status_code == 200
        route = {**plain, "x-understudy-route": "teacher"}
        check(await r.ask(headers=route), 403, "override_not_allowed")
        check(
            await r.ask(headers=plain, model="banking-intents:student"), 403, "override_not_allowed"
        )


async def test_a_key_sees_only_its_tasks(tmp_path: Path) -> None:
    keys = [{"name": "app", "key_env": "UNDERSTUDY_KEY", "tasks": []}]
    async with rig(tmp_path, top={"keys": keys}) as r:
        check(await r.ask(), 403, "task_not_allowed")
        assert (await r.client.get("/v1/models")).json()["data"] == []
        check(await r.client.get("/v1/models/banking-intents"), 404, "model_not_found")


async def test_models_and_paths(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        check(await r.ask(model="gpt-7"), 404, "model_not_found")
        check(await r.ask(model="banking-intents:other"), 404, "model_not_found")
        check(await r.client.get("/v1/models/none"), 404, "model_not_found")
        check(await r.client.post("/v1/moderations"), 404, "unknown_path")
        check(await r.client.get("/"), 404, "unknown_path")
        check(await r.client.get("/v1/chat/completions"), 405, "method_not_allowed")
        for name in ("banking-intents", "banking-intents:teacher", "gpt-4o-mini"):
            assert (await r.client.get(f"/v1/models/{name}")).json()["id"] == name


async def test_a_claimed_model_is_judged_and_answers_under_its_own_name(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        response = await r.ask(model="gpt-4o-mini")
        assert response.headers["x-understudy-served-by"] == "student"
        assert response.json()["model"] == "gpt-4o-mini"


async def test_unclaimed_models_pass_through_unjudged_and_captured(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"default": {"passthrough": "teacher"}}) as r:
        response = await r.ask(model="gpt-7")
        assert response.headers["x-understudy-served-by"] == "teacher"
        assert response.headers["x-understudy-captured"] == "yes"
        assert r.teacher.requests[-1].body["model"] == "gpt-7"
        assert r.stored()[-1].task == "default"


async def test_large_and_broken_bodies(tmp_path: Path) -> None:
    async with rig(tmp_path, top={"limits": {"body_bytes": 2048}}) as r:
        check(await r.ask("x" * 5000), 413, "request_too_large")
        post = r.client.post
        check(await post("/v1/chat/completions", content=b"{"), 400, "invalid_json")
        check(await post("/v1/chat/completions", content=b"\xff\xfe"), 400, "invalid_json")
        for name in ("x-understudy-route", "x-understudy-hold", "x-understudy-deadline-ms"):
            error = check(await r.ask(headers={name: "-3"}), 400, "invalid_value")
            assert error["param"] == name


async def test_no_body_makes_us_fail(tmp_path: Path) -> None:
    """A valid body with random bytes of it replaced: answered or refused, never a 500."""
    rng = random.Random(20261124)
    valid = b'{"model":"banking-intents","messages":[{"role":"user","content":"what is my apr"}]}'
    async with rig(tmp_path) as r:
        for _ in range(400):
            raw = bytearray(valid)
            for _ in range(rng.randrange(1, 6)):
                raw[rng.randrange(len(raw))] = rng.choice(b'{}[]":,0129.eE-\\ntf\x00\xff ')
            response = await r.client.post("/v1/chat/completions", content=bytes(raw))
            assert response.status_code in {200, 400, 404}, (raw, response.text)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_teacher_is_a_clear_5xx_and_the_request_is_kept(
    tmp_path: Path, stream: bool
) -> None:
    async with rig(tmp_path, teacher={"first_byte_timeout_s": 0.8, "connect_timeout_s": 0.8}) as r:
        for handler in (resets, hangs):
            r.teacher.handler = handler
            response = await r.ask(FAR, stream=stream)
            check(response, 503, "teacher_unavailable")
            assert response.headers["x-should-retry"] == "false"
        r.teacher.handler = refuses
        response = await r.ask(FAR, stream=stream)
        assert response.status_code == 502
        assert response.json()["error"]["message"] == "boom"
        assert {e.status for e in r.stored()} == {Status.ERROR}
        assert len(r.stored()) == 3


async def test_an_open_circuit_is_a_503_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.teacher.handler = refuses
        for _ in range(5):
            await r.ask(FAR)
        check(await r.ask(FAR), 503, "teacher_unavailable")
        assert len(r.teacher.requests) == 5


async def test_the_teacher_s_own_4xx_reaches_the_client_once(tmp_path: Path) -> None:
    async def overflow(received: Received, wire: Wire) -> None:
        error = {
            "message": "too long",
            "type": "invalid_request_error",
            "code": 400,
            "param": "messages",
        }
        await wire.json(400, {"error": error})

    async with rig(tmp_path) as r:
        r.teacher.handler = overflow
        response = await r.ask(FAR)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "too long"
        assert response.json()["error"]["code"] == "400"
        assert len(r.teacher.requests) == 1


async def test_retry_after_is_passed_on_and_a_later_attempt_may_win(tmp_path: Path) -> None:
    async def limited(received: Received, wire: Wire) -> None:
        await wire.json(429, {"error": {"message": "slow down"}}, {"retry-after": "1"})

    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.teacher.handler = limited
        response = await r.ask(FAR)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
    (tmp_path / "b").mkdir()
    async with rig(tmp_path / "b") as r:

        async def once(received: Received, wire: Wire) -> None:
            if len(r.teacher.requests) == 1:
                await refuses(received, wire)
            else:
                await wire.json(200, completion("second"))

        r.teacher.handler = once
        response = await r.ask(FAR)
        assert response.json()["choices"][0]["message"]["content"] == "second"
        outcomes = [a.outcome for a in r.stored()[-1].attempts]
        assert outcomes == ["http_500", "ok"]


@pytest.mark.parametrize("body", [{}, [], {"choices": []}, {"error": {"message": "x"}}, "text"])
async def test_a_teacher_s_200_that_is_no_completion_is_a_502(tmp_path: Path, body: Any) -> None:
    async def odd(received: Received, wire: Wire) -> None:
        await wire.json(200, body)

    async with rig(tmp_path) as r:
        r.teacher.handler = odd
        check(await r.ask(FAR), 502, "teacher_error")


async def test_a_wrong_teacher_key_is_our_operator_s_problem_not_the_client_s(
    tmp_path: Path,
) -> None:
    async def forbids(received: Received, wire: Wire) -> None:
        await wire.json(401, {"error": {"message": "bad key sk-teacher"}})

    async with rig(tmp_path) as r:
        r.teacher.handler = forbids
        error = check(await r.ask(FAR), 502, "teacher_error")
        assert "sk-teacher" not in error["message"]


async def test_a_forced_student_that_fails_is_a_502(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = refuses
        check(await r.ask(model="banking-intents:student"), 502, "student_unavailable")


async def test_health_and_metrics(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert (await r.client.get("/healthz")).json() == {"status": "ok"}
        assert (await r.client.get("/readyz")).json() == {
            "ready": True,
            "problems": [],
            "warnings": [],
        }
        await r.ask()
        text = (await r.client.get("/metrics")).text
        assert "understudy_requests_total" in text
        r.service.closing = True
        assert (await r.client.get("/readyz")).status_code == 503
        check(await r.ask(), 503, "shutting_down")
        r.service.closing = False


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_a_fault_of_ours_is_a_clear_500_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    async with rig(tmp_path) as r:
        monkeypatch.setattr(Service, "begin", broken)
        monkeypatch.setattr(Service, "forward", broken)
        response = await r.client.post(path, json={"model": "banking-intents", "input": "x"})
        check(response, 500, "internal_error")
        assert "secret detail" not in response.text
        assert r.service.load.total == 0
