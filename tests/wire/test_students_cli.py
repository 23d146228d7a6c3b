"""``understudy students`` and ``/admin``: what there is, promote, roll back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from gateway.store.place import Place
from gateway.students import app
from tests.fakes.rig import SECRETS, config_data
from tests.fakes.versions import TASK, add_version
from tests.wire.test_deployments import Site, site

CLI = CliRunner()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "u.db")
    data["tasks"][0]["student"] = {"base_urls": ["http://127.0.0.1:9/v1"]}
    del data["tasks"][0]["router"]
    data["store"] = "sqlite:///u.db"
    file = tmp_path / "understudy.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def run(*arguments: str) -> Any:
    return CLI.invoke(app, list(arguments))


def test_list_show_diff_promote_rollback(path: Path) -> None:
    place, config = Place(path.parent / "u.db"), ("--config", str(path))
    assert "no such store" in run("list", *config).output
    with contextlib.closing(place.registry()):
        pass
    assert "no version yet" in run("list", *config).output
    one, two = (add_version(place, path.parent) for _ in range(2))
    done = run("promote", one, *config, "--note", "first")
    assert done.output == f"{TASK}: {one} serves; before it none\n"
    done = run("promote", two, *config, "--note", "try", "--share", "0.25")
    assert done.output == f"{TASK}: {one} serves, {two} on 25%; before it none\n"
    lines = run("list", *config).output.splitlines()
    assert lines[0].endswith("serves")
    assert lines[1].endswith("canary, 25%")
    run("promote", two, *config, "--note", "all")
    done = run("rollback", *config, "--note", "odd answers")
    assert done.output == f"{TASK}: {one} serves; before it {two}\n"
    listed = json.loads(run("list", *config, "--json").output)
    assert listed["deployment"]["note"] == "odd answers"
    assert [v["name"] for v in listed["versions"]] == [one, two]
    shown = json.loads(run("show", two, *config, "--json").output)
    assert (shown["state"], shown["lineage"]) == ("ready", [])
    assert "lineage" in run("show", two, *config).output
    told = run("diff", one, two, *config).output
    assert f"{one}  ->  {two}" in told
    assert "kind " not in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["promote", "banking-intents@v9", "--note", "x"], "no student version"),
        (["show", "banking-intents@v9"], "no student version"),
        (["show", "nothing@v1"], "there is no task 'nothing'"),
        (["rollback", "--note", "x"], "no version serves"),
    ],
)
def test_what_is_not_there_is_said(path: Path, arguments: list[str], says: str) -> None:
    add_version(Place(path.parent / "u.db"), path.parent)
    done = run(*arguments, "--config", str(path))
    assert done.exit_code == 1
    assert says in done.output


ADMIN = {"authorization": "Bearer us-admin"}


async def post(s: Site, action: str, **body: object) -> httpx.Response:
    return await s.client.post(f"/admin/tasks/{TASK}/{action}", json=body, headers=ADMIN)


async def test_an_operator_promotes_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECRETS, "ADMIN_KEY", "us-admin")
    async with site(tmp_path, before=2, top={"admin": {"key_env": "ADMIN_KEY"}}) as s:
        one, two = "banking-intents@v1", "banking-intents@v2"
        await s.until(one)
        canary = await post(s, "promote", student=two, share=0.3, note="try")
        assert canary.status_code == 200
        assert (canary.json()["student"], canary.json()["canary"]["student"]) == (one, two)
        whole = await post(s, "promote", student=two, note="all of it")
        assert (whole.json()["student"], whole.json()["canary"]) == (two, None)
        assert (await s.ask()).headers["x-understudy-student"] == two
        back = await post(s, "rollback", note="odd")
        assert back.json()["student"] == one
        assert (await s.ask()).headers["x-understudy-student"] == one
        for action, body, code in (
            ("promote", {"student": "banking-intents@v7", "note": "x"}, "not_promotable"),
            ("promote", {"student": "other@v1", "note": "x"}, "not_promotable"),
            ("promote", {"student": two, "share": 2, "note": "x"}, "invalid_value"),
            ("promote", {"student": two}, "invalid_value"),
            ("rollback", {"note": "x", "to": one}, "not_promotable"),
        ):
            answer = await post(s, action, **body)
            assert answer.json()["error"]["code"] == code
        bare = await s.client.post(f"/admin/tasks/{TASK}/rollback", json={"note": "x"})
        assert bare.status_code == 401
