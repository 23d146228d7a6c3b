"""Backup, wipe, restore: the same answers, captures and versions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.store.migrating import upgrade
from gateway.store.place import Place
from gateway.store.records import Filter
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.postgres import Postgres
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.replica import FakeReplica
from tests.fakes.rig import FAR, IN_DOMAIN, ROOT, SECRETS, SYSTEM, config_data
from tests.fakes.upstream import FakeUpstream
from tests.fakes.versions import TASK, add_version
from tests.faults.kills import Witness, under_load

URL = "POSTGRES_URL"


async def answers(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """What two prompts get, and from whom."""
    told = []
    async with gateway.client() as client:
        for text in (IN_DOMAIN, FAR):
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            body = {"model": TASK, "messages": chat}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            head = response.headers
            told.append({
                "content": response.json()["choices"][0]["message"]["content"],
                **{name: head.get(f"x-understudy-{name}")
                   for name in ("served-by", "reason", "student", "router", "score", "threshold")},
            })  # fmt: skip
    return told


async def until_served(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """The same once the student is loaded again: a server that restarted knows no version."""
    async with asyncio.timeout(30):
        while (told := await answers(gateway))[0]["served-by"] != "student":
            await asyncio.sleep(0.1)
    return told


def understudy(
    folder: Path, command: str, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, over the folder's configuration."""
    line = [sys.executable, "-m", "gateway.cli", command, "--config",
            str(folder / "understudy.yaml"), *arguments]  # fmt: skip
    return subprocess.run(
        line, capture_output=True, text=True, cwd=ROOT, check=False,
        env={**SECRETS, "PATH": "/usr/bin:/bin", **(env or {})},
    )  # fmt: skip


async def backed_up(folder: Path, place: Place, env: dict[str, str]) -> None:
    """Live, back up under load, wipe, restore, live on."""
    home = folder / "home"
    home.mkdir()
    replica = FakeReplica()
    teacher = FakeUpstream(teacher_says("apr"))
    async with replica.upstream.running(), teacher.running():
        data = config_data(replica.upstream.url, teacher.url, home / "understudy.db")
        data["tasks"][0]["student"] = {"base_urls": [replica.upstream.url], "timeout_s": 5.0}
        data["tasks"][0]["router"] = {"hold": "all"}
        data["tasks"][0]["distill"] = {"folder": str(home)}
        if env:
            data["postgres"] = {"url_env": URL}
        names = [add_version(place, home) for _ in range(2)]
        for name in names:
            replica.answers[name] = student_says([name])
        with contextlib.closing(place.registry()) as registry:
            registry.promote(names[0], "test", "n", time.time())
            registry.promote(names[1], "test", "n", time.time())
        witness, file = Witness(), folder / "b.tar"
        async with gateway_process(folder, data, env=env) as gateway:
            before = await until_served(gateway)
            async with under_load(gateway, witness):
                await asyncio.sleep(0.5)
                known = set(witness.ended)
                done = await asyncio.to_thread(
                    understudy, folder, "backup", "--to", str(file), env=env
                )
                assert done.returncode == 0, done.stderr
            assert "and 4 folders" in done.stdout
            assert witness.cut == 0
            gateway.terminate()
            await gateway.process.wait()
        shutil.rmtree(home)
        replica.restart()
        done = understudy(folder, "restore", str(file), env=env)
        assert done.returncode == 0, done.stderr
        assert (home / "students/v2/manifest.json").is_file()
        async with gateway_process(folder, data, env=env) as gateway:
            assert await until_served(gateway) == before
            assert before[0]["content"] == names[1]
        with contextlib.closing(place.reader()) as store:
            stored = {row.id for row in store.read(Filter())}
        assert known <= stored
        assert known
        with contextlib.closing(place.registry()) as registry:
            assert [v.name for v in registry.versions(TASK)] == names
            assert registry.roll_back(TASK, "test", "n", time.time()).live == names[0]


@pytest.mark.timeout(120)
async def test_a_backup_under_load_brings_everything_back(tmp_path: Path) -> None:
    await backed_up(tmp_path, Place(tmp_path / "home/understudy.db"), {})


