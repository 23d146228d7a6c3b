"""``understudy captures`` and ``check-config``, as typed beside a running gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import yaml

from router.rows import read_rows
from tests.fakes.answers import teacher_chunk
from tests.fakes.rig import FAR, IN_DOMAIN, ROOT, Rig, config_data, rig
from tests.wire.test_streams import encoded, scripted


async def understudy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command without blocking the gateway of the test."""
    line = [sys.executable, "-m", "gateway.cli", *arguments]
    return await asyncio.to_thread(
        subprocess.run, line, capture_output=True, text=True, cwd=ROOT, check=False
    )


def config_file(r: Rig, folder: Path) -> str:
    """The rig's configuration as a file."""
    path = folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(config_data(r.student.url, r.teacher.url, r.store)))
    return str(path)


async def test_list_show_and_export(tmp_path: Path) -> None:
    async with rig(tmp_path, router={"hold": 32}, risk={"draw_rate": 1.0}, says="apr") as r:
        config = config_file(r, tmp_path)
        await r.ask(IN_DOMAIN)
        await r.ask(FAR)
        r.teacher.handler = scripted(encoded([teacher_chunk({"content": "half"})], done=False))
        await r.ask(FAR, stream=True)
        await r.draws_done(2)

        listed = await understudy("captures", "list", "--config", config, "--json")
        rows = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [row["reason"] for row in rows] == ["ood", "ood", "in_distribution"]
        assert [row["status"] for row in rows] == ["incomplete", "complete", "complete"]
        table = await understudy("captures", "list", "--config", config, "--served-by", "student")
        assert "what is my apr" in table.stdout
        assert FAR[:20] not in table.stdout

        shown = await understudy("captures", "show", "--config", config, rows[2]["id"])
        whole = json.loads(shown.stdout)
        assert whole["served_by"] == "student"
        assert whole["draw"]["agrees"] is True
        assert whole["prefix"]["tokens"][0][0] == "ap"
        none = await understudy("captures", "show", "--config", config, "zzz")
        assert none.returncode == 1
        assert "0 exchanges have an id" in none.stderr

        out = tmp_path / "export.jsonl"
        done = await understudy("captures", "export", "--config", config, "--out", str(out))
        assert done.returncode == 0, done.stderr
        exported = read_rows(out)
        # The cut answer is no training data; both draws carry both answers and their weight.
        assert len(exported) == 2
        for row in exported:
            assert row.completion == "apr"
            assert row.student is not None
            assert row.student.text == "apr"
            assert len(row.student.tokens) == 3
            assert row.weight == 1.0
        fallbacks = await understudy("captures", "export", "--config", config, "--fallbacks")
        assert [json.loads(line)["reason"] for line in fallbacks.stdout.splitlines()] == ["ood"]
        recent = await understudy("captures", "list", "--config", config, "--since", "1h", "--json")
        assert len(recent.stdout.splitlines()) == 3
        wrong = await understudy("captures", "list", "--config", config, "--since", "soon")
        assert "write a number and s, m, h or d" in wrong.stderr


async def test_captures_without_a_store_say_so(tmp_path: Path) -> None:
    path = tmp_path / "understudy.yaml"
    path.write_text(yaml.safe_dump(config_data("http://x", "http://y", tmp_path / "none.db")))
    done = await understudy("captures", "list", "--config", str(path))
    assert done.returncode == 1
    assert "no such store" in done.stderr
    assert not (tmp_path / "none.db").exists()


async def test_check_config(tmp_path: Path) -> None:
    path = tmp_path / "understudy.yaml"
    data = config_data("http://x", "http://y", tmp_path / "x.db")
    path.write_text(yaml.safe_dump(data))
    good = await understudy("check-config", str(path))
    assert good.returncode == 0
    assert good.stdout.endswith("ok, 1 task(s)\n")
    assert "UNDERSTUDY_KEY is not set" in good.stdout
    data["tasks"][0]["router"]["artefact"] = "./nowhere"
    data["lisen"] = {}
    path.write_text(yaml.safe_dump(data))
    bad = await understudy("check-config", str(path))
    assert bad.returncode == 1
    assert f"error: {path}: lisen: unknown key; did you mean 'listen'?" in bad.stderr
    del data["lisen"]
    path.write_text(yaml.safe_dump(data))
    assert "nowhere has no manifest.json" in (await understudy("check-config", str(path))).stderr


async def test_serve_refuses_a_judge_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "understudy.yaml"
    data = config_data("http://x", "http://y", tmp_path / "x.db")
    data["keys"], data["tasks"][0]["teacher"]["api_key_env"] = [], None
    for change, sentence in (
        ({"student": {"base_urls": ["http://x"], "model": "other@v1"}}, "calibrated on student"),
        (
            {"router": {**data["tasks"][0]["router"], "gate_tokens": 8}},
            "fitted over 32 gate tokens",
        ),
        ({"router": {**data["tasks"][0]["router"], "hold": 8}}, "hold 8 is less than the 32"),
        ({"name": "another-task"}, "fitted for task 'banking-intents'"),
    ):
        changed = {**data, "tasks": [{**data["tasks"][0], **change}]}
        path.write_text(yaml.safe_dump(changed))
        done = await understudy("serve", "--config", str(path))
        assert done.returncode == 1
        assert f"error: {path}: tasks[0].router.artefact: " in done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


async def test_the_command_line_helps(tmp_path: Path) -> None:
    assert "captures" in (await understudy("--help")).stdout
    assert (await understudy("--version")).stdout.startswith("understudy ")
    wrong = await understudy("serv")
    assert wrong.returncode == 2
    assert "did you mean 'serve'?" in wrong.stderr
