"""``understudy top`` over a running gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml
from typer.testing import CliRunner

from gateway import top
from gateway.top import Look, shown
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, config_data, rig

TASK = "banking-intents"


def command(folder: Path, *arguments: str) -> str:
    path = folder / "top.yaml"
    path.write_text(yaml.safe_dump(config_data("http://x/v1", "http://x/v1", folder / "no.db")))
    done = CliRunner().invoke(top.app, ["--config", str(path), *arguments])
    return f"{done.exit_code} {done.output}"


async def test_the_split_of_a_running_gateway_is_shown(tmp_path: Path) -> None:
    async with rig(tmp_path, says="apr", risk={"draw_rate": 1.0}) as r:
        over = asyncio.Event()

        async def user() -> None:
            while not over.is_set():
                await r.ask()
                await r.ask(FAR)

        using = asyncio.create_task(user())
        said = await asyncio.to_thread(
            command, tmp_path, "--url", r.url, "--once", "--every", "1.5"
        )
        over.set()
        await using
    assert said.startswith("0 ")
    rows = {line.split()[0]: line for line in said[2:].splitlines() if line.strip()}
    assert "banking-intents@v1" in rows[TASK]
    assert "open" in rows[TASK] and "5.0%" in rows[TASK]
    assert rows["in_distribution"].split()[2] in {"48%", "49%", "50%", "51%", "52%"}
    assert rows["ood"]
    assert rows[f"{TASK}/teacher"].split()[2] == "0%"


def test_a_gateway_that_is_away_is_said(tmp_path: Path) -> None:
    said = command(tmp_path, "--url", f"http://127.0.0.1:{free_port()}", "--once")
    assert said.startswith("1 ")
    assert "is the gateway running?" in said


def test_a_counter_that_begins_anew_counts_from_zero() -> None:
    labels = frozenset({("task", "t"), ("reason", "ood"), ("served_by", "teacher")})
    before = Look(0.0, {"understudy_requests_total": {labels: 100.0}})
    now = Look(2.0, {"understudy_requests_total": {labels: 6.0}})
    assert top._rates(before, now, "understudy_requests_total", "task") == {"t": 3.0}
    assert shown(before, now)