@pytest.mark.timeout(120)
async def test_with_postgres_the_rest_is_pg_dump_s(tmp_path: Path, database: Postgres) -> None:
    upgrade(database.url)
    place = Place(tmp_path / "home/understudy.db", database.url)
    dump = tmp_path / "p.dump"

    def tool(name: str, *arguments: str) -> None:
        subprocess.run([database.binaries / name, *arguments], check=True, capture_output=True)

    # The load's own exchanges are shipped before the dump is taken.
    await backed_up(tmp_path, place, {URL: database.url})
    with contextlib.closing(place.reader()) as store:
        stored = {row.id for row in store.read(Filter())}
    tool("pg_dump", "--format=custom", "--file", str(dump), database.url)
    database.fresh()
    tool("pg_restore", "--clean", "--if-exists", "--dbname", database.url, str(dump))
    with contextlib.closing(place.reader()) as store:
        assert {row.id for row in store.read(Filter())} == stored
    assert stored
    with contextlib.closing(place.registry()) as registry:
        assert len(registry.versions(TASK)) == 2


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a configuration, a store, a version, and a backup of them."""
    place = Place(tmp_path / "understudy.db")
    add_version(place, tmp_path)
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", place.path)
    data["tasks"][0].pop("router")
    data["tasks"][0].pop("student")
    data["tasks"][0]["distill"] = {"folder": str(tmp_path)}
    (tmp_path / "understudy.yaml").write_text(yaml.safe_dump(data))
    done = understudy(tmp_path, "backup", "--to", str(tmp_path / "b.tar"))
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_nothing_is_overwritten(made: Path) -> None:
    again = understudy(made, "backup", "--to", str(made / "b.tar"))
    assert again.returncode == 1
    assert "is there already" in again.stderr
    refused = understudy(made, "restore", str(made / "b.tar"))
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    done = understudy(made, "restore", str(made / "b.tar"), "--replace")
    assert done.returncode == 0, done.stderr
    assert list(made.glob("understudy.db.before-restore-*"))
    (made / "students/v1/manifest.json").write_text("{}")
    refused = understudy(made, "restore", str(made / "b.tar"), "--replace")
    assert refused.returncode == 1
    assert "students/v1 is there, and differs" in refused.stderr


@pytest.mark.parametrize("damage", ["bytes", "cut", "other", "missing"])
def test_a_damaged_backup_changes_nothing(made: Path, damage: str) -> None:
    file = made / "b.tar"
    raw = bytearray(file.read_bytes())
    if damage == "bytes":
        raw[700] ^= 0xFF  # inside the store's first page
    elif damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "other":
        raw = bytearray(b"no tar")
    file.write_bytes(raw)
    if damage == "missing":
        file.unlink()
    before = (made / "understudy.db").read_bytes()
    done = understudy(made, "restore", str(file), "--replace")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {file}: ")
    assert "Traceback" not in done.stderr
    assert (made / "understudy.db").read_bytes() == before
    assert not list(made.glob("*.before-restore-*"))
    assert not list(made.glob(".restore-*"))


@pytest.mark.parametrize("lie", ["member", "folder"])
def test_a_backup_that_lies_about_places_is_refused(made: Path, lie: str) -> None:
    evil = b"evil"
    folder = str(made) if lie == "member" else "/nowhere/else"
    name = "../evil" if lie == "member" else "folders/0/evil"
    told = {"format": 1, "at": 0.0, "folders": {"folders/0": folder},
            "files": {name: hashlib.sha256(evil).hexdigest()}}  # fmt: skip
    with tarfile.open(made / "lie.tar", "w") as tar:
        for member, raw in ((name, evil), ("manifest.json", json.dumps(told).encode())):
            info = tarfile.TarInfo(member)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    done = understudy(made, "restore", str(made / "lie.tar"), "--replace")
    assert done.returncode == 1
    assert "out of its place" in done.stderr or "distill.folder" in done.stderr
    assert not (made.parent / "evil").exists()
    assert not list(made.glob("*.before-restore-*"))


def test_a_backup_is_its_owner_s_alone_and_leaves_nothing_behind(made: Path) -> None:
    assert (made / "b.tar").stat().st_mode & 0o077 == 0
    assert not list(made.glob(".backup-*"))
    with tarfile.open(made / "b.tar") as tar:
        assert all(member.isfile() for member in tar)
