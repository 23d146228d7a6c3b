"""``understudy explain`` says what serving does, with which tier, and what would turn it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gateway import commands
from gateway.auditor import close_gate
from gateway.store.place import Place
from tests.fakes.answers import UNSURE, student_says
from tests.fakes.rig import FAR, IN_DOMAIN, Rig, config_data, rig


async def explained(r: Rig, folder: Path, text: str, *options: str) -> str:
    file = folder / "understudy.yaml"
    file.write_text(json.dumps(config_data(r.student.url, r.teacher.url, r.store)))
    arguments = ["explain", "--config", str(file), text, *options]
    result = await asyncio.to_thread(CliRunner().invoke, commands.app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout  # the gateway beside it logs to standard error


async def as_json(r: Rig, folder: Path, text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await explained(r, folder, text, "--json"))
    return found


async def test_verdicts_are_those_of_serving(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        for text, logprob in [(IN_DOMAIN, -0.001), (IN_DOMAIN, UNSURE), (FAR, -0.001)]:
            r.student.handler = student_says(["ap", "r"], logprob)
            served = (await r.ask(text)).headers
            found = await as_json(r, tmp_path, text)
            assert found["served_by"] == served["x-understudy-served-by"]
            assert found["reason"] == served["x-understudy-reason"]
            if "x-understudy-score" in served:
                assert abs(found["score"] - float(served["x-understudy-score"])) < 1e-5
            assert found["tier"] in {"static", "sentence"}
            assert found["weighed"]


async def test_what_would_turn_a_verdict(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        sure = await as_json(r, tmp_path, IN_DOMAIN)
        assert sure["served_by"] == "student"
        assert sure["would_flip"]["similarity"] < sure["nearest"][0]["similarity"]
        r.student.handler = student_says(["ap", "r"], UNSURE)
        unsure = await as_json(r, tmp_path, IN_DOMAIN)
        assert unsure["reason"] == "low_confidence"
        assert unsure["score"] > unsure["threshold"]
        text = await explained(r, tmp_path, IN_DOMAIN)
        assert "decided by the" in text
        assert "nearest training prompts" in text


async def test_a_gate_that_is_shut_is_said(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert (await as_json(r, tmp_path, IN_DOMAIN))["reason"] == "in_distribution"
        store = Place(r.store).audits()
        close_gate(store, "banking-intents", "incident", "ops", time.time())
        store.close()
        assert (await as_json(r, tmp_path, IN_DOMAIN))["reason"] == "gate_closed"
