"""The loop under faults: killed, crowded, refused, forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from distill import runner
from distill.asking import AT_ONCE
from distill.distill_commands import app
from distill.job import load_job
from distill.replicas import unload_everywhere
from distill.runner import Busy, leased, start
from gateway.captures import app as captures
from gateway.scrub import end_user_digest
from gateway.store.ledger import RunState
from gateway.store.records import Exchange
from gateway.store.students import VersionState
from tests.fakes.process import free_port
from tests.fakes.traffic import TASK, captured, config_file, fill
from tests.fakes.upstream import FakeUpstream, Received, Wire
from tests.faults.distill_kills import ended, facts, killed_until_it_ends
from tests.faults.distill_kills import start as started

CLI = CliRunner()


@pytest.fixture(autouse=True)
def _forgets(student: str) -> None:
    """A version's name stands for one folder for ever, and every test here has a ``@v1``."""
    for model in httpx.get(f"{student}/models").json()["data"]:
        assert unload_everywhere([student], model["id"]) == []


@pytest.fixture(scope="module")
def undisturbed(
    student: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of its own, to compare with; its folder and what it said."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fill(folder, captured(1000))
    path = config_file(folder, student)
    return folder, ended(started(path), path)


def test_a_first_run_promotes_and_tells_why(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, told = undisturbed
    assert told["state"] == "promoted", told
    page = Path(told["report"]).read_text()
    for part in (
        "Certificate",
        "On the same test prompts",
        "Agreement by slice",
        "Risk and coverage",
        "Worst disagreements",
        "Cost and latency",
        "<svg",
    ):
        assert part in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="https?:', page), "it is read without a network"
    card = (folder / "students" / TASK / "cards/v1.md").read_text()
    assert "risk at most 0.05" in card
    run = folder / "students" / TASK / "runs" / f"{TASK}-1"
    assert not list(run.glob("*.jsonl*")), "prompts stay in the store alone"


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(
    student: str, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, said = undisturbed
    found = killed_until_it_ends(tmp_path / "killed", student, captured(1000), kills=5, seed=5)
    assert sum(found.kills.values()) >= 3
    place = fill(folder, [])
    assert found.facts == facts(place, folder)
    assert found.facts["left_over"] == []
    assert found.reason == said["reason"]


def test_two_never_run_at_once(student: str, tmp_path: Path) -> None:
    fill(tmp_path, captured(300))
    path = config_file(tmp_path, student)
    job = load_job(path, None, lambda text: None)
    with contextlib.closing(job.place.ledger()) as ledger, leased(job, ledger):
        done = CLI.invoke(app, ["run", "--config", str(path)], env={})
        # This process holds the lease itself: what counts is the owner.
        assert done.exit_code in (0, 1)
    with contextlib.closing(job.place.ledger()) as ledger:
        assert ledger.lease(TASK, "elsewhere/1", time.time(), time.time() + 60)
    done = CLI.invoke(app, ["run", "--config", str(path)])
    assert done.exit_code == 3
    assert "is being run by elsewhere/1" in done.output
    with pytest.raises(Busy):
        start(job, "test")


def test_a_dead_owner_is_not_waited_for(student: str, tmp_path: Path) -> None:
    fill(tmp_path, captured(60))
    job = load_job(config_file(tmp_path, student), None, lambda text: None)
    dead = runner._owner().rpartition("/")[0] + "/4194000"
    with contextlib.closing(job.place.ledger()) as ledger:
        assert ledger.lease(TASK, dead, time.time(), time.time() + 600)
    assert start(job, "test").state is RunState.SKIPPED


def test_a_replica_that_is_down_fails_the_run_and_it_is_resumed(
    student: str, tmp_path: Path
) -> None:
    place = fill(tmp_path, captured(1000))
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    done = CLI.invoke(app, ["run", "--config", str(config_file(tmp_path, nowhere))])
    assert done.exit_code == 1
    assert "could not be loaded into any replica" in done.output
    path = config_file(tmp_path, student)
    shown = json.loads(CLI.invoke(app, ["show", "--config", str(path), "--json"]).stdout)
    assert [s["name"] for s in shown["stages"]][-1] == "load"
    assert shown["state"] == "failed"
    assert CLI.invoke(app, ["resume", "--config", str(path)]).exit_code == 0
    with contextlib.closing(place.ledger()) as ledger:
        (run,) = ledger.runs(TASK)
        tries = {s.name: s.tries for s in ledger.stages(run.id)}
    assert run.state is RunState.PROMOTED
    assert tries["load"] == 2
    assert tries["train"] == 1


def test_a_worse_candidate_is_refused_and_the_incumbent_stays(student: str, tmp_path: Path) -> None:
    rows = captured(1300)
    place = fill(tmp_path, rows[:1000])
    path = config_file(tmp_path, student)
    assert CLI.invoke(app, ["run", "--config", str(path)]).exit_code == 0
    # Next, a setting that starves the training.
    with contextlib.closing(place.repository()) as store:
        store.put(rows[1000:])
    starved = config_file(tmp_path, student, max_rows=100, min_rows=10)
    done = CLI.invoke(app, ["run", "--config", str(starved), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["state"] == "refused"
    assert "agreement" in told["reason"]
    with contextlib.closing(place.registry()) as registry:
        first, second = registry.versions(TASK)
        row = registry.deployment(TASK)
    assert row is not None
    assert (row.live, first.state, second.state) == (
        first.name, VersionState.READY, VersionState.REFUSED,
    )  # fmt: skip
    # It was asked for as long as it could still pass: not about every test row, nor about
    # anything else.
    with contextlib.closing(place.ledger()) as ledger:
        run = ledger.runs(TASK)[0]
        evaluate = next(s.outputs for s in ledger.stages(run.id) if s.name == "evaluate")
    assert evaluate is not None
    folder = load_job(path, TASK, print).folder
    assert evaluate["asked"] == {second.name: AT_ONCE}
    assert second.name not in evaluate["speed"]
    page = (folder / "runs" / run.id / "report.html").read_text()
    assert f"agreement on the first {AT_ONCE} of {evaluate['test_rows']} test rows" in page
    card = (folder / "cards" / "v2.md").read_text()
    assert f"first {AT_ONCE} of {evaluate['test_rows']} rows of test traffic" in card
    # Its failures are the regression set of later runs.
    with contextlib.closing(place.samples()) as samples:
        assert any(s.failed == first.name for s in samples.of_task(TASK).values())
    status = CLI.invoke(app, ["status", "--config", str(path)]).stdout
    assert "refused" in status and "promoted" in status


def test_terms_and_consent_are_kept(student: str, tmp_path: Path) -> None:
    """A planted text of an exchange that is not for training is in no file of a run; a teacher
    whose terms forbid it is not distilled from."""
    rows = captured(400)
    planted = "zebra quagga crossing"
    hidden = replace(
        rows[0], id="f" * 32, no_train=True,
        request={"messages": [{"role": "user", "content": planted}]},
    )  # fmt: skip
    fill(tmp_path, [*rows, hidden])
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    path = config_file(tmp_path, nowhere, min_rows=10)
    assert CLI.invoke(app, ["run", "--config", str(path)]).exit_code == 1  # stops at load
    files = [p for p in (tmp_path / "students").rglob("*") if p.is_file()]
    assert any(p.name == "student.jsonl" for p in files)
    for file in files:
        raw = file.read_bytes()
        text = gzip.decompress(raw) if file.suffix == ".gz" else raw
        assert planted.encode() not in text, file
    shown = json.loads(CLI.invoke(app, ["show", "--config", str(path), "--json"]).stdout)
    assert shown["stages"][0]["outputs"]["left_out"]["not_for_training"] == 1
    forbidden = "model: big-1\n    terms: no_distillation"
    path.write_text(path.read_text().replace("model: big-1", forbidden))
    done = CLI.invoke(app, ["run", "--config", str(path)])
    assert done.exit_code == 1
    assert "terms: no_distillation" in done.output


def test_an_end_user_is_forgotten_in_runs_too(student: str, tmp_path: Path) -> None:
    user = "user-77"
    rows = [replace(r, end_user=end_user_digest(user)) if n % 7 == 0 else r
            for n, r in enumerate(captured(1000))]  # fmt: skip
    fill(tmp_path, rows)
    path = config_file(tmp_path, student)
    assert CLI.invoke(app, ["run", "--config", str(path)]).exit_code == 0
    theirs = [r.request["messages"][-1]["content"] for r in rows if r.end_user]
    folder = tmp_path / "students"
    report = next(folder.rglob("report.html")).read_text()
    before = sum(text in report for text in theirs)
    done = CLI.invoke(captures, ["forget", "--config", str(path), "--user", user])
    assert done.exit_code == 0, done.output
    assert before == 0 or "rows taken out" in done.output
    for file in folder.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert not any(t.encode() in text for t in theirs if len(t) > 25), file


def worded(row: Exchange, number: int) -> Exchange:
    """Every other answer in other words, which only the judge comparator takes for the same."""
    label = row.answer["choices"][0]["message"]["content"] if row.answer else ""
    said = {"role": "assistant", "content": f"it is {label}" if number % 2 else label}
    return replace(row, answer={"choices": [{"message": said, "finish_reason": "stop"}]})


class JudgingTeacher:
    """Says YES to two answers that name the same label."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.mumbles = 0

    async def handle(self, received: Received, wire: Wire) -> None:
        pair = json.loads(received.text)
        first, second = pair["answer_1"], pair["answer_2"]
        self.pairs.append((first, second))
        word = "Yes." if first.removeprefix("it is ") == second.removeprefix("it is ") else "NO"
        # By the question, not by its turn: calls arrive in any order.
        if zlib.crc32(received.text.encode()) % 40 == 0:
            self.mumbles, word = self.mumbles + 1, "It depends."
        message = {"role": "assistant", "content": word}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 200, "completion_tokens": 1, "total_tokens": 201}
        await wire.json(200, {"id": "c", "object": "chat.completion", "created": 1,
                              "model": "big-1", "choices": [choice], "usage": usage})  # fmt: skip


async def test_the_judge_comparator_asks_the_teacher_once_for_each_pair(
    student: str, tmp_path: Path
) -> None:
    """Its word decides gate and certificate; money that is spent stops the run, not its words."""
    rows = [worded(row, number) for number, row in enumerate(captured(1200))]
    fill(tmp_path, rows)
    teacher = JudgingTeacher()
    upstream = FakeUpstream(teacher.handle)
    async with upstream.running():
        settings = {"min_calibrate_rows": 50, "promise": "every_version"}
        path = config_file(tmp_path, student, upstream.url, usd_per_day=0.03, **settings)
        risk = "risk: {comparator: judge, alpha: 0.1}"
        text = path.read_text().replace(f"name: {TASK}", f"name: {TASK}\n  {risk}")
        path.write_text(text)
        poor = await asyncio.to_thread(CLI.invoke, app, ["run", "--config", str(path)])
        assert poor.exit_code == 1
        assert "distill.usd_per_day is spent" in poor.output
        first = len(teacher.pairs)
        assert first > 32
        path.write_text(text.replace("usd_per_day: 0.03", "usd_per_day: 20"))
        await asyncio.to_thread(CLI.invoke, app, ["resume", "--config", str(path)])
    with contextlib.closing(load_job(path, None, print).place.ledger()) as ledger:
        (run,) = ledger.runs(TASK)
        stages = {stage.name: stage for stage in ledger.stages(run.id)}
    assert run.state is RunState.PROMOTED, run.reason
    # Only where the texts differ, and once; what it did not answer clearly is a disagreement.
    assert all(a != b for a, b in teacher.pairs)
    asked = Counter(received.text for received in upstream.requests)
    assert teacher.mumbles > 0
    assert sum(count - 1 for count in asked.values()) <= teacher.mumbles
    (share,) = (stages["evaluate"].outputs or {})["agreement"].values()
    assert share > 0.75, "by the words alone it is less than half"
    assert sum(s.cost_usd for s in stages.values()) == pytest.approx(
        len(teacher.pairs) * (200 * 2.5 + 10) / 1e6
    )
