"""From nothing to a student: ``task new``, ``distill bootstrap``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from distill.collecting import collect
from distill.distill_commands import app as distill
from distill.examples import Example
from distill.job import Job, load_job
from distill.night import Night
from distill.relabelling import relabel
from distill.task_commands import app as task
from gateway.config_file import load_config, place_of
from gateway.store.ledger import Run
from gateway.store.records import DrawState, Exchange, Filter
from router.template import Message
from tests.fakes.upstream import FakeUpstream, Received, Wire

CLI = CliRunner()


class FakeTeacher:
    """Answers with the prompt's length; may fail, contradict itself, or invent prompts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: set[str] = set()
        self.noise = 0.0
        self.inventions = 0
        self._rng = random.Random(1)

    async def handle(self, received: Received, wire: Wire) -> None:
        text = received.text
        self.asked.append(text)
        if text in self.fails:
            await wire.json(400, {"error": {"message": "no", "type": "x", "code": "bad"}})
            return
        said = f"length {len(text)}"
        if self._rng.random() < self.noise:
            said = f"noise {self._rng.random()}"
        if text.startswith("These are messages"):
            said = self._invented()
        choice = {"index": 0, "message": {"role": "assistant", "content": said},
                  "finish_reason": "stop"}  # fmt: skip
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "big-1",
                "choices": [choice], "usage": usage}  # fmt: skip
        await wire.json(200, body)

    def _invented(self) -> str:
        words = ("card", "loan", "branch", "fee", "limit", "saving", "mortgage", "cheque")
        lines = []
        for _ in range(10):
            self.inventions += 1
            chosen = self._rng.sample(words, 3)
            lines.append(json.dumps(f"{' '.join(chosen)} question {self.inventions * 7919}"))
        return "\n".join([*lines, lines[0], "not json"])


@pytest.fixture
async def teacher() -> AsyncIterator[tuple[FakeTeacher, str]]:
    fake = FakeTeacher()
    upstream = FakeUpstream(fake.handle)
    async with upstream.running():
        yield fake, upstream.url


async def run(app: Any, *arguments: str) -> Any:
    return await asyncio.to_thread(CLI.invoke, app, list(arguments))


def prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    rows = [json.dumps({"text": f"question number {n} about my account"}) for n in range(count)]
    path.write_text("\n".join([*rows, rows[0]]))
    return path


async def made(folder: Path, url: str, count: int = 400, *more: str) -> Any:
    return await run(
        task, "new", "--config", str(folder / "u.yaml"), "--name", "accounts", "--base-url", url,
        "--model", "big-1", "--api-key-env", "", "--price-input", "1", "--price-output", "2",
        "--comparator", "text", "--alpha", "0.05", "--delta", "0.05", "--usd-per-day", "3",
        "--prompts", str(prompts(folder, count)) if count else "", *more,
    )  # fmt: skip


@contextlib.contextmanager
def night(job: Job, run: Run) -> Iterator[Night]:
    """A run in its first stage."""
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(contextlib.closing(job.place.ledger()))
        registry = stack.enter_context(contextlib.closing(job.place.registry()))
        samples = stack.enter_context(contextlib.closing(job.place.samples()))
        yield Night(job, run, ledger, registry, samples, lambda: None, stage="collect")


def stored(folder: Path) -> list[Exchange]:
    with contextlib.closing(place_of(load_config(folder / "u.yaml"), {}).reader()) as store:
        return list(store.read(Filter()))


async def test_a_new_task_is_asked_for_checked_and_written(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    fake, url = teacher
    done = await made(tmp_path, url)
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "u.yaml")
    (found,) = config.tasks
    assert (found.name, found.risk.alpha, found.distill.usd_per_day) == ("accounts", 0.05, 3.0)
    assert found.registered
    assert found.probe is not None
    assert len(found.probe.file.read_text().splitlines()) == 100
    assert len((tmp_path / "accounts.prompts.jsonl").read_text().splitlines()) == 300
    assert "contradicts itself on 0 of 100 prompts" in done.output
    assert len(fake.asked) == 200
    again = await made(tmp_path, url)
    assert again.exit_code == 1
    assert "task 'accounts' is there already" in again.output


