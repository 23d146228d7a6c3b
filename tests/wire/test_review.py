"""``understudy review``: what comes first, and what a decision does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.review_queue import Kind, queue
from gateway.store.feedback import Candidate
from tests.fakes.rig import FAR, IN_DOMAIN, ROOT, Rig, rig
from tests.wire.test_captures_cli import config_file, understudy
from tests.wire.test_feedback import PLAIN, asked, exported, tell


def candidate(number: int, **known: Any) -> Candidate:
    """An exchange that nothing is known of but this."""
    base = {"exchange_id": f"e{number}", "created_at": float(number), "reason": "ood",
            "score": None, "threshold": 0.1, "disagrees": None, "suggested": False,
            "rated_down": False}  # fmt: skip
    return Candidate(**{**base, **known})


def test_kinds_take_turns_and_the_most_urgent_of_each_comes_first() -> None:
    items = queue(
        [
            candidate(1),
            candidate(2, reason="in_distribution", score=0.001),  # plainly served: no use
            candidate(3, reason="low_confidence", score=0.2),
            candidate(4, reason="in_distribution", score=0.09),  # nearest to the threshold
            candidate(5, disagrees=True, score=0.5),
            candidate(6, disagrees=True, score=0.01),  # the judge was surest of this one
            candidate(7, suggested=True),
            candidate(8, rated_down=True),
            candidate(9),
        ],
        limit=99,
    )
    assert [(i.exchange_id, i.kind) for i in items] == [
        ("e7", Kind.SUGGESTED), ("e8", Kind.RATED_DOWN), ("e6", Kind.DISAGREES),
        ("e4", Kind.UNCERTAIN), ("e9", Kind.NEW_SLICE), ("e5", Kind.DISAGREES),
        ("e3", Kind.UNCERTAIN), ("e1", Kind.NEW_SLICE),
    ]  # fmt: skip
    assert queue([], 5) == []


async def queued(config: str) -> list[dict[str, Any]]:
    """What ``review list`` says."""
    done = await understudy("review", "list", "--config", config)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_decisions_are_labels_and_leave_the_queue(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}, says="transfer") as r:
        config = config_file(r, tmp_path)
        drawn, far, said = await asked(r, IN_DOMAIN), await asked(r), await asked(r, headers=PLAIN)
        await r.draws_done(3)
        await tell(r, PLAIN, request_id=said, correction="pay_bill")
        rows = {row["id"]: row for row in await queued(config)}
        assert rows[said]["kind"] == "suggested"
        assert rows[said]["suggested"] == ["pay_bill"]
        assert rows[drawn]["kind"] == "disagrees"
        assert rows[drawn]["answers"] == {"student": "apr", "teacher": "transfer"}
        for arguments in (
            [said, "--accept"], [drawn, "--side", "student"], [far, "--label", "other"],
        ):  # fmt: skip
            done = await understudy("review", "decide", "--config", config, *arguments)
            assert done.returncode == 0, done.stderr
        assert await queued(config) == []
        labels = {row["id"]: row["completion"] for row in await exported(r, tmp_path)}
        assert labels == {said: "pay_bill", drawn: "apr", far: "other"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "say one of"),
        (["--accept", "--reject"], "say one of"),
        (["--accept"], "nothing is suggested"),
        (["--side", "student"], "did not answer"),
    ],
)
async def test_decisions_that_cannot_be_meant_are_told(
    tmp_path: Path, arguments: list[str], reason: str
) -> None:
    async with rig(tmp_path) as r:
        config = config_file(r, tmp_path)
        far = await asked(r)
        done = await understudy("review", "decide", far, "--config", config, *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
        none = await understudy("review", "decide", "zzz", "--config", config, "--label", "x")
        assert "there is no exchange" in none.stderr


def typed(config: str, keys: str) -> subprocess.CompletedProcess[str]:
    """A session at the terminal."""
    line = [sys.executable, "-m", "gateway.cli", "review", "start", "--config", config]
    return subprocess.run(line, input=keys, capture_output=True, text=True, cwd=ROOT, check=False)


async def several(r: Rig) -> list[str]:
    """Three exchanges to decide on, newest first in the queue."""
    ids = [await asked(r, f"{FAR} {number}") for number in range(3)]
    return ids[::-1]


async def test_a_session_keeps_each_decision_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        config = config_file(r, tmp_path)
        ids = await several(r)
        done = await asyncio.to_thread(typed, config, "a\nt\nk\nc\npay_bill\n")
        assert done.returncode == 0, done.stderr
        assert "that is not possible here" in done.stdout  # nothing was suggested
        assert "1 of 3, new_slice" in done.stdout
        labels = {row["id"]: row["completed_by"] for row in await exported(r, tmp_path)}
        assert labels == {ids[0]: "human", ids[1]: "teacher", ids[2]: "human"}
        again = await asyncio.to_thread(typed, config, "q\n")
        assert "1 of 1" in again.stdout
