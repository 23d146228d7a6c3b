"""``understudy doctor`` finds what is wrong and says how it is mended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import doctor
from gateway.doctor import Finding, Level, examine
from gateway.store.ledger import RunState
from gateway.store.place import Place
from gateway.store.sqlite import SqliteStore
from tests.fakes.process import free_port
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import SECRETS, config_data
from tests.fakes.upstream import FakeUpstream, Received, Wire
from tests.fakes.versions import TASK, add_version
from tests.unit.test_store import EXCHANGE

NOWHERE = "http://127.0.0.1:9/v1"


class Models:
    """An upstream that lists models, or does not."""

    def __init__(self, status: int = 200, date: float | None = None) -> None:
        self.status, self.date = status, date

    async def handle(self, received: Received, wire: Wire) -> None:
        headers = {"date": formatdate(self.date, usegmt=True)} if self.date else None
        await wire.json(self.status, {"object": "list", "data": []}, headers)


def written(folder: Path, student: str, teacher: str, /, **task: Any) -> Path:
    path = folder / "understudy.yaml"
    data = config_data(student, teacher, folder / "understudy.db", **task)
    path.write_text(yaml.safe_dump(data))
    return path


async def findings(path: Path, secrets: dict[str, str] = SECRETS) -> dict[str, list[Finding]]:
    """By area."""
    found: dict[str, list[Finding]] = {}
    for one in await asyncio.to_thread(lambda: list(examine(path, secrets, time.time()))):
        found.setdefault(one.area, []).append(one)
    return found


def levels(found: dict[str, list[Finding]]) -> dict[str, Level]:
    """The worst of each area."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    return {area: max((f.level for f in them), key=order.index) for area, them in found.items()}


async def test_a_sound_gateway_has_nothing_to_mend(tmp_path: Path) -> None:
    teacher, replica = FakeUpstream(Models().handle), FakeReplica({f"{TASK}@v1": "/v1"})
    async with teacher.running(), replica.upstream.running():
        found = await findings(written(tmp_path, replica.upstream.url, teacher.url))
    assert set(levels(found).values()) == {Level.OK}, found
    assert {"config", "keys", "disk", "store", f"{TASK}/teacher", f"{TASK}/replica"} <= set(found)


async def test_every_trouble_is_found_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, replica = FakeUpstream(Models(401).handle), FakeReplica()
    (tmp_path / "understudy.db").write_bytes(b"no database" * 400)
    (tmp_path / "understudy.db.damaged-2026").write_bytes(b"x")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50 << 20))
    async with teacher.running(), replica.upstream.running():
        path = written(tmp_path, replica.upstream.url, teacher.url)
        found = await findings(path, {k: v for k, v in SECRETS.items() if k != "PLAIN_KEY"})
    assert levels(found) == {
        "config": Level.OK, "keys": Level.FAIL, "disk": Level.FAIL, "store": Level.FAIL,
        f"{TASK}/teacher": Level.FAIL, f"{TASK}/replica": Level.FAIL,
    }  # fmt: skip
    assert "TEACHER_KEY" in str(found[f"{TASK}/teacher"][0].fix)
    assert "does not list" in found[f"{TASK}/replica"][0].says
    assert all(f.fix for them in found.values() for f in them if f.level is not Level.OK)


async def test_who_is_away_is_named(tmp_path: Path) -> None:
    skewed = FakeUpstream(Models(503, time.time() - 3600).handle)
    async with skewed.running():
        fallbacks = [{"base_url": skewed.url, "model": "b"}]
        teacher = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "fallbacks": fallbacks}
        path = written(tmp_path, NOWHERE, NOWHERE, teacher=teacher)
        found = await findings(path)
    first, second = found[f"{TASK}/teacher"]
    assert (first.level, second.level) == (Level.FAIL, Level.WARN)
    assert "cannot be asked" in first.says and "503" in second.says
    assert re.search(r"\+36\d\d s off", found["clock"][0].says)
    assert found[f"{TASK}/replica"][0].level is Level.WARN


async def test_new_templates_and_late_nights_are_seen(tmp_path: Path) -> None:
    place, now = Place(tmp_path / "understudy.db"), time.time()
    with contextlib.closing(SqliteStore.open(place.path)) as store:
        store.put([
            replace(EXCHANGE, id=f"{n:032x}", task=TASK, created_at=now - 60,
                    reason="new_template" if n % 4 == 0 else "unsupported_feature")
            for n in range(40)
        ])  # fmt: skip
    name = add_version(place, tmp_path)
    with contextlib.closing(place.registry()) as registry:
        registry.promote(name, "test", "n", now)
    with contextlib.closing(place.ledger()) as ledger:
        run = ledger.start(TASK, "cron", {}, "code", now - 200_000)
        ledger.end(run, RunState.REFUSED, "worse", now - 190_000)
    replica = FakeReplica({name: "/v1"})
    async with replica.upstream.running():
        student = {"base_urls": [replica.upstream.url], "model": None}
        path = written(tmp_path, NOWHERE, NOWHERE, student=student, router={"artefact": None})
        found = await findings(path)
        assert "10 of 40" in found[f"{TASK}/templates"][0].says
        assert levels(found)[f"{TASK}/templates"] is Level.WARN
        assert "30 of 40" in found[f"{TASK}/features"][0].says
        assert levels(found)[f"{TASK}/features"] is Level.WARN
        assert found[f"{TASK}/nights"][0].level is Level.WARN
        assert "worse" in found[f"{TASK}/nights"][0].says
        assert levels(found)[f"{TASK}/version"] is Level.OK
        assert levels(found)[f"{TASK}/replica"] is Level.OK
        shutil.rmtree(tmp_path / "students")
        assert levels(await findings(path))[f"{TASK}/version"] is Level.FAIL


def test_the_command_ends_with_1_where_something_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    for key, value in SECRETS.items():
        monkeypatch.setenv(key, value)
    path = written(tmp_path, NOWHERE, NOWHERE)
    done = CliRunner().invoke(doctor.app, ["--config", str(path)])
    assert done.exit_code == 1
    assert "2 to mend" in done.output or "1 to mend" in done.output
    assert "->" in done.output
    lines = CliRunner().invoke(doctor.app, ["--config", str(path), "--json"]).stdout.splitlines()
    assert {json.loads(line)["level"] for line in lines} >= {"ok", "fail"}
    (tmp_path / "understudy.yaml").write_text("tasks: 3")
    done = CliRunner().invoke(doctor.app, ["--config", str(path)])
    assert done.exit_code == 1
    assert "fail  config" in done.output
