"""One exchange per Idempotency-Key: told again, never asked again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.replays import Claim, Replays, Said
from gateway.store.records import Status
from tests.fakes.answers import refuses, teacher_says
from tests.fakes.rig import FAR, IN_DOMAIN, PLAIN_KEY, leaves_after, rig

KEY: dict[str, str] = {"idempotency-key": "stainless-python-retry-1"}


@pytest.mark.parametrize("text", [IN_DOMAIN, FAR], ids=["student", "teacher"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_comes_again_is_told_again(
    tmp_path: Path, text: str, stream: bool
) -> None:
    async with rig(tmp_path) as r:
        first, again = [await r.ask(text, headers=KEY, stream=stream) for _ in range(2)]
        assert first.status_code == again.status_code == 200
        assert first.content == again.content
        for name, value in first.headers.items():
            if name not in {"date", "transfer-encoding", "content-length"}:
                assert again.headers[name] == value
        assert len(r.stored()) == 1
        assert len(r.student.requests) + len(r.teacher.requests) == 1
        assert r.metric("understudy_idempotent_replays_total") == 1


async def test_those_who_come_meanwhile_wait_for_the_first(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = teacher_says("teacher says", pause_s=0.3)
        answers = await asyncio.gather(*(r.ask(FAR, headers=KEY) for _ in range(6)))
        assert len({a.content for a in answers}) == 1
        assert len(r.stored()) == len(r.teacher.requests) == 1


async def test_keys_belong_to_their_principal_and_to_one_body(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.ask(FAR, headers=KEY)
        other = {**KEY, "authorization": f"Bearer {PLAIN_KEY}"}
        assert (await r.ask(FAR, headers=other)).status_code == 200
        assert len(r.stored()) == 2
        response = await r.ask(f"{FAR} please", headers=KEY)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "idempotency-key"
        assert (await r.ask(FAR, headers={"idempotency-key": "x" * 256})).status_code == 400


async def test_only_a_whole_answer_is_kept(tmp_path: Path) -> None:
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.teacher.handler = refuses
        assert (await r.ask(FAR, headers=KEY)).status_code == 502
        r.teacher.handler = teacher_says("teacher says", pause_s=0.4)
        with contextlib.suppress(httpx.ReadTimeout):
            body: Any = {"model": "banking-intents", "messages": [{"role": "user", "content": FAR}]}
            await r.client.post(
                "/v1/chat/completions", json=body, headers=KEY, timeout=leaves_after(0.1)
            )
        await r.settled()
        response = await r.client.post("/v1/chat/completions", json=body, headers=KEY)
        assert response.status_code == 200
        await asyncio.sleep(0.05)
        statuses = [row.status for row in r.stored()]
        assert sorted(statuses) == sorted([Status.ERROR, Status.INCOMPLETE, Status.COMPLETE])
        assert r.service.replays._claims  # and the next one is told it again
        again = await r.client.post("/v1/chat/completions", json=body, headers=KEY)
        assert again.content == response.content


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 60)), max_size=40))
def test_no_more_is_kept_than_may_be(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        replays, told = Replays(limit_bytes=100), dict[str, bytes]()
        for name, size in steps:
            claim = await replays.claim("app", name, name.encode())
            if isinstance(claim, Said):
                assert claim.body == told[name]
                continue
            assert isinstance(claim, Claim)
            told[name] = bytes(size)
            whole = Said(200, {}, told[name])
            replays.settle(claim, whole if size else None)
            kept = [c.said.result() for c in replays._claims.values()]
            assert sum(len(said.body) for said in kept if said) == replays._bytes <= 100
        with pytest.raises(GatewayError, match="another body"):
            await replays.claim("app", "z", b"1")
            await replays.claim("app", "z", b"2")

    asyncio.run(run())
