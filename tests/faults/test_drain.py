"""SIGTERM: running answers finish, new ones are refused, the exit code is 0, all is on disk."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx

from gateway.store.sqlite import SqliteStore
from tests.fakes.answers import student_says, teacher_says
from tests.fakes.process import gateway_process
from tests.fakes.rig import ANSWER, FAR, config_data
from tests.fakes.upstream import FakeUpstream


async def test_running_answers_finish_and_are_kept(tmp_path: Path) -> None:
    student = FakeUpstream(student_says(ANSWER))
    teacher = FakeUpstream(teacher_says("teacher says", pause_s=0.8))
    store = tmp_path / "understudy.db"
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, store)
        async with gateway_process(tmp_path, data) as gateway, gateway.client() as client:

            async def ask(stream: bool) -> httpx.Response:
                body = {"model": "banking-intents", "stream": stream,
                        "messages": [{"role": "user", "content": FAR}]}  # fmt: skip
                return await client.post("/v1/chat/completions", json=body)

            asks = [asyncio.create_task(ask(bool(n % 2))) for n in range(8)]
            while teacher.open < 8:
                await asyncio.sleep(0.01)
            gateway.terminate()
            responses = await asyncio.gather(*asks)
            assert await asyncio.wait_for(gateway.process.wait(), 10) == 0
            assert [response.status_code for response in responses] == [200] * 8
            assert sum("[DONE]" in response.text for response in responses) == 4
            log = gateway.log.read_text()
            assert "Traceback" not in log
            assert '"event":"draining"' in log
    with contextlib.closing(SqliteStore.read_only(store)) as opened:
        assert opened.ids() == {response.headers["x-request-id"] for response in responses}


async def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    import sys

    import yaml

    from tests.fakes.rig import ROOT, SECRETS

    student, teacher = FakeUpstream(student_says(ANSWER)), FakeUpstream(teacher_says("x"))
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, tmp_path / "x.db")
        data["listen"] = {"port": teacher.port}
        config = tmp_path / "c.yaml"
        config.write_text(yaml.safe_dump(data))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "serve", "--config", str(config),
            cwd=ROOT, env={**SECRETS, "PATH": "/usr/bin:/bin"}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
        assert process.returncode == 1
        assert f"127.0.0.1:{teacher.port}" in err.decode().splitlines()[-1]
        assert b"Traceback" not in err
