"""Keys with limits: what a client gets, and how the processes over one store agree."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError
from typer.testing import CliRunner

from gateway.keys import app as keys_command
from tests.fakes.process import gateway_process
from tests.fakes.rig import FAR, KEY, PLAIN_KEY, Rig, config_data, rig

USD = 23 * 2.5e-6 + 3 * 10e-6
"""What one teacher answer costs in the rig: its usage at its price."""


def keys(**limits: Any) -> list[dict[str, Any]]:
    """The rig's two keys, the first of them limited."""
    return [
        {"name": "app", "key_env": "UNDERSTUDY_KEY", "may_override": True, **limits},
        {"name": "plain", "key_env": "PLAIN_KEY"},
    ]


async def early_in_a_minute() -> None:
    """Wait for a minute that does not end within the test."""
    while time.time() % 60 > 50:
        await asyncio.sleep(0.5)


async def codes(r: Rig, count: int, **how: Any) -> list[str]:
    """Error codes of so many requests, ``ok`` for those that were answered."""
    answers = [await r.ask(FAR, **how) for _ in range(count)]
    return ["ok" if a.status_code == 200 else a.json()["error"]["code"] for a in answers]


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_and_tokens_per_minute(tmp_path: Path, stream: bool) -> None:
    await early_in_a_minute()
    async with rig(tmp_path, top={"keys": keys(requests_per_minute=3)}) as r:
        assert await codes(r, 4, stream=stream) == ["ok"] * 3 + ["rate_limit_exceeded"]
        response = await r.ask(FAR)
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 60
        other = {"authorization": f"Bearer {PLAIN_KEY}"}
        assert await codes(r, 2, headers=other) == ["ok", "ok"]
        assert r.metric("understudy_key_refusals_total", key="app", code="rate_limit_exceeded") == 2
        assert len(r.stored()) == 5
        assert r.service.load.total == 0
    place = tmp_path / "tokens"
    place.mkdir()
    async with rig(place, top={"keys": keys(tokens_per_minute=52)}) as r:
        assert await codes(r, 3, stream=stream) == ["ok", "ok", "rate_limit_exceeded"]  # 26 each


async def test_a_day_s_budget_survives_a_restart_and_the_sdk_does_not_retry(tmp_path: Path) -> None:
    limits = keys(usd_per_day=2.5 * USD)
    async with rig(tmp_path, top={"keys": limits}) as r:
        assert await codes(r, 4) == ["ok"] * 3 + ["insufficient_quota"]
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY, max_retries=3) as client:
            with pytest.raises(RateLimitError, match="budget"):
                await client.chat.completions.create(
                    model="banking-intents", messages=[{"role": "user", "content": FAR}]
                )
        await asyncio.sleep(1.2)
        assert r.metric("understudy_key_spent_today_usd", key="app") == pytest.approx(3 * USD)
    async with rig(tmp_path, top={"keys": limits}) as r:
        assert await codes(r, 1) == ["insufficient_quota"]


async def test_two_gateways_over_one_store_share_a_budget_within_two_seconds(
    tmp_path: Path,
) -> None:
    limits = keys(usd_per_day=2.5 * USD)
    async with (
        rig(tmp_path, top={"keys": limits}) as one,
        rig(tmp_path, top={"keys": limits}) as two,
    ):
        assert await codes(one, 3) == ["ok"] * 3
        started = time.monotonic()
        while (await codes(two, 1)) == ["ok"]:
            assert time.monotonic() - started < 2.5
            await asyncio.sleep(0.1)
            break
        await asyncio.sleep(2.0)
        assert await codes(two, 1) == ["insufficient_quota"]


async def test_a_revoked_key_is_refused_within_two_seconds_and_can_be_restored(
    tmp_path: Path,
) -> None:
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "x.db")
    async with gateway_process(tmp_path, data) as gateway, gateway.client() as client:
        config = str(tmp_path / "understudy.yaml")

        async def models() -> int:
            body = {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
            return (await client.post("/v1/chat/completions", json=body)).status_code

        async def within_two_seconds(status: int) -> None:
            started = time.monotonic()
            while (await models()) != status:
                assert time.monotonic() - started < 4  # two, and a slow machine's excuse
                await asyncio.sleep(0.05)

        assert await models() == 404
        note = ["--note", "left on a train"]
        done = CliRunner().invoke(keys_command, ["revoke", "--config", config, "app", *note])
        assert done.exit_code == 0, done.output
        await within_two_seconds(401)
        other = {"authorization": f"Bearer {PLAIN_KEY}"}
        body = {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
        response = await client.post("/v1/chat/completions", json=body, headers=other)
        assert response.status_code == 404
        done = CliRunner().invoke(keys_command, ["restore", "--config", config, "app"])
        assert done.exit_code == 0, done.output
        await within_two_seconds(404)
        done = CliRunner().invoke(keys_command, ["restore", "--config", config, "app"])
        assert (done.exit_code, done.output) == (1, "error: app is not revoked\n")
        done = CliRunner().invoke(keys_command, ["revoke", "--config", config, "ap", *note])
        assert "there is no key 'ap'; there are: app, plain" in done.output