async def test_it_asks_for_what_it_is_not_told(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    _, url = teacher
    lines = ["mine", url, "big-1", "", "1", "2", "label", "0.05", "0.05", "3", ""]
    done = await asyncio.to_thread(
        CLI.invoke,
        task,
        ["new", "--config", str(tmp_path / "u.yaml")],
        input="\n".join(lines) + "\n",
    )
    assert done.exit_code == 0, done.output
    assert load_config(tmp_path / "u.yaml").tasks[0].name == "mine"


async def test_a_noisy_teacher_is_said(teacher: tuple[FakeTeacher, str], tmp_path: Path) -> None:
    fake, url = teacher
    fake.noise = 0.3
    done = await made(tmp_path, url)
    assert "warning: that is above alpha = 0.05" in done.output


async def test_what_cannot_be_used_is_not_written(tmp_path: Path) -> None:
    done = await made(tmp_path, "nowhere", 0)
    assert done.exit_code == 1
    assert f"{tmp_path / 'u.yaml'}: tasks[0].teacher.base_url" in done.output
    assert list(tmp_path.iterdir()) == []


async def test_pairs_are_asked_once_and_kept(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    fake, url = teacher
    await made(tmp_path, url, 400, "--no-ask")
    source = str(tmp_path / "accounts.prompts.jsonl")
    call = ("bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", source)
    part = await run(distill, *call, "--pairs", "50")
    assert part.exit_code == 0, part.output
    assert json.loads(part.stdout)["stored"] == 50
    assert "smoke: 16 of 16 answered" in part.output
    whole = await run(distill, *call)
    told = json.loads(whole.stdout)
    assert (told["known"], told["asked"], told["stored"]) == (50, 250, 250)
    assert told["usd"] == pytest.approx(250 * 0.0012)
    assert len(fake.asked) == len(set(fake.asked)) == 300
    rows = stored(tmp_path)
    assert len(rows) == 300
    assert all(row.draw is None and row.reason == "imported" for row in rows)
    job = load_job(tmp_path / "u.yaml", None, lambda text: None)
    with contextlib.closing(job.place.reader()) as store:
        found = collect(store, "accounts", 1e12, job.task.teacher, {}, None)
    assert len(found.examples) == 300
    assert found.examples[0].completion.startswith("length")


async def test_a_sample_of_the_traffic_may_calibrate(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    _, url = teacher
    await made(tmp_path, url, 300, "--no-ask")
    source = str(tmp_path / "accounts.prompts.jsonl")
    done = await run(
        distill, "bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", source,
        "--traffic-sample",
    )  # fmt: skip
    assert done.exit_code == 0
    draws = [row.draw for row in stored(tmp_path)]
    assert all(d is not None and (d.p, d.state) == (1.0, DrawState.ALONE) for d in draws)


async def test_the_budget_is_kept_and_it_goes_on_with_more(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    fake, url = teacher
    await made(tmp_path, url, 400, "--no-ask")
    source = str(tmp_path / "accounts.prompts.jsonl")
    call = ("bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", source)
    done = await run(distill, *call, "--usd", "0.06")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["out_of_budget"]
    assert 0.06 <= told["usd"] < 0.06 + 32 * 0.0012
    assert "is enough for about 50" in done.output
    more = await run(distill, *call, "--usd", "1")
    assert more.exit_code == 0
    assert len(fake.asked) == 300


async def test_a_smoke_that_fails_stops_the_rest(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    fake, url = teacher
    await made(tmp_path, url, 400, "--no-ask")
    source = tmp_path / "accounts.prompts.jsonl"
    texts = [json.loads(line)["messages"][0]["content"] for line in source.read_text().splitlines()]
    fake.fails = set(texts[:3])
    call = ("bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", str(source))
    done = await run(distill, *call)
    assert done.exit_code == 1
    assert "3 of the first 16 prompts have no whole answer" in done.output
    assert len(stored(tmp_path)) == 13
    fake.fails = set(texts[40:42])  # later ones are only told
    done = await run(distill, *call)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["failed"] == 2


async def test_the_teacher_invents_prompts_and_none_twice(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    fake, url = teacher
    await made(tmp_path, url, 30)
    source = str(tmp_path / "accounts.prompts.jsonl")
    done = await run(
        distill, "bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", source,
        "--expand-to", "60",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["stored"] == 60
    asked = [t for t in fake.asked if not t.startswith("These are messages")]
    assert len(set(asked)) == 60
    both = await run(
        distill, "bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts", source,
        "--expand-to", "60", "--traffic-sample",
    )  # fmt: skip
    assert "invented prompts are no sample" in both.output


async def test_calls_are_paced(teacher: tuple[FakeTeacher, str], tmp_path: Path) -> None:
    _, url = teacher
    await made(tmp_path, url, 20, "--no-ask")
    started = time.monotonic()
    done = await run(
        distill, "bootstrap", "--config", str(tmp_path / "u.yaml"), "--prompts",
        str(tmp_path / "accounts.prompts.jsonl"), "--per-minute", "1200",
    )  # fmt: skip
    assert done.exit_code == 0
    assert time.monotonic() - started >= 19 * 60 / 1200


async def test_a_file_that_is_there_gets_the_task_added(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    _, url = teacher
    await made(tmp_path, url, 0)
    data = yaml.safe_load((tmp_path / "u.yaml").read_text())
    data["limits"] = {"body_bytes": 2048}
    data["tasks"][0]["name"] = "older"
    (tmp_path / "u.yaml").write_text(yaml.safe_dump(data))
    await made(tmp_path, url, 0)
    config = load_config(tmp_path / "u.yaml")
    assert [t.name for t in config.tasks] == ["older", "accounts"]
    assert config.tasks[1].pin_sampling  # clients that name no temperature are served too
    assert config.limits.body_bytes == 2048


async def test_a_changed_teacher_is_asked_again_as_far_as_the_money_reaches(
    teacher: tuple[FakeTeacher, str], tmp_path: Path
) -> None:
    """Draws first, then the newest; what was asked is kept, and a batch may overshoot."""
    fake, url = teacher
    await made(tmp_path, url, 0)
    said: list[str] = []
    job = load_job(tmp_path / "u.yaml", "accounts", said.append)
    stale = [
        Example(f"{n:03}", float(n), (Message("user", f"question {n}"),), "old", "teacher",
                0.5 if n < 10 else None, "teacher", "ood", True)
        for n in range(100)
    ]  # fmt: skip
    fake.asked.clear()
    fake.fails.add("question 3")

    with contextlib.closing(job.place.ledger()) as ledger:
        run = ledger.start("accounts", "test", {}, "code", time.time())
        ledger.begin_stage(run, "collect", {}, time.time())

    def ask(usd_per_run: float) -> int:
        limits = job.task.distill.model_copy(update={"relabel_usd": usd_per_run})
        limited = replace(job, task=job.task.model_copy(update={"distill": limits}))
        with night(limited, run) as tonight:
            return relabel(tonight, stale)

    assert await asyncio.to_thread(ask, 0.0) == 0
    assert fake.asked == []
    assert await asyncio.to_thread(ask, 0.05) == 63
    assert {f"question {n}" for n in [*range(10), *range(46, 100)]} == set(fake.asked)
    with contextlib.closing(job.place.samples()) as samples:
        kept = samples.labels("accounts")
    assert len(kept) == 63
    assert kept["099"].completion == "length 11"
    assert said[-1] == "the budget is spent: 36 prompts stay stale"
    with contextlib.closing(job.place.ledger()) as ledger:
        assert ledger.spent_today("accounts", time.time()) == pytest.approx(63 * 0.0012)
        ledger.spend(run, "collect", 3.0)  # the day's: usd_per_day
    assert await asyncio.to_thread(ask, 5.0) == 0
    assert said[-1] == "the budget is spent: 100 prompts stay stale"
