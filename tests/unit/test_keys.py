"""Client keys: made by a command, known by digest, limited by principal."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gateway.auth import Keyring, Principal, digest_hex
from gateway.errors import GatewayError
from gateway.keys import app
from gateway.load import LagMeter, Load
from gateway.metrics import Metrics
from gateway.settings import Key
from gateway.workers import stopped


def test_a_new_key_opens_with_its_digest_and_only_with_it() -> None:
    result = CliRunner().invoke(app, ["new"])
    key, digest = (line.split()[1] for line in result.output.splitlines())
    assert digest_hex(key) == digest
    ring = Keyring([Key(name="app", sha256=[digest])], {})
    assert ring.principal(f"Bearer {key}").name == "app"
    with pytest.raises(GatewayError, match="not known"):
        ring.principal(f"Bearer {digest}")
    assert CliRunner().invoke(app, ["new"]).output != result.output


@given(st.lists(st.sampled_from(["enter-a", "enter-b", "leave-a", "leave-b"]), max_size=60))
def test_in_flight_never_exceeds_its_limits_and_never_leaks(steps: list[str]) -> None:
    people = {n: Principal(n, frozenset("*"), False, 2) for n in "ab"}
    load, inside = Load(), {"a": 0, "b": 0}
    for step in steps:
        action, name = step.split("-")
        if action == "leave":
            if inside[name]:
                load.leave(people[name])
                inside[name] -= 1
            continue
        room = inside[name] < 2 and sum(inside.values()) < 3
        try:
            load.enter(people[name], 3)
        except GatewayError as error:
            assert not room
            assert error.headers["retry-after"] == "1"
        else:
            assert room
            inside[name] += 1
        assert load.total == sum(inside.values())
    for name, count in inside.items():
        for _ in range(count):
            load.leave(people[name])
    assert load == Load()


async def test_a_late_loop_refuses_new_work_and_forgets_it_soon() -> None:
    meter = LagMeter(Metrics())
    worker = asyncio.create_task(meter.run())
    try:
        await asyncio.sleep(0.05)
        meter.check(0.3)
        time.sleep(0.8)  # the loop stands still  # noqa: ASYNC251
        await asyncio.sleep(0.05)
        meter.check(0.3)  # once is a hiccup
        while meter.lag_s < 0.3 or meter._before_s < 0.3:
            time.sleep(0.8)  # noqa: ASYNC251
            await asyncio.sleep(0.001)
        with pytest.raises(GatewayError, match="behind") as refused:
            meter.check(0.3)
        assert (refused.value.code, refused.value.status) == ("overloaded", 503)
        async with asyncio.timeout(10):
            while meter.lag_s > 0.3:
                await asyncio.sleep(0.05)
        meter.check(0.3)
    finally:
        await stopped(worker)
