"""The teacher's probe set: its own noise is measured, and another teacher is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import prober
from gateway.errors import ConfigError
from gateway.service import Service
from gateway.settings import Config
from gateway.store import probes
from gateway.store.audits import AuditStore
from gateway.store.place import Place
from router.comparator import label
from router.noise import Comparison, change_p_value
from tests.fakes.answers import teacher_says
from tests.fakes.rig import SECRETS, Rig, config_data, encoders, rig
from tests.fakes.upstream import Handler, Received, Wire


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "LOOK_S", 0.05)


def probe_file(folder: Path, count: int = 100) -> Path:
    path = folder / "probe.jsonl"
    rows = [json.dumps({"text": f"question {n}", "label": "a"}) for n in range(count)]
    path.write_text("\n".join(rows))
    return path


def events(r: Rig) -> list[str]:
    with contextlib.closing(Place(r.store).audits()) as store:
        return [event.kind.value for event in store.events("banking-intents")]


async def until(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def noisy(share: float, seed: int) -> Handler:
    """A teacher that gives another answer to so many of the questions, by chance."""
    rng = random.Random(seed)

    async def handle(received: Received, wire: Wire) -> None:
        await teacher_says("other" if rng.random() < share else "usual")(received, wire)

    return handle


async def test_a_teacher_that_changes_is_noticed_and_an_unchanged_one_is_not(
    tmp_path: Path,
) -> None:
    probe: dict[str, Any] = {"file": str(probe_file(tmp_path)), "every_s": 0.4}
    async with rig(tmp_path, probe=probe, says="usual") as r:
        await until(lambda: r.task.noise is not None and r.task.noise.latest is not None)
        noise = r.task.noise
        assert noise is not None and noise.floor is not None
        assert noise.floor == Comparison(100, 0)
        assert (noise.latest, noise.change_p) == (Comparison(100, 0), 1.0)
        assert "teacher_changed" not in events(r)
        r.teacher.handler = noisy(0.3, 1)
        await until(lambda: "teacher_changed" in events(r))
        assert r.metric("understudy_teacher_self_disagreement", task="banking-intents") == 0.0


async def test_a_budget_below_the_teacher_s_own_noise_is_said(tmp_path: Path) -> None:
    probe = {"file": str(probe_file(tmp_path)), "every_s": 3600.0}
    async with rig(tmp_path, probe=probe) as r:
        r.teacher.handler = noisy(0.5, 2)
        await until(lambda: "budget_under_noise" in events(r))
        assert r.task.noise is not None and r.task.noise.floor is not None
        assert 0.3 < r.task.noise.floor.rate < 0.7
    async with rig(tmp_path, probe=probe, says="usual") as r:
        await until(lambda: r.task.noise is not None)
        await asyncio.sleep(0.3)
        # The floor is remembered, and told once.
        assert not r.teacher.requests
        assert events(r).count("budget_under_noise") == 1


async def test_a_dead_teacher_is_probed_again_later(tmp_path: Path) -> None:
    probe = {"file": str(probe_file(tmp_path)), "every_s": 3600.0}
    async with rig(tmp_path, probe=probe, teacher={"retries": 0}) as r:
        r.never_break()
        working = r.teacher.handler

        async def failing(received: Received, wire: Wire) -> None:
            await wire.json(500, {"error": {"message": "boom"}})

        r.teacher.handler = failing
        await asyncio.sleep(0.3)
        assert r.task.noise is None or r.task.noise.floor is None
        r.teacher.handler = working
        await until(lambda: r.task.noise is not None and r.task.noise.floor is not None)


def test_one_replica_at_a_time_runs_the_set(tmp_path: Path) -> None:
    one, two = (Place(tmp_path / "x.db").audits() for _ in range(2))

    def claimed(store: AuditStore, now: float) -> bool:
        with store.transaction():
            return probes.claim(store, "t", now, 900.0)

    assert claimed(one, 0.0)
    assert not claimed(two, 1.0)
    assert claimed(two, 901.0)  # the first has died
    with two.transaction():
        probes.release(two, "t")
    assert claimed(one, 902.0)
    for store in (one, two):
        store.close()


def test_too_small_a_set_is_refused_at_start(tmp_path: Path) -> None:
    small = probe_file(tmp_path, 99)
    data = config_data(
        "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1", tmp_path / "x.db",
        probe={"file": str(small)},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"probe\.file: .*99 prompts; a probe set needs 100"):
        Service(Config(**data), SECRETS, encoders=encoders())


def test_change_is_judged_against_the_floor() -> None:
    runs = [{str(n): "a" if n < cut else "b" for n in range(200)} for cut in (200, 190, 188, 140)]
    floor = Comparison.of(runs[0], runs[1], label)
    assert floor == Comparison(200, 10)
    assert change_p_value(floor, Comparison.of(runs[0], runs[2], label)) > 0.1
    assert change_p_value(floor, Comparison.of(runs[0], runs[3], label)) < 1e-6
    assert 0.02 < floor.lower < floor.rate == 0.05
    assert Comparison.of({}, {}, label).rate == 0.0
